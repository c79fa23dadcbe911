"""Does a device compute what the CPU computes? Pictures encoded by both, and two decoders taken through the same steps.

A GPU plugin has computed wrongly without an error before: in calibrated vision graphs, where rows came and went, and
where tokens were banned (see `devices.WORKAROUNDS`). So each load on a GPU encodes pictures and goes through such steps
on the loaded model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from florence_tagger.florence.batch import Decoder
from florence_tagger.florence.decoding import FloatArray, IntArray, StepInput, TopK
from florence_tagger.schemas import UInt8Array

COMPARED = 8  # of each row's candidates, the likeliest
# How far log-probabilities of the same tokens may be apart. With the bundled model f16 made 0.035 and int8 weights, for
# which the CPU plugin rounds activations, 0.14; the faults that were seen made 1.4 and more, or banned tokens likely.
TOLERANCE = 0.5
COSINE = 0.99  # of what is attended to, at least; see `encoded_cosine`


@dataclass(frozen=True)
class Move:
    """What happens to the pictures before a step, and how the step is taken.

    Attributes:
        join: how many pictures join.
        leave: the index of a picture that leaves, where one does.
        width: rows of each picture that has had a step; new ones have one.
        bans: how many of each row's likeliest tokens are banned.
        repeats: how often each ban is given.
        clear: all pictures leave before others join.
    """

    join: int = 0
    leave: int | None = None
    clear: bool = False
    width: int = 1
    bans: int = 0
    repeats: int = 1


# Rows grow after several steps of one, shrink with a picture that leaves and grow again with one that joins; tokens are
# banned once and twice; the cache is begun anew with a step like the one before; and it is packed.
SELF_TEST = (
    *(Move(join=1), Move(), Move(width=3), Move(width=3, bans=2), Move(join=2, width=3, bans=2, repeats=2)),
    *(Move(width=3, bans=1, repeats=3), Move(leave=0, width=3), Move(width=3), Move(leave=1, width=1)),
    *(Move(clear=True, join=1), Move(clear=True, join=1), Move(width=3)),
    *(Move(width=3, bans=5) for _ in range(12)),
    *(Move(join=1, width=3), Move(width=2), Move(width=3)),
)


@dataclass(frozen=True)
class Difference:
    """What two decoders differed in.

    Attributes:
        worst: log-probabilities of the same token, at most; infinite where one has a likely token that the other lacks.
        banned: how many banned tokens were among the candidates.
        steps: how many were taken.
    """

    worst: float = 0.0
    banned: int = 0
    steps: int = 0

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(max(self.worst, other.worst), self.banned + other.banned, self.steps + other.steps)

    def exceeds(self, tolerance: float) -> bool:
        """Return whether that is more than rounding."""
        return not self.worst <= tolerance or self.banned > 0


@dataclass(frozen=True)
class DeviceTest:
    """What a device's graphs and the CPU's differ in.

    Attributes:
        device: its name.
        precision: in which it computes.
        cosine: between what both make of a picture for the decoder to attend to, the lowest.
        difference: of the decoders; none were taken through steps where the decoder is on the CPU.
        error: what it failed with, in words, if it did.
    """

    device: str
    precision: str = ""
    cosine: float = 1.0
    difference: Difference = Difference()
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether they differ in rounding and nothing else."""
        return not self.error and self.cosine >= COSINE and not self.difference.exceeds(TOLERANCE)

    def __str__(self) -> str:
        if self.error:
            return f"{self.device} fails: {self.error.rstrip('.')}."
        return (
            f"{self.device} computes {'like' if self.passed else 'otherwise than'} the CPU at {self.precision}: "
            f"encoded pictures have a cosine of {self.cosine:.5f} at least ({COSINE} is accepted); "
            f"in {self.difference.steps} steps log-probabilities were {self.difference.worst:.2g} apart at most "
            f"({TOLERANCE} are accepted), and {self.difference.banned} banned tokens were possible."
        )


