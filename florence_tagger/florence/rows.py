"""Rows of a decode step: the step inputs of several pictures joined into one batch, and its output split again.

Every picture gets as many rows as the picture with the most beams, picture after picture, so that cross-attention has a
picture's rows on its query axis. Unused rows repeat the picture's last row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from florence_tagger.florence.decoding import FloatArray, IntArray, StepInput, TopK

ENCODER_MASK = "encoder_mask"  # the decoder's input that masks the padding of a picture's encoder tokens


@dataclass(frozen=True)
class Rows:
    """Input of a decode step for R rows, `width` rows for each picture.

    Attributes:
        token_ids, positions, parents: int64 (R), as in `StepInput`; parents are rows of the previous step's batch.
        banned: banned next token ids, an array for each row.
    """

    width: int
    token_ids: IntArray
    positions: IntArray
    parents: IntArray
    banned: tuple[IntArray, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


def build_rows(step_inputs: Sequence[StepInput], first_rows: Sequence[int]) -> Rows:
    """Return the rows of a step.

    Args:
        step_inputs: one step input for each picture.
        first_rows: index of each picture's first row in the previous step.
    """
    width = max(len(step_input.token_ids) for step_input in step_inputs)
    used = [np.minimum(np.arange(width), len(step_input.token_ids) - 1) for step_input in step_inputs]
    pairs = list(zip(step_inputs, used, strict=True))
    parents = [first + step_input.parents[rows] for first, (step_input, rows) in zip(first_rows, pairs, strict=True)]
    return Rows(
        width,
        np.concatenate([step_input.token_ids[rows] for step_input, rows in pairs]),
        np.repeat([step_input.position for step_input in step_inputs], width),
        np.concatenate(parents),
        tuple(step_input.banned[row] for step_input, rows in pairs for row in rows),
    )


def split_top_k(step_inputs: Sequence[StepInput], width: int, log_probs: FloatArray, token_ids: IntArray) -> list[TopK]:
    """Return a copy of the top-k tokens of each step input from a step's output (R, K)."""
    rows = [
        slice(first, first + len(step_input.token_ids))
        for first, step_input in zip(row_starts(step_inputs, width), step_inputs, strict=True)
    ]
    return [TopK(log_probs[part].copy(), token_ids[part].copy()) for part in rows]


def row_starts(step_inputs: Sequence[StepInput], width: int) -> range:
    """Return the index of each step input's first row."""
    return range(0, len(step_inputs) * width, width)


def ban_table(banned: Sequence[IntArray], width: int) -> IntArray:
    """Return the banned token ids of each row as one array, int64 (R, width).

    A row with fewer ids repeats its last id, so that each write or addition affects only a banned token; a row without
    ids has -1.
    """
    table = np.full((len(banned), width), -1)
    for row, token_ids in zip(table, banned, strict=True):
        if len(token_ids):
            row[:] = token_ids[-1]
            row[: len(token_ids)] = token_ids
    return table


def token_axis(name: str) -> int:
    """Return the axis of picture and prompt tokens in a decoder input for cross-attention."""
    return 2 if name.endswith("value") else 3
