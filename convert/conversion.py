"""Checkpoint folder to IR folder: export, settings beside the graphs, a manifest, all or nothing."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from convert.checkpoint import Checkpoint, load_model, read_checkpoint
from convert.errors import ConversionError
from convert.graphs import export_graphs
from florence_tagger import __version__
from florence_tagger.florence.folder import FORMAT, GENERATION, MANIFEST, PREPROCESSING

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
RECORDED_VERSIONS = ("openvino", "optimum", "optimum-intel", "torch", "transformers")


@dataclass(frozen=True)
class ConversionOptions:
    """What to convert.

    Attributes:
        model: the checkpoint folder.
        output: the IR folder to write; one that holds a converted model is replaced.
        precision: of the stored weights, a key of `DTYPES`.
    """

    model: Path
    output: Path
    precision: str = "fp16"


def convert(options: ConversionOptions, progress: Callable[[str], None] = lambda stage: None) -> None:
    """Converts a checkpoint; `progress` is told each stage when it begins.

    Raises:
        ConversionError: the checkpoint can't be converted or the output can't be written; nothing is left behind.
    """
    progress("reading the checkpoint")
    checkpoint = read_checkpoint(options.model)
    model = load_model(checkpoint, DTYPES[options.precision])
    with replaced_folder(options.output) as folder:
        preprocessing = checkpoint.preprocessing
        progress("exporting the graphs")
        try:
            for name in export_graphs(
                model, folder, preprocessing.image_size, preprocessing.image_mean, preprocessing.image_std
            ):
                progress(f"exported the {name}")
        except RuntimeError as exc:  # torch's word for shapes that do not fit
            raise ConversionError(f"The picture's size does not fit the model: {exc}") from exc
        for path in checkpoint.licences:
            shutil.copyfile(path, folder / path.name)
        (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
        write_json(folder / GENERATION, asdict(checkpoint.generation))
        write_json(folder / PREPROCESSING, preprocessing.as_published())
        write_json(folder / MANIFEST, describe(checkpoint, folder, options))


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


@contextmanager
def replaced_folder(output: Path) -> Iterator[Path]:
    """A new folder beside `output` that takes its place when the block ends well, and vanishes when it does not."""
    if output.exists() and not (output / MANIFEST).is_file() and not is_empty_folder(output):
        raise ConversionError(f"{output} exists and is not a converted model: remove it or choose another output.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as exc:
        raise ConversionError(f"{output} can't be written: {exc}") from exc
    try:
        yield folder
        folder.chmod(0o755)
        put_in_place(folder, output)
    except OSError as exc:
        raise ConversionError(f"{output} can't be written: {exc}") from exc
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


def is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def describe(checkpoint: Checkpoint, folder: Path, options: ConversionOptions) -> dict[str, Any]:
    """The manifest of a finished folder; nothing in it depends on where or when it was made."""
    text = checkpoint.config.text_config
    return {
        "format": FORMAT,
        "name": options.output.name,
        "source": {
            "name": checkpoint.path.resolve().name,
            "format": checkpoint.format,
            "files": {path.name: sha256_of(path) for path in (checkpoint.path / "config.json", *checkpoint.weights)},
        },
        "precision": options.precision,
        "geometry": {
            "image_size": list(checkpoint.preprocessing.image_size),
            "d_model": text.d_model,
            "encoder_layers": text.encoder_layers,
            "decoder_layers": text.decoder_layers,
            "vocab_size": text.vocab_size,
            "max_positions": checkpoint.max_positions,
        },
        "versions": {"florence_tagger": __version__} | {name: version(name) for name in RECORDED_VERSIONS},
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }


def sha256_of(path: Path) -> str:
    """The hash of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
