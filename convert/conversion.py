"""Checkpoint to model folder: export, quantize, write settings and manifest, compare; all or nothing."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from convert.agreement import summarize
from convert.calibration_pictures import find_pictures
from convert.checkpoint import Checkpoint, describe_weights, empty_model, load_model, read_checkpoint
from convert.comparison import Comparison, is_lossless
from convert.conversion_error import VERBOSE, ConversionError
from convert.export import export_graphs
from convert.hub import Source, find_source
from convert.precision import QUANTIZED, optimum_config, quantize, read_pictures
from florence_tagger import __version__
from florence_tagger.config import SAMPLES
from florence_tagger.errors import ModelError
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.manifest import FORMAT, GENERATION, MANIFEST, PREPROCESSING, read_files
from florence_tagger.schemas import UInt8Array
from florence_tagger.wording import system_words

logger = logging.getLogger(__name__)

# Weight types of the exported graphs; int8 and int4 are made from fp16 afterwards.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.float16, "int4": torch.float16}
BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "int8": 1.1, "int4": 0.9}
# Peak memory in bytes, fitted to measurements with base and large: per weight, per pixel for PyTorch's activations,
# and for the libraries.
MEMORY_PER_WEIGHT = 10
MEMORY_PER_PIXEL = 4400
MEMORY_OF_LIBRARIES = 1.2e9
VERIFICATION_TOKENS = 32
RECORDED_VERSIONS = ("nncf", "openvino", "optimum", "optimum-intel", "torch", "transformers")


@dataclass(frozen=True)
class ConversionOptions:
    """Options of a conversion.

    Attributes:
        model: a checkpoint folder, or the name of a repository on the hub.
        output: the model folder to write; a converted model in it is replaced.
        precision: precision of the stored weights, a key of `DTYPES`.
        calibration: a folder of pictures, with which the vision tower's activations are quantized to int8.
        revision: revision of the repository.
    """

    model: str
    output: Path
    precision: str = "fp16"
    calibration: Path | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Requirements:
    """The bytes that a conversion needs: on disk for the result, in memory at the peak."""

    disk: float
    memory: float


class Progress(Protocol):
    """Receiver of a conversion's stages and notes."""

    def stage(self, name: str) -> None:
        """Report that a stage begins; a conversion has `num_stages` of them."""

    def note(self, text: str) -> None:
        """Report a remark for the user."""


def num_stages(precision: str) -> int:
    """Return the number of stages of a conversion."""
    return 10 if precision in QUANTIZED else 7


def convert(options: ConversionOptions, progress: Progress) -> None:
    """Convert a checkpoint.

    Raises:
        ConversionError: the checkpoint can't be obtained or converted, or the output can't be written; nothing is left
            behind.
    """
    progress.stage(f"finding {options.model}")
    source = find_source(options.model, options.revision)
    progress.stage("reading the settings")
    checkpoint = read_checkpoint(source.path)
    for note in checkpoint.notes:
        progress.note(f"Note: {note}")
    pictures = read_pictures(options.calibration, checkpoint.preprocessing.image_size) if options.calibration else []
    with replaced_folder(options.output.resolve()) as folder:
        check_requirements(estimate_requirements(checkpoint, options.precision), folder, progress)
        progress.stage("loading the weights")
        export(checkpoint, folder, options.precision, progress)
        if options.precision in QUANTIZED:
            quantize_graphs(folder, options.precision, pictures, progress)
        write_settings(checkpoint, folder, options)
        manifest = build_manifest(checkpoint, source, folder, options)
        write_json(folder / MANIFEST, manifest)
        progress.stage("comparing with PyTorch")
        verification = verify(checkpoint, folder)
        write_json(folder / MANIFEST, manifest | {"verification": verification})
        if mismatch := describe_mismatch(verification, is_lossless(manifest)):
            progress.note(f"Warning: on the sample pictures the result and PyTorch differ: {mismatch}.")


