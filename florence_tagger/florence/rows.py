"""The rows of a step: queries of several pictures as one batch for the decoder, and its output taken apart again.

All pictures get as many rows as the one that needs most, picture after picture, so that cross-attention has a picture's
rows where queries stand. Rows that a picture does not need repeat its last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from florence_tagger.florence.decoding import FloatArray, IntArray, StepInput, TopK

ENCODER_MASK = "encoder_mask"  # the decoder's input that hides what a picture does not have of the encoder's tokens


@dataclass(frozen=True)
class Rows:
    """The input of a step for R rows, `width` for each picture.

    Attributes:
        token_ids, positions, parents: int64 (R), as in `StepInput`; parents are rows of the whole step before.
        banned: token ids that may not come next, an array for each row.
    """

    width: int
    token_ids: IntArray
    positions: IntArray
    parents: IntArray
    banned: tuple[IntArray, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


def lay_out(queries: Sequence[StepInput], first_rows: Sequence[int]) -> Rows:
    """Make rows of a query of each picture, whose rows in the step before began at `first_rows`."""
    width = max(len(query.token_ids) for query in queries)
    used = [np.minimum(np.arange(width), len(query.token_ids) - 1) for query in queries]
    pairs = list(zip(queries, used, strict=True))
    return Rows(
        width,
        np.concatenate([query.token_ids[rows] for query, rows in pairs]),
        np.repeat([query.position for query in queries], width),
        np.concatenate([first + query.parents[rows] for first, (query, rows) in zip(first_rows, pairs, strict=True)]),
        tuple(query.banned[row] for query, rows in pairs for row in rows),
    )


def take_apart(queries: Sequence[StepInput], width: int, log_probs: FloatArray, token_ids: IntArray) -> list[TopK]:
    """Return the candidates (R, K) of a step for each of the queries that its rows were made of, copied."""
    rows = [
        slice(first, first + len(query.token_ids))
        for first, query in zip(row_starts(queries, width), queries, strict=True)
    ]
    return [TopK(log_probs[part].copy(), token_ids[part].copy()) for part in rows]


def row_starts(queries: Sequence[StepInput], width: int) -> range:
    """Return the first row of each query in a step."""
    return range(0, len(queries) * width, width)


def ban_table(banned: Sequence[IntArray], width: int) -> IntArray:
    """Return the bans of each row as one array, int64 (R, width).

    A row with fewer repeats its last ban, so that whoever writes or adds them does the same to the same token; a row
    without any has -1.
    """
    table = np.full((len(banned), width), -1)
    for row, token_ids in zip(table, banned, strict=True):
        if len(token_ids):
            row[:] = token_ids[-1]
            row[: len(token_ids)] = token_ids
    return table


def token_axis(name: str) -> int:
    """Return which axis of an input of the decoder for cross-attention counts the tokens of picture and prompt."""
    return 2 if name.endswith("value") else 3
