"""Decoder on a device with separate memory: large tensors stay on the device and are not copied between steps.

In each step the host sends token ids, positions, banned ids and the cache slots that each row attends to, and receives
the top-k tokens. `packed_graph` builds the graph and documents why the cache is packed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import openvino as ov

from florence_tagger.florence.decoding import IntArray, StepInput, TopK
from florence_tagger.florence.device_memory import DeviceMemory, infer
from florence_tagger.florence.packed_graph import MASKED
from florence_tagger.florence.rows import ENCODER_MASK, Rows, ban_table, build_rows, row_starts, split_top_k

# Growing lengths are rounded up to multiples of these, because the plugin selects kernels again for every new shape.
SLOT_STEP = 32  # cache slots
ID_STEP = 16  # ancestors and banned ids of a row

OUTPUTS = ("log_probabilities", "token_ids")


@dataclass(frozen=True)
class DecoderGraphs:
    """Infer requests of a decoder on a device.

    Attributes:
        step: infer request of the graph from `packed_graph.pack_cache`.
        repack: infer request of the graph from `packed_graph.repack_graph`.
        pad: infer request of the graph from `packed_graph.pad_graph`.
    """

    step: Any
    repack: Any
    pad: Any


class PackedDecoder:
    """Decoder graph and the batch of pictures that it decodes together; see `batch.Decoder`.

    Args:
        graphs: infer requests on the device of `memory`.
        memory: memory of the device.
        capacity: maximum number of pictures in the batch.

    Attributes:
        cache: self-attention cache.
        memory: memory of the device, which must hold the pictures' tensors.
        num_candidates: number of top-k tokens that a step returns for each row.
    """

    def __init__(self, graphs: DecoderGraphs, memory: DeviceMemory, capacity: int) -> None:
        self._request = graphs.step
        self.memory = memory
        self.cache = PackedCache(graphs, memory)
        self._cross = CrossAttentionCache(graphs, memory, capacity)
        self._first_rows: list[int] = []
        model = graphs.step.get_compiled_model()
        self._types = {port.get_any_name(): port.get_element_type() for port in (*model.inputs, *model.outputs)}
        self._arrays: dict[str, tuple[Any, Any]] = {}
        self.num_candidates = int(model.output("log_probabilities").partial_shape[1].get_length())

    @property
    def input_bytes(self) -> int:
        """Number of bytes that the host wrote for the previous step, which the device reads in place."""
        return sum(array.nbytes for name, (_, array) in self._arrays.items() if name not in OUTPUTS)

    def add(self, cross_attention: Mapping[str, Any]) -> None:
        """Append a picture to the batch."""
        if not self._first_rows:
            self.cache.reset()
        self._cross.add(cross_attention)
        self._first_rows.append(0)

    def remove(self, index: int) -> None:
        """Remove a picture; the last picture takes its index."""
        self._cross.remove(index)
        last = self._first_rows.pop()
        if index < len(self._first_rows):
            self._first_rows[index] = last

    def step(self, step_inputs: Sequence[StepInput]) -> list[TopK]:
        """Decode one token for every picture and return the top-k tokens, in the order of `step_inputs`.

        Args:
            step_inputs: one for each picture, in the order of their indices.
        """
        rows = build_rows(step_inputs, self._first_rows)
        self._cross.bind()
        self._set_input("ancestors", self.cache.prepare(rows))
        self._set_input("input_ids", rows.token_ids)
        self._set_input("position_ids", rows.positions)
        self._set_input("banned_ids", ban_table(rows.banned, round_up(max(map(len, rows.banned)), ID_STEP)))
        log_probs, token_ids = (self._array(name, (len(rows), self.num_candidates)) for name in OUTPUTS)
        infer(self._request)
        self._cross.release_retired()
        self.cache.commit()
        self._first_rows = list(row_starts(step_inputs, rows.width))
        return split_top_k(step_inputs, rows.width, log_probs, token_ids)

    def _set_input(self, name: str, values: IntArray) -> None:
        """Copy ids to an input of the graph."""
        self._array(name, values.shape)[:] = values

    def _array(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return the host array behind an input or output of the graph; allocate a new one if the shape changed."""
        _, array = self._arrays.get(name, (None, None))
        if array is None or array.shape != shape:
            allocate = self.memory.output_to_host if name in OUTPUTS else self.memory.input_from_host
            tensor, array = self._arrays[name] = allocate(self._types[name], shape)
            self._request.set_tensor(name, tensor)
        return array


