"""Checkpoints from the Hugging Face hub, downloaded to a local folder."""

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
# A checkpoint's Python files are never run, so they are not downloaded.
SAFETENSORS, PICKLES = "model*.safetensors", "pytorch_model*.bin"
NEEDED_FILES = ("*.json", SAFETENSORS, PICKLES, "*.txt", "LICEN[SC]E*", "NOTICE*", "COPYING*")
# Errors that huggingface_hub lets through; httpx raises RuntimeError if one of several downloads fails to connect.
DOWNLOAD_ERRORS = (HfHubHTTPError, LocalEntryNotFoundError, OSError, RuntimeError, ValueError, httpx.HTTPError)


@dataclass(frozen=True)
class Source:
    """A checkpoint folder and its origin; `revision` is a commit on the hub, or empty for a local folder."""

    path: Path
    name: str
    revision: str = ""


def find_source(model: str, revision: str | None) -> Source:
    """Return the folder `model`, or download the repository of that name from the hub unless it is cached.

    huggingface_hub downloads into its cache, with a progress bar, and resumes interrupted downloads; it reads HF_TOKEN,
    HF_HOME and HF_ENDPOINT.

    Raises:
        ConversionError: `model` is neither a folder nor a repository that can be downloaded; the text says what to do.
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
    except DOWNLOAD_ERRORS as exc:
        raise ConversionError(
            f"{model} can't be downloaded ({download_failure(exc)}). A download that broke off goes on where it "
            "stopped when the command is run again. Where the hub is out of reach, get the files elsewhere "
            f"(`hf download {model} --local-dir DIR`) and give their folder as --model."
        ) from exc
    return Source(path, model, path.name)


def download_failure(error: Exception) -> str:
    """Return the reason why a repository can't be downloaded, in words."""
    if isinstance(error, HFValidationError):
        return "the hub allows no such name"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"the hub answers {error.response.status_code}"
    if isinstance(error, OSError) and error.errno is not None:
        return system_words(error)
    return "the hub can't be reached, or the connection broke off"


def is_folder(model: str) -> bool:
    """Return whether `model` is a local folder."""
    try:
        return Path(model).is_dir()
    except OSError:  # the name is too long for a path
        return False


def has_safetensors(model: str, revision: str | None) -> bool:
    """Return whether a repository has its weights as safetensors: then pickles of them need not be downloaded."""
    try:
        files = HfApi().model_info(model, revision=revision or DEFAULT_REVISION).siblings or []
    except DOWNLOAD_ERRORS:  # the download reports the error, or works from the cache
        return False
    return any(fnmatch(file.rfilename, SAFETENSORS) for file in files)
