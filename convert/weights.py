"""The tensors of a checkpoint folder, by the names they are stored under. No code of a checkpoint is ever run."""

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

# In the order in which they are looked for; an index names the files of a checkpoint in shards.
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
# As `save_pretrained(variant="fp16")` names them.
VARIANT = re.compile(
    r"(?:model|pytorch_model)\.(?:safetensors\.index\.|bin\.index\.)?(?P<variant>\w+)\.(?:safetensors|bin|json)"
)
# What torch raises on files that are damaged or something else.
UNREADABLE = (AttributeError, EOFError, LookupError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def find_weights(folder: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint folder.

    Raises:
        ConversionError: there are none, only pointers to them, or several of which none goes before the others.
    """
    found = sources_of(folder)
    if not found:
        raise ConversionError(f"{folder} has no weights: {' or '.join(SINGLE_FILES)}, whole or in shards.")
    files = [shards_of(path) if path.suffix == ".json" else [path] for path in found]
    for one in files:
        if not any(map(is_pointer, one)):
            return one
    for path in files[0]:
        refuse_pointer(path)
    return files[0]


def sources_of(folder: Path) -> list[Path]:
    """The files that hold all weights or are an index of those that do, in the order in which they are looked for.

    Where there are none by the usual names it is those of a variant, as in `model.fp16.safetensors`, or the only file
    of safetensors that there is.
    """
    usual = [folder / f"{name}{ending}" for name in SINGLE_FILES for ending in ("", INDEX_SUFFIX)]
    if found := [path for path in usual if path.is_file()]:
        return found
    inside = sorted(folder.iterdir())
    variants: dict[str, list[Path]] = {}
    for path in inside:
        if match := VARIANT.fullmatch(path.name):
            variants.setdefault(match["variant"], []).append(path)
    if len(variants) > 1:
        names = ", ".join(path.name for paths in variants.values() for path in paths)
        raise ConversionError(f"{folder} has several variants, {names}: leave one of them there, or rename it.")
    others = [path for path in inside if path.suffix == ".safetensors"]
    return [path for paths in variants.values() for path in paths] or (others if len(others) == 1 else [])


def shards_of(index: Path) -> list[Path]:
    """The files that an index names."""
    names = sorted(set(weight_map(index).values()))
    if odd := [name for name in names if Path(name).name != name]:
        raise ConversionError(f"{index} names files outside the folder: {', '.join(odd)}.")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ConversionError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names.")
    return [index.parent / name for name in names]


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index tells it."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ConversionError(f"{index} is no index of shards: it has no weight_map of file names.")
    return files


def read_weights(files: Sequence[Path]) -> State:
    """All tensors of the files; ConversionError where one can't be read or a tensor is no finite float."""
    state: State = {}
    for path in files:
        tensors = read_file(path)
        if twice := state.keys() & tensors.keys():
            raise ConversionError(f"{path} has {min(twice)}, which another of the files has, too.")
        state |= tensors
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            raise ConversionError(f"{name} has type {tensor.dtype}: quantised checkpoints can't be converted.")
        if not torch.isfinite(tensor).all():
            raise ConversionError(f"{name} has values that are not finite: the checkpoint is damaged.")
    return state


def stored_types(state: State) -> list[str]:
    """The types of the tensors, as torch names them."""
    return sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})


def fingerprint(state: State) -> str:
    """A hash of names, types, shapes and values, the same for the same weights in whatever files they are stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_file(path: Path) -> State:
    """The tensors of one file."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_safetensors(path: Path) -> State:
    """The tensors of a safetensors file."""
    try:
        return load_file(path)
    except SafetensorError as exc:
        raise ConversionError(f"{path} can't be read: it is damaged, cut off, or no safetensors.") from exc
    except OSError as exc:
        raise ConversionError(f"{path} can't be read: {system_words(exc)}.") from exc


def read_pickle(path: Path) -> State:
    """The tensors of a PyTorch file, of which nothing but tensors is unpickled."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that are refused anyway
            # only the archives that PyTorch has written since 1.6 can be mapped into memory
            state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as exc:
        raise ConversionError(f"{path} holds something else than tensors, which is not loaded.") from exc
    except UNREADABLE as exc:
        raise ConversionError(f"{path} can't be read: it is damaged, cut off, or no file of PyTorch's.") from exc
    if not isinstance(state, dict) or not all(map(is_plain, state.values())):
        raise ConversionError(f"{path} is no dictionary of plain tensors.")
    return state


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor with all its values in memory."""
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