class PackedCache:
    """Self-attention cache of all rows: slots in `main`, followed by the slots of the latest steps in `recent`.

    Each step writes a copy of `recent` with the slots of its own rows appended, so its cost grows with the length of
    `recent`. To keep `recent` short, the slots of both parts that any row still attends to are repacked into a new
    `main` from time to time. Between repacks, a step copies only the slots that the latest steps added.

    Attributes:
        slot_bytes: size of one token's keys and values of all layers, bytes.
        copied_slots: total number of slots written, new slots included.
    """

    def __init__(self, graphs: DecoderGraphs, memory: DeviceMemory) -> None:
        self._step, self._repack = graphs.step, graphs.repack
        count = len(graphs.repack.model_outputs)
        shape = self._step.get_compiled_model().input("main.0").get_partial_shape()
        heads, width = (shape[axis].get_length() for axis in (1, 3))
        blank = [memory.upload(np.zeros((1, heads, 1, width), np.float32)) for _ in range(count)]
        self.slot_bytes = sum(tensor.get_byte_size() for tensor in blank)
        self._main, self._recent = (Slots(name, blank, memory) for name in ("main", "recent"))
        self._ancestry = Ancestry()
        self.copied_slots = 0
        self.reset()

    @property
    def num_slots(self) -> int:
        """Number of slots, unused ones included."""
        return self._main.count + self._recent.count

    def reset(self) -> None:
        """Clear all slots."""
        for slots in (self._main, self._recent):
            slots.clear()
            slots.bind(self._step)
        self._ancestry = Ancestry()

    def prepare(self, rows: Rows) -> IntArray:
        """Allocate slots for a step's rows and return the slots that each row attends to, (R, T)."""
        self._ancestry.select(rows.parents, rows.positions)
        if self._should_repack(len(rows)):
            self._repack_slots()
        grown = self._recent.allocate(self._recent.count + len(rows))
        self.copied_slots += length_of(grown[0])
        for index, tensor in enumerate(grown):
            self._step.set_tensor(f"grown.{index}", tensor)
        return self._ancestry.grow(self.num_slots)

    def commit(self) -> None:
        """Make the slots that the step wrote part of the cache."""
        self._recent.swap()
        self._recent.bind(self._step)

    def _should_repack(self, num_rows: int) -> bool:
        """Return True once copying `recent` has cost as much as repacking costs.

        Copying costs num_rows·s² slots read and written in s steps; repacking costs four times the slots of `main`. The
        average cost of a step is minimal at this length of `recent`.
        """
        return self._recent.count >= 2 * sqrt(max(self._main.count, SLOT_STEP) * num_rows)

    def _repack_slots(self) -> None:
        """Gather the slots in use into a new `main`, and clear `recent`."""
        main, recent = self._ancestry.renumber(self._main.count)
        for name, slot_ids in (("main", main), ("recent", recent)):
            self._repack.set_tensor(name, ov.Tensor(slot_ids.astype(np.int32)))
        for slots in (self._main, self._recent):
            slots.bind(self._repack)
        self.copied_slots += len(main) + len(recent)
        for index, tensor in enumerate(self._main.allocate(len(main) + len(recent))):
            self._repack.set_tensor(f"packed.{index}", tensor)
        infer(self._repack)
        self._main.swap()
        self._recent.clear()
        for slots in (self._main, self._recent):
            slots.bind(self._step)


