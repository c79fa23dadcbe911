"""Checkpoint to model folder: export, quantise, settings beside the graphs, compare, a manifest; all or nothing."""

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

from convert.agreement import sum_up
from convert.calibration_pictures import find_pictures
from convert.checkpoint import Checkpoint, describe_weights, empty_model, load_model, read_checkpoint
from convert.comparison import Comparison, is_lossless
from convert.conversion_error import VERBOSE, ConversionError
from convert.export import export_graphs
from convert.hub import Source, find_source
from convert.precision import QUANTIZED, quantize, read_pictures, record
from florence_tagger import __version__
from florence_tagger.config import SAMPLES
from florence_tagger.errors import ModelError
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.manifest import FORMAT, GENERATION, MANIFEST, PREPROCESSING, read_files
from florence_tagger.schemas import UInt8Array
from florence_tagger.wording import system_words

logger = logging.getLogger(__name__)

# What the graphs are exported at; int8 and int4 are made from fp16 afterwards.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.float16, "int4": torch.float16}
BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "int8": 1.1, "int4": 0.9}
# Bytes at the peak, a fit to what was measured with base and large: for each weight, for what PyTorch computes of each
# pixel, and for the libraries.
MEMORY_PER_WEIGHT = 10
MEMORY_PER_PIXEL = 4400
MEMORY_OF_LIBRARIES = 1.2e9
VERIFIED_TOKENS = 32
RECORDED_VERSIONS = ("nncf", "openvino", "optimum", "optimum-intel", "torch", "transformers")


@dataclass(frozen=True)
class ConversionOptions:
    """What to convert.

    Attributes:
        model: a checkpoint folder, or the name of a repository on the hub.
        output: the model folder to write; one that holds a converted model is replaced.
        precision: of the stored weights, a key of `DTYPES`.
        calibration: a folder of pictures, from which int8 activations of the vision tower are made.
        revision: of the repository.
    """

    model: str
    output: Path
    precision: str = "fp16"
    calibration: Path | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Needs:
    """What a conversion takes, bytes: on disk for the result, in memory at the peak."""

    disk: float
    memory: float


class Progress(Protocol):
    """Who is told how a conversion goes."""

    def stage(self, name: str) -> None:
        """A stage begins; there are `stages_of` a conversion."""

    def note(self, text: str) -> None:
        """Something that the person who converts should know."""


def stages_of(precision: str) -> int:
    """How many stages a conversion has."""
    return 10 if precision in QUANTIZED else 7


def convert(options: ConversionOptions, progress: Progress) -> None:
    """Converts a checkpoint.

    Raises:
        ConversionError: the checkpoint can't be had or converted, or the output written; nothing is left behind.
    """
    progress.stage(f"finding {options.model}")
    source = find_source(options.model, options.revision)
    progress.stage("reading the settings")
    checkpoint = read_checkpoint(source.path)
    for note in checkpoint.notes:
        progress.note(f"Note: {note}")
    pictures = read_pictures(options.calibration, checkpoint.preprocessing.image_size) if options.calibration else []
    with replaced_folder(options.output.resolve()) as folder:
        check_needs(estimate(checkpoint, options.precision), folder, progress)
        progress.stage("loading the weights")
        export(checkpoint, folder, options.precision, progress)
        if options.precision in QUANTIZED:
            quantize_graphs(folder, options.precision, pictures, progress)
        write_settings(checkpoint, folder, options)
        manifest = describe(checkpoint, source, folder, options)
        write_json(folder / MANIFEST, manifest)
        progress.stage("comparing with PyTorch")
        agreement = verification(checkpoint, folder)
        write_json(folder / MANIFEST, manifest | {"verification": agreement})
        if doubt := doubt_of(agreement, is_lossless(manifest)):
            progress.note(f"Warning: on the sample pictures the result and PyTorch differ: {doubt}.")