def verify(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Compare a finished folder with its checkpoint on the bundled pictures, decoded with the checkpoint's settings.

    Returns:
        The part of the manifest about the comparison, without times, which differ from run to run.
    """
    pictures = find_pictures(SAMPLES, None)
    try:
        comparison = Comparison(checkpoint.path, folder, RuntimeOptions("CPU", "f32"))
        mode, settings = list(comparison.modes(VERIFICATION_TOKENS).items())[-1]
        agreement = summarize(mode, [comparison.pair(picture, settings) for picture in pictures])
    except Exception as exc:
        logger.debug("The comparison failed", exc_info=exc)
        return {"pictures": len(pictures), "error": f"the comparison failed; {VERBOSE}"}
    return {name: getattr(agreement, name) for name in ("mode", "pictures", "ids_equal", "counts_equal")}


def describe_mismatch(verification: dict[str, Any], lossless: bool) -> str:
    """Return the problem that a comparison revealed, in words; empty if there is none."""
    if "error" in verification:
        return str(verification["error"])
    key, compared = ("ids_equal", "token ids") if lossless else ("counts_equal", "counts")
    num_equal, num_pictures = verification[key], verification["pictures"]
    return "" if num_equal == num_pictures else f"{compared} are equal on {num_equal} of {num_pictures}"


def check_requirements(requirements: Requirements, folder: Path, progress: Progress) -> None:
    """Report the requirements of a conversion; ConversionError if the disk of `folder` lacks space."""
    disk, memory = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    progress.note(
        f"Needs about {requirements.disk / 1e6:.0f} MB of disk ({disk / 1e6:.0f} MB free) and "
        f"{requirements.memory / 1e9:.1f} GB of memory ({memory / 1e9:.1f} GB free)."
    )
    if disk < requirements.disk:
        raise ConversionError(
            f"The result needs {requirements.disk / 1e6:.0f} MB of disk; {disk / 1e6:.0f} MB are free."
        )
    if memory < requirements.memory:
        progress.note("Warning: that may be more memory than there is.")


def estimate_requirements(checkpoint: Checkpoint, precision: str) -> Requirements:
    """Estimate the requirements of a conversion from the numbers of weights and pixels."""
    num_weights = sum(parameter.numel() for parameter in empty_model(checkpoint).parameters())
    height, width = checkpoint.preprocessing.image_size
    memory = num_weights * MEMORY_PER_WEIGHT + height * width * MEMORY_PER_PIXEL + MEMORY_OF_LIBRARIES
    return Requirements(num_weights * BYTES_PER_WEIGHT[precision], memory)


def export(checkpoint: Checkpoint, folder: Path, precision: str, progress: Progress) -> None:
    """Write the graphs with float weights."""
    model = load_model(checkpoint, DTYPES[precision])
    try:
        for name in export_graphs(model, folder, checkpoint.preprocessing):
            progress.stage(f"exporting the {name}")
    except RuntimeError as exc:  # torch and OpenVINO raise it for everything: a full disk, lack of memory, shapes
        raise ConversionError(f"The graphs can't be exported, for want of memory, disk or else; {VERBOSE}.") from exc


def quantize_graphs(folder: Path, precision: str, pictures: Sequence[UInt8Array], progress: Progress) -> None:
    """Rewrite the graphs with quantized weights."""
    try:
        for name in quantize(folder, precision, pictures):
            progress.stage(f"quantising the {name}")
    except RuntimeError as exc:
        raise ConversionError(f"The graphs can't be quantised, for want of memory, disk or else; {VERBOSE}.") from exc


def write_settings(checkpoint: Checkpoint, folder: Path, options: ConversionOptions) -> None:
    """Write the files beside the graphs: licenses, tokenizer, generation and preprocessing settings."""
    for path in checkpoint.license_files:
        shutil.copyfile(path, folder / path.name)
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
    write_json(folder / GENERATION, asdict(checkpoint.generation))
    write_json(folder / PREPROCESSING, checkpoint.preprocessing.as_published())
    optimum_config(options.precision, options.calibration is not None).save_pretrained(folder)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object to a JSON file."""
    path.write_text(json.dumps(value, indent=2) + "\n")


@contextmanager
def replaced_folder(output: Path) -> Iterator[Path]:
    """Yield a new folder beside `output` that replaces it when the block succeeds and is removed when it fails."""
    try:
        if output.exists() and not is_replaceable(output):
            raise ConversionError(f"{output} exists and is not a converted model: remove it or choose another output.")
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as exc:
        raise ConversionError(f"{output} can't be written: {system_words(exc)}.") from exc
    try:
        yield folder
        folder.chmod(0o755)
        move_folder(folder, output)
    except OSError as exc:
        raise ConversionError(f"{output} can't be written: {system_words(exc)}.") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_folder(folder: Path, output: Path) -> None:
    """Rename a finished folder to `output`; an existing `output` is removed, but restored if renaming fails."""
    if not output.exists():
        folder.rename(output)
        return
    replaced = folder.with_name(f"{folder.name}-replaced")
    output.rename(replaced)
    try:
        folder.rename(output)
    except OSError:
        replaced.rename(output)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def is_replaceable(path: Path) -> bool:
    """Return whether a folder is empty, or holds a converted model and nothing else."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    try:
        return not names or names <= {MANIFEST, *read_files(path)}
    except ModelError:
        return False


def build_manifest(checkpoint: Checkpoint, source: Source, folder: Path, options: ConversionOptions) -> dict[str, Any]:
    """Return the manifest of a finished folder; it does not depend on the place and time of the conversion."""
    text_config = checkpoint.config.text_config
    return {
        "format": FORMAT,
        "name": options.output.name,
        "source": {
            "name": source.name,
            "revision": source.revision,
            "format": checkpoint.format,
            **describe_weights(checkpoint),
            "files": file_entries([checkpoint.path / "config.json", *checkpoint.weights]),
        },
        "precision": options.precision,
        "calibrated": options.calibration is not None,
        "geometry": {
            "image_size": list(checkpoint.preprocessing.image_size),
            "d_model": text_config.d_model,
            "encoder_layers": text_config.encoder_layers,
            "decoder_layers": text_config.decoder_layers,
            "vocab_size": text_config.vocab_size,
            "max_positions": checkpoint.max_positions,
        },
        "versions": {"florence_tagger": __version__} | {name: version(name) for name in RECORDED_VERSIONS},
        "files": file_entries(sorted(folder.iterdir())),
    }


def file_entries(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return the size in bytes and the hash of each file, by its name."""
    return {path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in paths}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
