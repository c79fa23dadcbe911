"""The tensors of a checkpoint folder, by their stored names; no code of a checkpoint is ever run."""

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from convert.conversion_error import ConversionError
from convert.settings import is_pointer, read_json, refuse_pointer
from florence_tagger.wording import system_words

State = dict[str, torch.Tensor]

# In order of precedence; an index lists the files of a checkpoint in shards.
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
# Names that `save_pretrained(variant="fp16")` gives.
VARIANT = re.compile(
    r"(?:model|pytorch_model)\.(?:safetensors\.index\.|bin\.index\.)?(?P<variant>\w+)\.(?:safetensors|bin|json)"
)
# Errors that torch raises on files that are damaged or of another kind.
LOAD_ERRORS = (AttributeError, EOFError, LookupError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def find_weights(folder: Path) -> list[Path]:
    """Return the files of the weights in a checkpoint folder.

    Raises:
        ConversionError: there are none, only pointers to them, or several without precedence.
    """
    sources = weight_sources(folder)
    if not sources:
        raise ConversionError(f"{folder} has no weights: {' or '.join(SINGLE_FILES)}, whole or in shards.")
    files_by_source = [shard_files(path) if path.suffix == ".json" else [path] for path in sources]
    for files in files_by_source:
        if not any(map(is_pointer, files)):
            return files
    for path in files_by_source[0]:
        refuse_pointer(path)
    return files_by_source[0]


def weight_sources(folder: Path) -> list[Path]:
    """Return the files that hold all weights or are an index of such files, in order of precedence.

    If there are none with the usual names, these are the files of a variant, as in `model.fp16.safetensors`, or the
    only safetensors file.
    """
    usual = [folder / f"{name}{suffix}" for name in SINGLE_FILES for suffix in ("", INDEX_SUFFIX)]
    if existing := [path for path in usual if path.is_file()]:
        return existing
    entries = sorted(folder.iterdir())
    variants: dict[str, list[Path]] = {}
    for path in entries:
        if match := VARIANT.fullmatch(path.name):
            variants.setdefault(match["variant"], []).append(path)
    if len(variants) > 1:
        names = ", ".join(path.name for paths in variants.values() for path in paths)
        raise ConversionError(f"{folder} has several variants, {names}: leave one of them there, or rename it.")
    others = [path for path in entries if path.suffix == ".safetensors"]
    return [path for paths in variants.values() for path in paths] or (others if len(others) == 1 else [])


def shard_files(index: Path) -> list[Path]:
    """Return the files in an index; ConversionError if one is missing or outside the folder."""
    names = sorted(set(weight_map(index).values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise ConversionError(f"{index} names files outside the folder: {', '.join(outside)}.")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ConversionError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names.")
    return [index.parent / name for name in names]


def weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor in an index."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ConversionError(f"{index} is no index of shards: it has no weight_map of file names.")
    return files


def read_weights(files: Sequence[Path]) -> State:
    """Return all tensors of the files; ConversionError if a file can't be read or a tensor is not of finite floats."""
    state: State = {}
    for path in files:
        tensors = read_file(path)
        if duplicates := state.keys() & tensors.keys():
            raise ConversionError(f"{path} has {min(duplicates)}, which another of the files has, too.")
        state |= tensors
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            raise ConversionError(f"{name} has type {tensor.dtype}: quantised checkpoints can't be converted.")
        if not torch.isfinite(tensor).all():
            raise ConversionError(f"{name} has values that are not finite: the checkpoint is damaged.")
    return state


def stored_types(state: State) -> list[str]:
    """Return torch's names of the tensors' types."""
    return sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})


def fingerprint(state: State) -> str:
    """Return a hash of names, types, shapes and values, which does not depend on the files of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_file(path: Path) -> State:
    """Return the tensors of a file."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_safetensors(path: Path) -> State:
    """Return the tensors of a safetensors file."""
    try:
        return load_file(path)
    except SafetensorError as exc:
        raise ConversionError(f"{path} can't be read: it is damaged, cut off, or no safetensors.") from exc
    except OSError as exc:
        raise ConversionError(f"{path} can't be read: {system_words(exc)}.") from exc


def read_pickle(path: Path) -> State:
    """Return the tensors of a PyTorch file; nothing but tensors is unpickled."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles that are refused anyway
            # Only the archives that PyTorch has written since 1.6 can be mapped into memory.
            state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as exc:
        raise ConversionError(f"{path} holds something else than tensors, which is not loaded.") from exc
    except LOAD_ERRORS as exc:
        raise ConversionError(f"{path} can't be read: it is damaged, cut off, or no file of PyTorch's.") from exc
    if not isinstance(state, dict) or not all(map(is_plain, state.values())):
        raise ConversionError(f"{path} is no dictionary of plain tensors.")
    return state


def is_plain(value: Any) -> bool:
    """Return whether a value is a dense tensor in memory."""
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