class Slots:
    """Double buffer for keys and values of all layers: one buffer is read while the other is written.

    Args:
        name: prefix of the graphs' inputs.
        blank: tensors of one slot, which are bound while there are no slots.
        memory: memory of the device.
    """

    def __init__(self, name: str, blank: Sequence[Any], memory: DeviceMemory) -> None:
        self._name, self._blank, self._memory = name, tuple(blank), memory
        self._buffers: list[tuple[Any, ...]] = [self._blank, self._blank]
        # Infer requests hold views of these buffers, and the plugin reads a view once more when it is replaced. A new
        # buffer is at least twice as large as the previous one, so all retired buffers are no larger than the current.
        self._retired: list[tuple[Any, ...]] = []
        self._read: tuple[Any, ...] = self._blank
        self._next: tuple[Any, ...] = self._blank

    @property
    def count(self) -> int:
        """Number of readable slots."""
        return length_of(self._read[0])

    def clear(self) -> None:
        """Remove all slots but a blank one, which no row attends to."""
        self._read = self._blank

    def allocate(self, count: int) -> tuple[Any, ...]:
        """Return tensors of `count` slots to be written; `swap` makes them the readable slots."""
        if length_of(self._buffers[1][0]) < count or self._buffers[1] is self._blank:
            self._retired.append(self._buffers[1])
            capacity = round_up(2 * count, SLOT_STEP)
            self._buffers[1] = tuple(self._memory.empty(with_length(tensor, capacity)) for tensor in self._blank)
        self._next = tuple(self._memory.view(tensor, with_length(tensor, count)) for tensor in self._buffers[1])
        return self._next

    def swap(self) -> None:
        """Make the written slots the readable ones."""
        self._read = self._next
        self._buffers.reverse()

    def bind(self, request: Any) -> None:
        """Set the readable slots as inputs of an infer request."""
        for index, tensor in enumerate(self._read):
            request.set_tensor(f"{self._name}.{index}", tensor)


class Ancestry:
    """Cache slots that each row attends to: the slots of its previous tokens, and its own slot."""

    def __init__(self) -> None:
        self._slots = np.zeros((1, 0), np.int64)
        self._lengths = np.zeros(1, np.int64)

    def select(self, parents: IntArray, lengths: IntArray) -> None:
        """Select rows that continue `parents` and have `lengths` previous tokens, both (R)."""
        self._slots = self._slots[parents]
        self._lengths = lengths

    def renumber(self, border: int) -> tuple[IntArray, IntArray]:
        """Renumber the slots in use consecutively, and return their old indices in `main` and in `recent`.

        Each result has at least one slot, and their total is a multiple of `SLOT_STEP`, so that shapes change rarely.
        Both are padded with slot 0; no row attends to the padding.

        Args:
            border: number of slots in `main`.
        """
        in_use = self._in_use()
        used = np.unique(self._slots[in_use])
        main, recent = used[used < border], used[used >= border] - border
        main = main if len(main) else np.zeros(1, np.int64)
        count = round_up(len(main) + max(len(recent), 1), SLOT_STEP)
        numbers = np.zeros(int(used.max(initial=0)) + 1, np.int64)
        numbers[used[used < border]] = np.arange(np.count_nonzero(used < border))
        numbers[recent + border] = np.arange(len(main), len(main) + len(recent))
        self._slots[in_use] = numbers[self._slots[in_use]]
        return main, np.pad(recent, (0, count - len(main) - len(recent)))

    def grow(self, first: int) -> IntArray:
        """Append a new slot to each row, numbered from `first`, and return the slots of all rows, (R, T).

        Rows with fewer slots than others repeat their own slot.
        """
        width = round_up(int(self._lengths.max()) + 1, ID_STEP)
        if (missing := width - self._slots.shape[1]) > 0:
            self._slots = np.pad(self._slots, ((0, 0), (0, missing)))
        own = np.arange(first, first + len(self._slots))
        self._slots = np.where(self._in_use(), self._slots, own[:, np.newaxis])[:, :width]
        return self._slots

    def _in_use(self) -> Any:
        return np.arange(self._slots.shape[1]) < self._lengths[:, np.newaxis]


