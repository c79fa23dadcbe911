"""Model folders to compile: the bundled model, and Florence-2's real geometries with random weights.

The project's commands write them below `build/`, once for each version of the conversion code.
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
    "int8-calibrated": ("--precision", "int8", "--calibration"),  # followed by a folder of pictures
}
GEOMETRIES = (BUNDLED, "base", "large")
PICTURES = ("--count", "16", "--side", "768", "--most", "8", "--seed", "0")  # kernels do not depend on the pictures


@dataclass(frozen=True)
class Variant:
    """Model to compile: a geometry, and the precision of its weights."""

    geometry: str
    precision: str

    @property
    def name(self) -> str:
        """Name in tables and folders."""
        return f"{self.geometry} {self.precision}"

    @property
    def folder(self) -> Path:
        """Model folder."""
        return DEFAULT_MODEL if self.is_stored else BUILD / "models" / f"{self.geometry}-{self.precision}"

    @property
    def is_stored(self) -> bool:
        """True if the model folder is in the repository."""
        return (self.geometry, self.precision) == (BUNDLED, "fp16")


VARIANTS = tuple(Variant(geometry, precision) for geometry in GEOMETRIES for precision in PRECISIONS)


def make_folder(variant: Variant, report: Callable[[str], None]) -> Path:
    """Return the model folder of a variant; convert it unless this version of the code has done so.

    Args:
        variant: model to compile.
        report: callback for progress messages.

    Raises:
        CalledProcessError: a command failed; its output is on stderr.
    """
    record = variant.folder.with_suffix(".made")
    version = hash_of(sources("convert", "benchmarks/random_checkpoint.py"))
    if variant.is_stored or (record.is_file() and record.read_text() == version):
        return variant.folder
    checkpoint = BUNDLED_CHECKPOINT if variant.geometry == BUNDLED else make_checkpoint(variant.geometry, report)
    options = PRECISIONS[variant.precision]
    calibration = (str(make_pictures()),) if options[-1] == "--calibration" else ()
    report(f"converting {variant.name}")
    run("convert", "--model", str(checkpoint), "--output", str(variant.folder), *options, *calibration)
    record.write_text(version)
    return variant.folder


def make_checkpoint(geometry: str, report: Callable[[str], None]) -> Path:
    """Return a checkpoint of a geometry with random weights; write it unless it exists."""
    checkpoint = BUILD / "checkpoints" / f"{geometry}-{hash_of(sources('benchmarks/random_checkpoint.py'))[:8]}"
    if not (checkpoint / "preprocessor_config.json").is_file():  # the file that is written last
        report(f"making a checkpoint of {geometry} geometry with random weights")
        run("benchmarks.random_checkpoint", "--geometry", geometry, "--output", str(checkpoint))
    return checkpoint


def make_pictures() -> Path:
    """Return a folder of pictures for calibration; draw them unless it exists."""
    pictures = BUILD / "pictures"
    if not (pictures / "truth.json").is_file():  # the file that is written last
        run("training.scenes", "--output", str(pictures), *PICTURES)
    return pictures


def run(module: str, *arguments: str) -> None:
    """Run a module of the project, and write its output to stderr if it fails."""
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


def sources(*names: str) -> list[Path]:
    """Return the Python files of folders and files of the repository."""
    paths = [ROOT / name for name in names]
    return sorted(file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]))


def hash_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 hash of the files' contents, hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
