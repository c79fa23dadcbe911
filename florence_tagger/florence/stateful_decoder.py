"""The decoder on OpenVINO's CPU plugin: the KV cache is the graph's state, reordered by index and never copied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov

from florence_tagger.florence.decoding import FloatArray, StepInput, TopK
from florence_tagger.florence.rows import ENCODER_MASK, ban_table, build_rows, row_starts, split_top_k, token_axis

MIN_EVICTED_TOKENS = 64  # a shorter masked prefix of the cache is kept, because eviction copies the rest


@dataclass
class Slot:
    """The state of one of the pictures that are decoded together.

    Attributes:
        first_row: the first of the picture's consecutive rows in the previous step.
        start: the cache length before the picture's first token.
    """

    first_row: int
    start: int


class CrossAttentionArrays:
    """The pictures' keys and values for cross-attention, by the decoder's input names, one picture after another.

    Pictures with shorter prompts than others are padded with zeros, which a mask hides.

    Attributes:
        arrays: float32, each (capacity, …).
        tokens: the allocated number of picture and prompt tokens.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.arrays: dict[str, FloatArray] = {}
        self.tokens = 0

    def put(self, index: int, cross_attention: Mapping[str, FloatArray]) -> None:
        """Write a picture to the first free index."""
        name, values = next(iter(cross_attention.items()))
        tokens = values.shape[token_axis(name)]
        picture = {**cross_attention, ENCODER_MASK: np.zeros((1, 1, 1, tokens), np.float32)}
        if tokens > self.tokens or (tokens < self.tokens and not index):
            self._allocate(tokens, index, picture)
        self._fill(index, picture)

    def move(self, index: int, to: int) -> None:
        """Move a picture to another index."""
        for values in self.arrays.values():
            values[to] = values[index]

    def _allocate(self, tokens: int, num_pictures: int, like: Mapping[str, FloatArray]) -> None:
        """Allocate arrays for pictures of `tokens` tokens, as many as `like` has; keep the first pictures."""
        old, self.tokens = self.arrays, tokens
        # the system provides memory only for the pictures that are written
        self.arrays = {name: np.empty((self._capacity, *array.shape[1:]), np.float32) for name, array in like.items()}
        for index in range(num_pictures):
            self._fill(index, {name: values[index : index + 1] for name, values in old.items()})

    def _fill(self, index: int, picture: Mapping[str, FloatArray]) -> None:
        for name, values in picture.items():
            target, axis = self.arrays[name][index], token_axis(name) - 1
            filled, padding = np.split(target, [values.shape[axis + 1]], axis)
            filled[:] = values[0]
            padding[:] = -np.inf if name == ENCODER_MASK else 0


class StatefulDecoder:
    """The decoder graph, with the pictures whose answers it decodes together; see `batch.Decoder`.

    All rows grow the same cache by one token each step. A mask hides the tokens before a picture's first one from it;
    tokens that are hidden from all pictures are evicted.

    Args:
        request: infer request of the compiled graph, whose state is the cache.
        capacity: maximum number of pictures.

    Attributes:
        memory: None, since pictures are arrays of the host.
    """

    memory = None

    def __init__(self, request: Any, capacity: int) -> None:
        self._request = request
        shapes = {port.any_name: port.partial_shape for port in request.model_inputs}
        self._max_bans = shapes["banned_ids"][1].get_length()
        self._slots: list[Slot] = []
        self._cached = 0
        self._cross_attention = CrossAttentionArrays(capacity)
        self._bound: tuple[int, Any] = (0, None)
        self._finite_row = 0

    @property
    def num_candidates(self) -> int:
        """Number K of next tokens that a step returns for each row."""
        return int(self._request.model_outputs[0].partial_shape[1].get_length())

    def add(self, cross_attention: Mapping[str, FloatArray]) -> None:
        """Append an encoded picture."""
        if not self._slots:
            self._request.reset_state()
            self._cached = self._finite_row = 0
        self._cross_attention.put(len(self._slots), cross_attention)
        self._slots.append(Slot(self._finite_row, self._cached))

    def remove(self, index: int) -> None:
        """Remove a picture; the last one takes its index."""
        last = self._slots.pop()
        if index < len(self._slots):
            self._slots[index] = last
            self._cross_attention.move(len(self._slots), index)

    def step(self, step_inputs: Sequence[StepInput]) -> list[TopK]:
        """Return the top-k tokens for one step input per picture, in the order of the pictures."""
        self._evict_prefix()
        self._bind_cross_attention(len(step_inputs))
        rows = build_rows(step_inputs, [slot.first_row for slot in self._slots])
        self._request.infer(
            {
                "input_ids": rows.token_ids,
                "position_ids": rows.positions,
                "beam_idx": rows.parents.astype(np.int32),
                "attention_mask": self._mask(rows.width),
                "banned_ids": ban_table(rows.banned, self._max_bans),
            },
            share_inputs=True,
        )
        self._cached += 1
        log_probs, token_ids = (self._request.get_output_tensor(index).data for index in (0, 1))
        # A mask does not hide NaN: a new picture must not continue a row whose cache has NaN.
        self._finite_row = int(np.argmax(np.isfinite(log_probs[:, 0])))
        for slot, first_row in zip(self._slots, row_starts(step_inputs, rows.width), strict=True):
            slot.first_row = first_row
        return split_top_k(step_inputs, rows.width, log_probs, token_ids)

    def _bind_cross_attention(self, num_pictures: int) -> None:
        """Set the keys and values of the first pictures as the graph's inputs."""
        arrays = self._cross_attention.arrays
        if self._bound[0] == num_pictures and self._bound[1] is arrays:
            return
        for name, values in arrays.items():
            self._request.set_tensor(name, ov.Tensor(values[:num_pictures], shared_memory=True))
        self._bound = (num_pictures, arrays)

    def _mask(self, width: int) -> FloatArray:
        """Return the mask of each row over the cache and the row's own token: (rows, 1, 1, cached + 1)."""
        mask = np.zeros((len(self._slots), width, self._cached + 1), np.float32)
        for index, slot in enumerate(self._slots):
            mask[index, :, : slot.start] = -np.inf
        return mask.reshape(-1, 1, 1, self._cached + 1)

    def _evict_prefix(self) -> None:
        """Evict the prefix of the cache that is hidden from all pictures, once it is long enough."""
        prefix = min(slot.start for slot in self._slots)
        if prefix < MIN_EVICTED_TOKENS or prefix == self._cached:
            return
        for state in self._request.query_state():
            state.state = ov.Tensor(np.ascontiguousarray(state.state.data[:, :, prefix:]))
        self._cached -= prefix
        for slot in self._slots:
            slot.start -= prefix