def verification(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """How a finished folder compares with its checkpoint on the bundled pictures, decoded with its own settings.

    What depends on the time it takes is left out.
    """
    pictures = find_pictures(SAMPLES, None)
    try:
        comparison = Comparison(checkpoint.path, folder, RuntimeOptions("CPU", "f32"))
        mode, settings = list(comparison.modes(VERIFIED_TOKENS).items())[-1]
        agreement = sum_up(mode, [comparison.pair(picture, settings) for picture in pictures])
    except Exception as exc:
        logger.debug("The comparison failed", exc_info=exc)
        return {"pictures": len(pictures), "error": f"the comparison failed; {VERBOSE}"}
    return {name: getattr(agreement, name) for name in ("mode", "pictures", "ids_equal", "counts_equal")}


def doubt_of(agreement: dict[str, Any], lossless: bool) -> str:
    """What is wrong with a comparison, in words; empty where all is as it should be."""
    if "error" in agreement:
        return str(agreement["error"])
    equal, what = ("ids_equal", "token ids") if lossless else ("counts_equal", "counts")
    right, pictures = agreement[equal], agreement["pictures"]
    return "" if right == pictures else f"{what} are equal on {right} of {pictures}"


def check_needs(needs: Needs, folder: Path, progress: Progress) -> None:
    """Tells what the conversion will take; ConversionError where the disk of `folder` has no room for it."""
    disk, memory = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    progress.note(
        f"Needs about {needs.disk / 1e6:.0f} MB of disk ({disk / 1e6:.0f} MB free) and {needs.memory / 1e9:.1f} GB of "
        f"memory ({memory / 1e9:.1f} GB free)."
    )
    if disk < needs.disk:
        raise ConversionError(f"The result needs {needs.disk / 1e6:.0f} MB of disk; {disk / 1e6:.0f} MB are free.")
    if memory < needs.memory:
        progress.note("Warning: that may be more memory than there is.")


def estimate(checkpoint: Checkpoint, precision: str) -> Needs:
    """What a conversion will take, from the number of weights."""
    weights = sum(parameter.numel() for parameter in empty_model(checkpoint).parameters())
    height, width = checkpoint.preprocessing.image_size
    memory = weights * MEMORY_PER_WEIGHT + height * width * MEMORY_PER_PIXEL + MEMORY_OF_LIBRARIES
    return Needs(weights * BYTES_PER_WEIGHT[precision], memory)


def export(checkpoint: Checkpoint, folder: Path, precision: str, progress: Progress) -> None:
    """Writes the graphs with float weights."""
    model = load_model(checkpoint, DTYPES[precision])
    try:
        for name in export_graphs(model, folder, checkpoint.preprocessing):
            progress.stage(f"exporting the {name}")
    except RuntimeError as exc:  # torch's and OpenVINO's word for everything: a full disk, memory, shapes
        raise ConversionError(f"The graphs can't be exported, for want of memory, disk or else; {VERBOSE}.") from exc


def quantize_graphs(folder: Path, precision: str, pictures: Sequence[UInt8Array], progress: Progress) -> None:
    """Rewrites the graphs with smaller weights."""
    try:
        for name in quantize(folder, precision, pictures):
            progress.stage(f"quantising the {name}")
    except RuntimeError as exc:
        raise ConversionError(f"The graphs can't be quantised, for want of memory, disk or else; {VERBOSE}.") from exc


def write_settings(checkpoint: Checkpoint, folder: Path, options: ConversionOptions) -> None:
    """Writes what belongs beside the graphs."""
    for path in checkpoint.licences:
        shutil.copyfile(path, folder / path.name)
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
    write_json(folder / GENERATION, asdict(checkpoint.generation))
    write_json(folder / PREPROCESSING, checkpoint.preprocessing.as_published())
    record(options.precision, options.calibration is not None).save_pretrained(folder)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


@contextmanager
def replaced_folder(output: Path) -> Iterator[Path]:
    """A new folder beside `output` that takes its place when the block ends well, and vanishes when it does not."""
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
        put_in_place(folder, output)
    except OSError as exc:
        raise ConversionError(f"{output} can't be written: {system_words(exc)}.") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, output: Path) -> None:
    """Renames a finished folder to `output`; one that is there already goes, but comes back if that fails."""
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
    """Whether a folder is empty, or a converted model and nothing else."""
    if not path.is_dir():
        return False
    names = {inside.name for inside in path.iterdir()}
    try:
        return not names or names <= {MANIFEST, *read_files(path)}
    except ModelError:
        return False


def describe(checkpoint: Checkpoint, source: Source, folder: Path, options: ConversionOptions) -> dict[str, Any]:
    """The manifest of a finished folder; nothing in it depends on where or when it was made."""
    text = checkpoint.config.text_config
    return {
        "format": FORMAT,
        "name": options.output.name,
        "source": {
            "name": source.name,
            "revision": source.revision,
            "format": checkpoint.format,
            **describe_weights(checkpoint),
            "files": facts_of([checkpoint.path / "config.json", *checkpoint.weights]),
        },
        "precision": options.precision,
        "calibrated": options.calibration is not None,
        "geometry": {
            "image_size": list(checkpoint.preprocessing.image_size),
            "d_model": text.d_model,
            "encoder_layers": text.encoder_layers,
            "decoder_layers": text.decoder_layers,
            "vocab_size": text.vocab_size,
            "max_positions": checkpoint.max_positions,
        },
        "versions": {"florence_tagger": __version__} | {name: version(name) for name in RECORDED_VERSIONS},
        "files": facts_of(sorted(folder.iterdir())),
    }


def facts_of(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Size in bytes and hash of each file, by its name."""
    return {path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in paths}


def sha256_of(path: Path) -> str:
    """The hash of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
