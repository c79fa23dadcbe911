"""The tensors of a checkpoint folder, by the names they are stored under. No code of a checkpoint is ever run."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from convert.errors import ConversionError

State = dict[str, torch.Tensor]

# In the order in which they are looked for; an index names the files of a checkpoint in shards.
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def find_weights(folder: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint folder; ConversionError where there are none."""
    for name in SINGLE_FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}{INDEX_SUFFIX}").is_file():
            return shards_of(folder / f"{name}{INDEX_SUFFIX}")
    if (folder / "adapter_config.json").is_file():
        raise ConversionError(
            f"{folder} holds an adapter (LoRA), not a model. Merge it first, with peft: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)."
        )
    raise ConversionError(f"{folder} has no weights: {' or '.join(SINGLE_FILES)}, whole or in shards.")


def shards_of(index: Path) -> list[Path]:
    """The files that an index names."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise ConversionError(f"{index} is no index of shards: {exc}") from exc
    if odd := [name for name in names if Path(name).name != name]:
        raise ConversionError(f"{index} names files outside the folder: {', '.join(odd)}.")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ConversionError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names.")
    return [index.parent / name for name in names]


def read_weights(files: list[Path]) -> State:
    """All tensors of the files; ConversionError where one can't be read or a tensor is no finite float."""
    state: State = {}
    for path in files:
        state |= read_file(path)
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            raise ConversionError(f"{name} has type {tensor.dtype}: quantised checkpoints can't be converted.")
        if not torch.isfinite(tensor).all():
            raise ConversionError(f"{name} has values that are not finite: the checkpoint is damaged.")
    return state


def stored_types(files: Sequence[Path]) -> list[str]:
    """The types of the tensors in the files, as torch names them."""
    return sorted({str(tensor.dtype).removeprefix("torch.") for path in files for tensor in read_file(path).values()})


def read_file(path: Path) -> State:
    """The tensors of one file."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_safetensors(path: Path) -> State:
    """The tensors of a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as exc:
        raise ConversionError(f"{path} can't be read: {exc}") from exc


def read_pickle(path: Path) -> State:
    """The tensors of a PyTorch file, of which nothing but tensors is unpickled."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as exc:
        raise ConversionError(f"{path} holds something else than tensors, which is not loaded.") from exc
    except (EOFError, OSError, RuntimeError, ValueError) as exc:
        raise ConversionError(f"{path} can't be read: {exc}") from exc
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ConversionError(f"{path} is no dictionary of tensors.")
    return state