class CrossAttentionCache:
    """Cross-attention keys and values of the batch, one picture after another.

    Pictures with shorter prompts are padded with copies of their first token, which a mask hides.

    Args:
        graphs: infer requests of the decoder.
        memory: memory of the device.
        capacity: maximum number of pictures.
    """

    def __init__(self, graphs: DecoderGraphs, memory: DeviceMemory, capacity: int) -> None:
        self._request, self._pad, self._memory, self._capacity = graphs.step, graphs.pad, memory, capacity
        self._buffers: dict[str, Any] = {}
        self._retired: list[dict[str, Any]] = []  # kept until the graph has run without them
        self._lengths: list[int] = []  # tokens of each picture
        self._max_length = 0  # tokens of the buffers
        self._num_bound = 0  # pictures set as inputs of the graph

    def add(self, cross_attention: Mapping[str, Any]) -> None:
        """Append a picture."""
        length = length_of(next(iter(cross_attention.values())))
        if length > self._max_length or not self._lengths:
            self._resize(length, cross_attention)
        for name, value in cross_attention.items():
            padded = self._pad_to(value, self._max_length)
            self._memory.copy_item(padded, 0, self._buffers[name], len(self._lengths))
        self._lengths.append(length)
        self._num_bound = 0

    def remove(self, index: int) -> None:
        """Remove a picture; the last picture takes its index."""
        last = len(self._lengths) - 1
        if index < last:
            for buffer in self._buffers.values():
                self._memory.copy_item(buffer, last, buffer, index)
        self._lengths[index] = self._lengths[last]
        del self._lengths[last]
        self._num_bound = 0

    def bind(self) -> None:
        """Set the pictures as inputs of the graph if they changed."""
        num_pictures = len(self._lengths)
        if self._num_bound == num_pictures:
            return
        for name, buffer in self._buffers.items():
            self._request.set_tensor(name, self._memory.view(buffer, [num_pictures, *buffer.get_shape()[1:]]))
        hidden = np.arange(self._max_length) >= np.array(self._lengths)[:, np.newaxis]
        mask = np.where(hidden, np.float32(MASKED), np.float32(0))[:, np.newaxis, np.newaxis]
        self._request.set_tensor(ENCODER_MASK, self._memory.upload(mask))
        self._num_bound = num_pictures

    def release_retired(self) -> None:
        """Free replaced buffers after a step that did not use them."""
        self._retired.clear()

    def _resize(self, length: int, like: Mapping[str, Any]) -> None:
        """Allocate buffers for `length` tokens of each picture, and copy the current pictures to them."""
        if length == self._max_length:
            return
        shapes = {name: [self._capacity, *with_length(tensor, length)[1:]] for name, tensor in like.items()}
        buffers = {name: self._memory.empty(shape) for name, shape in shapes.items()}
        for name, buffer in self._buffers.items() if self._lengths else ():
            padded = self._pad_to(buffer, length)
            for index in range(len(self._lengths)):
                self._memory.copy_item(padded, index, buffers[name], index)
        self._retired.append(self._buffers)
        self._buffers, self._max_length = buffers, length

    def _pad_to(self, value: Any, target_length: int) -> Any:
        """Return keys or values padded to `target_length` tokens."""
        if (length := length_of(value)) == target_length:
            return value
        padded = self._memory.empty(with_length(value, target_length))
        self._pad.set_tensor("source", value)
        self._pad.set_tensor("repeated", ov.Tensor(np.zeros(target_length - length, np.int32)))
        self._pad.set_tensor("padded", padded)
        infer(self._pad)
        return padded


def picture_on_device(picture: Mapping[str, Any], memory: DeviceMemory) -> dict[str, Any]:
    """Copy a picture's cross-attention arrays, in the converted encoder's layout, to tensors of a device."""
    return {name: memory.upload(transpose_keys(name, value)) for name, value in picture.items()}


def picture_on_host(picture: Mapping[str, Any], memory: DeviceMemory) -> dict[str, Any]:
    """Copy a picture's cross-attention tensors of a device to arrays in the converted encoder's layout."""
    return {name: transpose_keys(name, memory.download(value)) for name, value in picture.items()}


def transpose_keys(name: str, value: Any) -> Any:
    """Return keys with their last two axes swapped, see `packed_graph.keys_by_token`, and values unchanged."""
    return np.ascontiguousarray(value.swapaxes(2, 3)) if name.endswith("key") else value


def length_of(tensor: Any) -> int:
    """Return the number of slots or tokens of keys or values (…, heads, tokens, head_dim)."""
    return int(tensor.get_shape()[2])


def with_length(tensor: Any, length: int) -> list[int]:
    """Return the shape of keys or values with `length` slots or tokens."""
    first, heads, _, width = tensor.get_shape()
    return [first, heads, length, width]


def round_up(value: int, step: int) -> int:
    """Return `value` rounded up to a multiple of `step`, at least `step`."""
    return max(-(-value // step), 1) * step
