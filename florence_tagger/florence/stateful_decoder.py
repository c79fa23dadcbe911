"""The decoder on OpenVINO's CPU plugin: the cache is the graph's state, reordered by index and never copied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov

from florence_tagger.florence.decoding import FloatArray, StepInput, TopK
from florence_tagger.florence.rows import ENCODER_MASK, ban_table, lay_out, row_starts, take_apart, token_axis

STALE_TOKENS = 64  # of the cache that no picture has any use for, before they are dropped


@dataclass
class Slot:
    """One of the pictures that are decoded together.

    Attributes:
        first_row: of the picture in the step before; its rows follow each other.
        start: how many tokens the cache had before the picture's first.
    """

    first_row: int
    start: int


class CrossAttentionArrays:
    """What the decoder attends to of its pictures, by the names of its inputs, one picture behind the other.

    Pictures whose prompts are shorter than another's are filled up with zeros, which a mask hides.

    Attributes:
        arrays: float32, each (capacity, …).
        tokens: of picture and prompt that there is room for.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.arrays: dict[str, FloatArray] = {}
        self.tokens = 0

    def put(self, index: int, cross_attention: Mapping[str, FloatArray]) -> None:
        """Put a picture to the first index that is free."""
        name, values = next(iter(cross_attention.items()))
        tokens = values.shape[token_axis(name)]
        picture = {**cross_attention, ENCODER_MASK: np.zeros((1, 1, 1, tokens), np.float32)}
        if tokens > self.tokens or (tokens < self.tokens and not index):
            self._make_room(tokens, index, picture)
        self._fill(index, picture)

    def move(self, index: int, to: int) -> None:
        """Move a picture to another index."""
        for values in self.arrays.values():
            values[to] = values[index]

    def _make_room(self, tokens: int, pictures: int, like: Mapping[str, FloatArray]) -> None:
        """Have room for so many tokens of each picture, as many as `like` has; the first pictures are kept."""
        old, self.tokens = self.arrays, tokens
        # the system gives memory to the pictures that are there
        self.arrays = {name: np.empty((self._capacity, *one.shape[1:]), np.float32) for name, one in like.items()}
        for index in range(pictures):
            self._fill(index, {name: values[index : index + 1] for name, values in old.items()})

    def _fill(self, index: int, picture: Mapping[str, FloatArray]) -> None:
        for name, values in picture.items():
            room, axis = self.arrays[name][index], token_axis(name) - 1
            part, rest = np.split(room, [values.shape[axis + 1]], axis)
            part[:] = values[0]
            rest[:] = -np.inf if name == ENCODER_MASK else 0


class StatefulDecoder:
    """The decoder graph and the pictures whose answers are decoded together; see `generation.Decoder`.

    All rows grow the same cache by a token each step. A picture that comes later has no part in the tokens before,
    which a mask hides from it; once no picture has, they are dropped.

    Args:
        request: of the compiled graph, whose state the cache is.
        capacity: pictures at a time, at most.

    Attributes:
        memory: None, since pictures are arrays of the host.
    """

    memory = None

    def __init__(self, request: Any, capacity: int) -> None:
        self._request = request
        shapes = {port.any_name: port.partial_shape for port in request.model_inputs}
        self._bans = shapes["banned_ids"][1].get_length()
        self._slots: list[Slot] = []
        self._cached = 0
        self._cross = CrossAttentionArrays(capacity)
        self._attended: tuple[int, Any] = (0, None)
        self._sound_row = 0

    @property
    def candidates(self) -> int:
        """How many next tokens of each row a step gives."""
        return int(self._request.model_outputs[0].partial_shape[1].get_length())

    def add(self, cross_attention: Mapping[str, FloatArray]) -> None:
        """Add a picture behind the others."""
        if not self._slots:
            self._request.reset_state()
            self._cached = self._sound_row = 0
        self._cross.put(len(self._slots), cross_attention)
        self._slots.append(Slot(self._sound_row, self._cached))

    def remove(self, index: int) -> None:
        """Remove a picture; the last one takes its index."""
        last = self._slots.pop()
        if index < len(self._slots):
            self._slots[index] = last
            self._cross.move(len(self._slots), index)

    def step(self, queries: Sequence[StepInput]) -> list[TopK]:
        """Return the candidates for a query of each picture, in the order of their indices."""
        self._drop_stale()
        self._attend_to(len(queries))
        rows = lay_out(queries, [slot.first_row for slot in self._slots])
        self._request.infer(
            {
                "input_ids": rows.token_ids,
                "position_ids": rows.positions,
                "beam_idx": rows.parents.astype(np.int32),
                "attention_mask": self._mask(rows.width),
                "banned_ids": ban_table(rows.banned, self._bans),
            },
            share_inputs=True,
        )
        self._cached += 1
        log_probs, token_ids = (self._request.get_output_tensor(index).data for index in (0, 1))
        # Masked tokens count for nothing unless they are NaN: a newcomer must not inherit those of a broken neighbour.
        self._sound_row = int(np.argmax(np.isfinite(log_probs[:, 0])))
        for slot, first_row in zip(self._slots, row_starts(queries, rows.width), strict=True):
            slot.first_row = first_row
        return take_apart(queries, rows.width, log_probs, token_ids)

    def _attend_to(self, pictures: int) -> None:
        """Give the graph the first pictures to attend to."""
        arrays = self._cross.arrays
        if self._attended[0] == pictures and self._attended[1] is arrays:
            return
        for name, values in arrays.items():
            self._request.set_tensor(name, ov.Tensor(values[:pictures], shared_memory=True))
        self._attended = (pictures, arrays)

    def _mask(self, width: int) -> FloatArray:
        """Return what each row does not see of the cache and its own token: (rows, 1, 1, cached + 1)."""
        mask = np.zeros((len(self._slots), width, self._cached + 1), np.float32)
        for index, slot in enumerate(self._slots):
            mask[index, :, : slot.start] = -np.inf
        return mask.reshape(-1, 1, 1, self._cached + 1)

    def _drop_stale(self) -> None:
        """Drop the tokens at the front of the cache that no picture sees, once they are many."""
        stale = min(slot.start for slot in self._slots)
        if stale < STALE_TOKENS or stale == self._cached:
            return
        for state in self._request.query_state():
            state.state = ov.Tensor(np.ascontiguousarray(state.state.data[:, :, stale:]))
        self._cached -= stale
        for slot in self._slots:
            slot.start -= stale
