"""The model folders that are compiled: the bundled one, and Florence-2's real geometries with random weights.

They are made below `build/` by the project's own commands, once for each version of the code that converts.
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.debian import ROOT
from florence_tagger.config import DEFAULT_MODEL
from gpu.simulation import BUILD

BUNDLED, BUNDLED_CHECKPOINT = "bundled", ROOT / "training" / "florence-2-tiny"
PRECISIONS = {
    "fp16": ("--precision", "fp16"),
    "int8": ("--precision", "int8"),
    "int4": ("--precision", "int4"),
    "int8-calibrated": ("--precision", "int8", "--calibration"),  # with a folder of pictures
}
GEOMETRIES = (BUNDLED, "base", "large")
PICTURES = ("--count", "16", "--side", "768", "--most", "8", "--seed", "0")  # kernels do not depend on them


@dataclass(frozen=True)
class Variant:
    """A model that is compiled: a geometry, and a precision that it is stored in."""

    geometry: str
    precision: str

    @property
    def name(self) -> str:
        """As tables and folders call it."""
        return f"{self.geometry} {self.precision}"

    @property
    def folder(self) -> Path:
        """Its model folder."""
        return DEFAULT_MODEL if self.is_stored else BUILD / "models" / f"{self.geometry}-{self.precision}"

    @property
    def is_stored(self) -> bool:
        """Whether it is in the repository."""
        return (self.geometry, self.precision) == (BUNDLED, "fp16")


VARIANTS = tuple(Variant(geometry, precision) for geometry in GEOMETRIES for precision in PRECISIONS)


def make_folder(variant: Variant, report: Callable[[str], None]) -> Path:
    """Return the model folder of a variant, made unless this version of the code made it already.

    Raises:
        CalledProcessError: a command failed; it said why.
    """
    made, version = variant.folder.with_suffix(".made"), hash_of(sources("convert", "benchmarks/random_checkpoint.py"))
    if variant.is_stored or (made.is_file() and made.read_text() == version):
        return variant.folder
    checkpoint = BUNDLED_CHECKPOINT if variant.geometry == BUNDLED else make_checkpoint(variant.geometry, report)
    options = PRECISIONS[variant.precision]
    calibration = (str(make_pictures()),) if options[-1] == "--calibration" else ()
    report(f"converting {variant.name}")
    run("convert", "--model", str(checkpoint), "--output", str(variant.folder), *options, *calibration)
    made.write_text(version)
    return variant.folder


def make_checkpoint(geometry: str, report: Callable[[str], None]) -> Path:
    """Return a checkpoint of a geometry with random weights, made unless it is there."""
    checkpoint = BUILD / "checkpoints" / f"{geometry}-{hash_of(sources('benchmarks/random_checkpoint.py'))[:8]}"
    if not (checkpoint / "preprocessor_config.json").is_file():  # which is written last
        report(f"making a checkpoint of {geometry} geometry with random weights")
        run("benchmarks.random_checkpoint", "--geometry", geometry, "--output", str(checkpoint))
    return checkpoint


def make_pictures() -> Path:
    """Return a folder of pictures to calibrate with, drawn unless it is there."""
    pictures = BUILD / "pictures"
    if not (pictures / "truth.json").is_file():  # which is written last
        run("training.scenes", "--output", str(pictures), *PICTURES)
    return pictures


def run(module: str, *arguments: str) -> None:
    """Run a command of the project; what it prints is shown if it fails."""
    process = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if process.returncode:
        sys.stderr.buffer.write(process.stdout)
        process.check_returncode()


def sources(*places: str) -> list[Path]:
    """Return the Python files at places of the repository, folders or files."""
    paths = [ROOT / place for place in places]
    return sorted(file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]))


def hash_of(paths: Iterable[Path]) -> str:
    """Return the hash of files' contents, hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
