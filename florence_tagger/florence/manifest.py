"""An IR folder as `convert` writes it: graphs, tokenizer, settings, and the manifest that names them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.errors import ModelError
from florence_tagger.florence.decoding import GenerationSettings
from florence_tagger.wording import json_words, system_words

MANIFEST = "manifest.json"
GENERATION = "generation_config.json"
PREPROCESSING = "preprocessor_config.json"
FORMAT = 4
# Where the package is installed without its repository, which holds the bundled model.
NO_MODEL = (
    "There is no model: set FLORENCE_MODEL_DIR to the folder of one. The repository of florence_tagger has a small "
    "one, ov_models/florence-2-tiny, and makes others from checkpoints: "
    "`python -m convert --model florence-community/Florence-2-base --output ov_models/florence-2-base`."
)
GRAPHS = ("vision", "encoder", "decoder")
NEEDED_FILES = {f"{graph}.{suffix}" for graph in GRAPHS for suffix in ("xml", "bin")} | {
    "tokenizer.json",
    GENERATION,
    PREPROCESSING,
}
# What is read of a folder, for one that lacks something or has another type of it.
DESCRIPTION = (
    f"{MANIFEST} must have format, name, precision and geometry.max_positions, {PREPROCESSING} size.height and "
    f"size.width, and {GENERATION} the generation settings and nothing else"
)


@dataclass(frozen=True)
class ModelManifest:
    """What a model folder says of itself, as far as serving needs it.

    Attributes:
        name: the model's name.
        sha256: of the manifest, which holds those of all other files.
        precision: of the stored weights.
        image_size: (height, width) of the model's input, pixels.
        max_positions: most tokens the encoder or the decoder can take.
        generation: the checkpoint's own settings.
    """

    path: Path
    name: str
    sha256: str
    precision: str
    image_size: tuple[int, int]
    max_positions: int
    generation: GenerationSettings

    def read_text(self, name: str) -> str:
        """The text of one of the folder's files; ModelError where it can't be read."""
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except OSError as exc:
            raise ModelError(f"{self.path / name} can't be read: {system_words(exc)}.") from exc
        except UnicodeDecodeError as exc:
            raise ModelError(f"{self.path / name} can't be read: it is not UTF-8.") from exc


def load_manifest(path: Path) -> ModelManifest:
    """Reads and checks what an IR folder says of itself.

    Raises:
        ModelError: no such folder, no manifest, one of another format or without what serving needs, or a file that it
            names is missing.
    """
    if not path.is_dir():
        raise ModelError(NO_MODEL if path == DEFAULT_MODEL else f"There is no model folder {path}.")
    if not (path / MANIFEST).is_file():
        raise ModelError(
            f"{path} has no {MANIFEST}: it is not a converted model. Make one with "
            f"`python -m convert --model CHECKPOINT --output {path}`."
        )
    manifest = read_json(path / MANIFEST)
    try:
        if manifest["format"] != FORMAT:
            raise ModelError(f"{path / MANIFEST} has format {manifest['format']}; this version reads format {FORMAT}.")
        check_sizes(path, read_files(path))
        size = read_json(path / PREPROCESSING)["size"]
        return ModelManifest(
            path=path,
            name=str(manifest["name"]),
            sha256=hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest(),
            precision=str(manifest["precision"]),
            image_size=(int(size["height"]), int(size["width"])),
            max_positions=int(manifest["geometry"]["max_positions"]),
            generation=GenerationSettings(**read_json(path / GENERATION)),
        )
    except (KeyError, TypeError, ValueError) as exc:  # ModelError is none of them
        raise ModelError(f"{path} describes itself incompletely: {DESCRIPTION}.") from exc


def read_files(path: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of each file of a model folder, as its manifest tells; ModelError where it does not."""
    manifest = read_json(path / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
        raise ModelError(f"{path / MANIFEST} does not name the files of a model.")
    if missing := sorted(NEEDED_FILES - files.keys()):
        raise ModelError(f"{path / MANIFEST} does not name {', '.join(missing)}.")
    return files


def check_sizes(path: Path, files: dict[str, dict[str, Any]]) -> None:
    """ModelError where a file that the manifest names is missing or of another size."""
    for name, facts in files.items():
        if not (path / name).is_file():
            raise ModelError(f"{path} lacks {name}, which its {MANIFEST} names.")
        if (size := (path / name).stat().st_size) != facts.get("size"):
            raise ModelError(
                f"{path / name} has {size} bytes, not {facts.get('size')}: it was changed or not fully copied."
            )


def check_hashes(folder: ModelManifest) -> None:
    """Reads every file of a model folder; ModelError where one has another hash than its manifest says."""
    for name, facts in read_files(folder.path).items():
        with (folder.path / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts.get("sha256"):
                raise ModelError(f"{folder.path / name} is not the file that its {MANIFEST} names: it was changed.")


def read_json(path: Path) -> Any:
    """The value in a JSON file; ModelError where it can't be read as one."""
    try:
        return json.loads(path.read_bytes())
    except OSError as exc:
        raise ModelError(f"{path} can't be read: {system_words(exc)}.") from exc
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{path} can't be read as JSON: {json_words(exc)}.") from exc