class Walk:
    """Two decoders on the same pictures, which take the same steps: each row goes on with a token that is likely.

    Args:
        pictures: what the decoders attend to, a pair for each picture, of which the next one joins, again and again.
        capacity: pictures that both decoders have room for; more do not join.
    """

    def __init__(
        self,
        tested: Decoder[Any],
        reference: Decoder[Any],
        pictures: Sequence[tuple[Any, Any]],
        capacity: int,
        seed: int = 0,
    ) -> None:
        self._decoders = (tested, reference)
        self._pictures = pictures
        self._capacity = capacity
        self._random = np.random.default_rng(seed)
        self._joined = 0
        self._said: list[TopK | None] = []  # by the reference, of each picture, in the step before
        self._positions: list[int] = []

    def take(self, move: Move) -> Difference:
        """Take a step, and return what came out differently."""
        if move.clear:
            self.end()
        if move.leave is not None and move.leave < len(self._positions):
            self._leave(move.leave)
        for _ in range(min(move.join, self._capacity - len(self._positions))):
            self._join()
        if not self._positions:
            return Difference()
        queries = [self._ask(index, move) for index in range(len(self._positions))]
        tested, reference = (decoder.step(queries) for decoder in self._decoders)
        self._said = list(reference)
        self._positions = [position + 1 for position in self._positions]
        pairs = zip(queries, tested, reference, strict=True)
        return sum((compare(*pair) for pair in pairs), Difference(steps=1))

    def end(self) -> None:
        """Let all pictures leave."""
        while self._positions:
            self._leave(0)

    def _join(self) -> None:
        pair = self._pictures[self._joined % len(self._pictures)]
        for decoder, picture in zip(self._decoders, pair, strict=True):
            decoder.add(picture)
        self._joined += 1
        self._said.append(None)
        self._positions.append(0)

    def _leave(self, index: int) -> None:
        for decoder in self._decoders:
            decoder.remove(index)
        for of_pictures in (self._said, self._positions):
            last = of_pictures.pop()
            if index < len(of_pictures):
                of_pictures[index] = last  # type: ignore[assignment]

    def _ask(self, index: int, move: Move) -> StepInput:
        """Return how a picture's rows go on: from any of the rows before, with any of their likeliest tokens."""
        said = self._said[index]
        if said is None:
            return StepInput(np.array([2]), np.zeros(1, np.int64), 0, (np.empty(0, np.int64),))
        parents = self._random.integers(0, len(said.token_ids), move.width)
        token_ids = said.token_ids[parents, self._random.integers(0, 3, move.width)]
        banned = tuple(np.repeat(likely, move.repeats) for likely in said.token_ids[parents][:, : move.bans])
        return StepInput(token_ids, parents, self._positions[index], banned)


def compare(query: StepInput, tested: TopK, reference: TopK) -> Difference:
    """Return what two decoders' candidates (B, K) for the same query differ in."""
    rows = range(len(query.token_ids))
    worst = max(difference_of_row(tested.take(row), reference.take(row)) for row in rows)
    banned = sum(count_banned(tested.take(row), query.banned[row]) for row in rows)
    return Difference(worst, banned)


def difference_of_row(tested: TopK, reference: TopK) -> float:
    """Return how far the log-probabilities of the reference's likeliest tokens are apart, at most; NaN is infinite.

    A token that is not among those tested is as likely as the last of them at most.
    """
    found = dict(zip(tested.token_ids.tolist(), tested.log_probs.tolist(), strict=True))
    likeliest = zip(reference.token_ids[:COMPARED].tolist(), reference.log_probs[:COMPARED].tolist(), strict=True)
    last = float(tested.log_probs[-1])
    apart = [abs(found.get(token_id, min(last, log_prob)) - log_prob) for token_id, log_prob in likeliest]
    return max(one if np.isfinite(one) else np.inf for one in apart)


def count_banned(tested: TopK, banned: IntArray) -> int:
    """Return how many of the candidates are banned and not impossible."""
    return int(np.count_nonzero(np.isin(tested.token_ids, banned) & (tested.log_probs > -np.inf)))


def encoded_cosine(tested: Mapping[str, FloatArray], reference: Mapping[str, FloatArray]) -> float:
    """Return the cosine between what two encoders put out for a picture, arrays by name; NaN where one has NaN."""
    ours, theirs = (np.concatenate([side[name].ravel() for name in sorted(side)]) for side in (tested, reference))
    return float(ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs)))


def run_self_test(
    tested: Decoder[Any], reference: Decoder[Any], pictures: Sequence[tuple[Any, Any]], capacity: int
) -> Difference:
    """Take two decoders, which must have no pictures, through `SELF_TEST`."""
    walk = Walk(tested, reference, pictures, capacity)
    difference = sum((walk.take(move) for move in SELF_TEST), Difference())
    walk.end()
    return difference


def make_pictures(image_size: tuple[int, int]) -> list[UInt8Array]:
    """Return pictures (H, W, 3) to look at: a gradient, a chessboard and noise."""
    height, width = image_size
    rows, columns = np.mgrid[:height, :width]
    gradient = 255 * (rows + columns) // (height + width - 2)
    chessboard = 255 * ((rows // (height // 8) + columns // (width // 8)) % 2)
    noise = np.random.default_rng(0).integers(0, 256, (height, width))
    return [np.repeat(one.astype(np.uint8)[..., np.newaxis], 3, axis=-1) for one in (gradient, chessboard, noise)]
