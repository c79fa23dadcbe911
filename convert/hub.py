"""Checkpoints from the Hugging Face hub: what `--model` names, as a folder on this machine."""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import DEFAULT_REVISION
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from convert.conversion_error import ConversionError
from florence_tagger.wording import system_words

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# No code: what a checkpoint's own Python files say is never run, so they need not be here.
SAFETENSORS, PICKLES = "model*.safetensors", "pytorch_model*.bin"
NEEDED_FILES = ("*.json", SAFETENSORS, PICKLES, "*.txt", "LICEN[SC]E*", "NOTICE*", "COPYING*")
# What huggingface_hub lets through; RuntimeError is httpx's, where one of several downloads fails to connect.
UNREACHABLE = (HfHubHTTPError, LocalEntryNotFoundError, OSError, RuntimeError, ValueError, httpx.HTTPError)


@dataclass(frozen=True)
class Source:
    """A checkpoint folder and where it came from; `revision` is a commit of the hub, or empty for a folder."""

    path: Path
    name: str
    revision: str = ""


def find_source(model: str, revision: str | None) -> Source:
    """The folder `model`, or the repository of that name on the hub, downloaded unless it is cached.

    huggingface_hub does the download: resumable, with a progress bar, into its cache; it reads HF_TOKEN, HF_HOME and
    HF_ENDPOINT.

    Raises:
        ConversionError: neither a folder nor a repository that can be had; says what to do.
    """
    if is_folder(model):
        if revision:
            raise ConversionError(f"{model} is a folder: a revision only goes with a repository on the hub.")
        return Source(Path(model), Path(model).resolve().name)
    if not REPOSITORY.fullmatch(model):
        raise ConversionError(f"There is no folder {model}, and it is no name of a repository (owner/name) on the hub.")
    try:
        path = Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(NEEDED_FILES),
                ignore_patterns=[PICKLES] if has_safetensors(model, revision) else None,
            )
        )
    except GatedRepoError as exc:
        raise ConversionError(f"{model} is only for accepted users: accept its terms and set HF_TOKEN.") from exc
    except RepositoryNotFoundError as exc:
        raise ConversionError(f"The hub has no repository {model}, or HF_TOKEN must be set to see it.") from exc
    except RevisionNotFoundError as exc:
        raise ConversionError(f"{model} has no revision {revision}.") from exc
    except UNREACHABLE as exc:
        raise ConversionError(
            f"{model} can't be downloaded ({why_not(exc)}). A download that broke off goes on where it stopped when "
            "the command is run again. Where the hub is out of reach, get the files elsewhere "
            f"(`hf download {model} --local-dir DIR`) and give their folder as --model."
        ) from exc
    return Source(path, model, path.name)


def why_not(error: Exception) -> str:
    """What keeps a repository from being downloaded, in words."""
    if isinstance(error, HFValidationError):
        return "the hub allows no such name"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"the hub answers {error.response.status_code}"
    if isinstance(error, OSError) and error.errno is not None:
        return system_words(error)
    return "the hub can't be reached, or the connection broke off"


def is_folder(model: str) -> bool:
    try:
        return Path(model).is_dir()
    except OSError:  # a name too long for one
        return False


def has_safetensors(model: str, revision: str | None) -> bool:
    """Whether a repository has its weights as safetensors, so that a second copy of them need not be fetched."""
    try:
        files = HfApi().model_info(model, revision=revision or DEFAULT_REVISION).siblings or []
    except UNREACHABLE:  # the download says what is wrong, or does without the hub
        return False
    return any(fnmatch(file.rfilename, SAFETENSORS) for file in files)
