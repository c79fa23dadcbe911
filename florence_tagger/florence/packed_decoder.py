"""The decoder on a device with memory of its own: what is large stays there, and nothing of it is copied at each step.

The host sends token ids, positions, bans and, for each row, the slots of the cache that it attends to; it gets the
likeliest tokens. `packed_graph` is the graph, and says why the cache is packed.
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
from florence_tagger.florence.rows import ENCODER_MASK, Rows, ban_table, lay_out, row_starts, take_apart

# Lengths that grow from step to step grow by so many at a time, since kernels are chosen anew for every new shape.
SLOT_STEP = 32  # of the cache
ID_STEP = 16  # of ancestors and bans

OUTPUTS = ("log_probabilities", "token_ids")


@dataclass(frozen=True)
class DecoderGraphs:
    """The infer requests of a decoder on a device.

    Attributes:
        step: of `packed_graph.pack_cache`.
        repack: of `packed_graph.repack_graph`.
        pad: of `packed_graph.pad_graph`.
    """

    step: Any
    repack: Any
    pad: Any


class PackedDecoder:
    """The decoder graph and the pictures whose answers are decoded together; see `generation.Decoder`.

    Args:
        graphs: compiled for the device of `memory`.
        capacity: pictures at a time, at most.

    Attributes:
        cache: of self-attention.
        memory: of the device, in which the tensors of pictures must lie.
        candidates: how many next tokens of each row a step gives.
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
        self.candidates = int(model.output("log_probabilities").partial_shape[1].get_length())

    @property
    def input_bytes(self) -> int:
        """How many bytes the host wrote for the step before, which the device reads where they lie."""
        return sum(array.nbytes for name, (_, array) in self._arrays.items() if name not in OUTPUTS)

    def add(self, cross_attention: Mapping[str, Any]) -> None:
        """Add a picture behind the others."""
        if not self._first_rows:
            self.cache.reset()
        self._cross.put(cross_attention)
        self._first_rows.append(0)

    def remove(self, index: int) -> None:
        """Remove a picture; the last one takes its index."""
        self._cross.remove(index)
        last = self._first_rows.pop()
        if index < len(self._first_rows):
            self._first_rows[index] = last

    def step(self, queries: Sequence[StepInput]) -> list[TopK]:
        """Return the candidates for a query of each picture, in the order of their indices."""
        rows = lay_out(queries, self._first_rows)
        self._cross.bind()
        self._send("ancestors", self.cache.prepare(rows))
        self._send("input_ids", rows.token_ids)
        self._send("position_ids", rows.positions)
        self._send("banned_ids", ban_table(rows.banned, round_up(max(map(len, rows.banned)), ID_STEP)))
        log_probs, token_ids = (self._array(name, (len(rows), self.candidates)) for name in OUTPUTS)
        infer(self._request)
        self._cross.settle()
        self.cache.accept()
        self._first_rows = list(row_starts(queries, rows.width))
        return take_apart(queries, rows.width, log_probs, token_ids)

    def _send(self, name: str, values: IntArray) -> None:
        """Hand ids to the graph."""
        self._array(name, values.shape)[:] = values

    def _array(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return the array that the graph reads or writes as an input or output, a new one where its shape is."""
        _, array = self._arrays.get(name, (None, None))
        if array is None or array.shape != shape:
            share = self.memory.output_to_host if name in OUTPUTS else self.memory.input_from_host
            tensor, array = self._arrays[name] = share(self._types[name], shape)
            self._request.set_tensor(name, tensor)
        return array


class PackedCache:
    """The self-attention cache of all rows: slots in `main`, and behind them those of the last steps in `recent`.

    Each step writes `recent` anew with the slots of its own rows behind it, which costs what is in it. So it is kept
    short: now and then the slots that any row still attends to, of both, become the new `main`. Between these times a
    step copies no more than the last few steps added.

    Attributes:
        slot_bytes: of keys and values of all layers for a token.
        copied_slots: how many were written since the beginning, new ones among them.
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
    def slots(self) -> int:
        """How many slots there are, in use or not."""
        return self._main.count + self._recent.count

    def reset(self) -> None:
        """Forget all slots."""
        for slots in (self._main, self._recent):
            slots.clear()
            slots.bind(self._step)
        self._ancestry = Ancestry()

    def prepare(self, rows: Rows) -> IntArray:
        """Make room for a step's rows and return the slots that each attends to, (R, T)."""
        self._ancestry.select(rows.parents, rows.positions)
        if self._is_due(len(rows)):
            self._pack()
        grown = self._recent.written(self._recent.count + len(rows))
        self.copied_slots += length_of(grown[0])
        for index, tensor in enumerate(grown):
            self._step.set_tensor(f"grown.{index}", tensor)
        return self._ancestry.grow(self.slots)

    def accept(self) -> None:
        """Take what the step wrote for the cache."""
        self._recent.flip()
        self._recent.bind(self._step)

    def _is_due(self, rows: int) -> bool:
        """Return whether to pack: when copying `recent` has cost as much as packing will.

        After s steps that is rows·s² slots, read and written, against four times what is in `main`: with as many
        slots in `recent` as here, the sum of both is least for each step.
        """
        return self._recent.count >= 2 * sqrt(max(self._main.count, SLOT_STEP) * rows)

    def _pack(self) -> None:
        """Make `main` of the slots that are in use, and empty `recent`."""
        main, recent = self._ancestry.renumber(self._main.count)
        for name, kept in (("main", main), ("recent", recent)):
            self._repack.set_tensor(name, ov.Tensor(kept.astype(np.int32)))
        for slots in (self._main, self._recent):
            slots.bind(self._repack)
        self.copied_slots += len(main) + len(recent)
        for index, tensor in enumerate(self._main.written(len(main) + len(recent))):
            self._repack.set_tensor(f"packed.{index}", tensor)
        infer(self._repack)
        self._main.flip()
        self._recent.clear()
        for slots in (self._main, self._recent):
            slots.bind(self._step)


class Slots:
    """Keys and values of all layers for a number of slots, twice: one copy is read while the other is written.

    Args:
        name: of the graphs' inputs.
        blank: one slot of each, for where there is none.
    """

    def __init__(self, name: str, blank: Sequence[Any], memory: DeviceMemory) -> None:
        self._name, self._blank, self._memory = name, tuple(blank), memory
        self._buffers: list[tuple[Any, ...]] = [self._blank, self._blank]
        # Requests have views of them, of which the plugin reads once more when they are replaced. All together are no
        # larger than those that took their place, which are twice as large at least.
        self._outgrown: list[tuple[Any, ...]] = []
        self._read: tuple[Any, ...] = self._blank
        self._next: tuple[Any, ...] = self._blank

    @property
    def count(self) -> int:
        """How many slots are read."""
        return length_of(self._read[0])

    def clear(self) -> None:
        """Hold no slot but a blank one, which nothing attends to."""
        self._read = self._blank

    def written(self, count: int) -> tuple[Any, ...]:
        """Return tensors for so many slots, which are read once they are written and `flip` was called."""
        if length_of(self._buffers[1][0]) < count or self._buffers[1] is self._blank:
            self._outgrown.append(self._buffers[1])
            room = round_up(2 * count, SLOT_STEP)
            self._buffers[1] = tuple(self._memory.empty(with_length(one, room)) for one in self._blank)
        self._next = tuple(self._memory.view(one, with_length(one, count)) for one in self._buffers[1])
        return self._next

    def flip(self) -> None:
        """Read what was written."""
        self._read = self._next
        self._buffers.reverse()

    def bind(self, request: Any) -> None:
        """Give a graph what is read."""
        for index, tensor in enumerate(self._read):
            request.set_tensor(f"{self._name}.{index}", tensor)


class Ancestry:
    """Which slots of the cache each row attends to: those of the tokens before it, and its own."""

    def __init__(self) -> None:
        self._slots = np.zeros((1, 0), np.int64)
        self._lengths = np.zeros(1, np.int64)

    def select(self, parents: IntArray, lengths: IntArray) -> None:
        """Go on with rows that continue `parents` and have `lengths` tokens before their own, both (R)."""
        self._slots = self._slots[parents]
        self._lengths = lengths

    def renumber(self, border: int) -> tuple[IntArray, IntArray]:
        """Number the slots in use anew, and return which ones of `main` and `recent` they were.

        Both are of one slot at least, and together of a number that does not change often.
        They are filled up with slot 0, to which no row attends again.

        Args:
            border: the number of slots in `main`.
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
        """Give each row a slot of its own, counted from `first` on; return all its slots, (R, T).

        Rows that have fewer than others repeat their own slot.
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
    """Keys and values of the pictures for cross-attention, one picture behind the other.

    Pictures whose prompts are shorter than another's are filled up with copies of their first token, which a mask
    hides.
    """

    def __init__(self, graphs: DecoderGraphs, memory: DeviceMemory, capacity: int) -> None:
        self._request, self._pad, self._memory, self._capacity = graphs.step, graphs.pad, memory, capacity
        self._buffers: dict[str, Any] = {}
        self._outgrown: list[dict[str, Any]] = []  # to be kept until the graph has run without them
        self._lengths: list[int] = []  # of each picture, in tokens
        self._room = 0  # tokens that there is room for
        self._bound = 0  # pictures that the graph has

    def put(self, cross_attention: Mapping[str, Any]) -> None:
        """Put a picture behind the others."""
        length = length_of(next(iter(cross_attention.values())))
        if length > self._room or not self._lengths:
            self._make_room(length, cross_attention)
        for name, value in cross_attention.items():
            padded = self._padded(value, self._room)
            self._memory.copy_item(padded, 0, self._buffers[name], len(self._lengths))
        self._lengths.append(length)
        self._bound = 0

    def remove(self, index: int) -> None:
        """Remove a picture; the last one takes its index."""
        last = len(self._lengths) - 1
        if index < last:
            for buffer in self._buffers.values():
                self._memory.copy_item(buffer, last, buffer, index)
        self._lengths[index] = self._lengths[last]
        del self._lengths[last]
        self._bound = 0

    def bind(self) -> None:
        """Give the graph the pictures, where they are others than before."""
        pictures = len(self._lengths)
        if self._bound == pictures:
            return
        for name, buffer in self._buffers.items():
            self._request.set_tensor(name, self._memory.view(buffer, [pictures, *buffer.get_shape()[1:]]))
        hidden = np.arange(self._room) >= np.array(self._lengths)[:, np.newaxis]
        mask = np.where(hidden, np.float32(MASKED), np.float32(0))[:, np.newaxis, np.newaxis]
        self._request.set_tensor(ENCODER_MASK, self._memory.upload(mask))
        self._bound = pictures

    def settle(self) -> None:
        """Let go of what a step was the first to do without."""
        self._outgrown.clear()

    def _make_room(self, length: int, like: Mapping[str, Any]) -> None:
        """Have room for `length` tokens of each picture; the pictures that are there are kept."""
        if length == self._room:
            return
        shapes = {name: [self._capacity, *with_length(one, length)[1:]] for name, one in like.items()}
        buffers = {name: self._memory.empty(shape) for name, shape in shapes.items()}
        for name, buffer in self._buffers.items() if self._lengths else ():
            padded = self._padded(buffer, length)
            for index in range(len(self._lengths)):
                self._memory.copy_item(padded, index, buffers[name], index)
        self._outgrown.append(self._buffers)
        self._buffers, self._room = buffers, length

    def _padded(self, value: Any, room: int) -> Any:
        """Return keys or values with as many tokens as there shall be room for."""
        if (length := length_of(value)) == room:
            return value
        padded = self._memory.empty(with_length(value, room))
        self._pad.set_tensor("source", value)
        self._pad.set_tensor("repeated", ov.Tensor(np.zeros(room - length, np.int32)))
        self._pad.set_tensor("padded", padded)
        infer(self._pad)
        return padded


def picture_on_device(picture: Mapping[str, Any], memory: DeviceMemory) -> dict[str, Any]:
    """Return what a decoder attends to, arrays as the converted encoder gives them, as tensors of a device."""
    return {name: memory.upload(with_keys_swapped(name, value)) for name, value in picture.items()}


def picture_on_host(picture: Mapping[str, Any], memory: DeviceMemory) -> dict[str, Any]:
    """Return what a decoder on a device attends to as arrays, as the converted encoder gives them."""
    return {name: with_keys_swapped(name, memory.download(value)) for name, value in picture.items()}


def with_keys_swapped(name: str, value: Any) -> Any:
    """Return keys with their last two axes swapped, see `packed_graph.keys_by_token`, and values as they are."""
    return np.ascontiguousarray(value.swapaxes(2, 3)) if name.endswith("key") else value


def length_of(tensor: Any) -> int:
    """Return how many slots or tokens keys or values (…, heads, tokens, head_dim) are of."""
    return int(tensor.get_shape()[2])


def with_length(tensor: Any, length: int) -> list[int]:
    """Return the shape of keys or values with so many slots or tokens."""
    first, heads, _, width = tensor.get_shape()
    return [first, heads, length, width]


def round_up(value: int, step: int) -> int:
    """Return the first multiple of `step` that is not below `value`, one step at least."""
    return max(-(-value // step), 1) * step
