"""The self-test of a device: pictures are encoded by it and by the CPU, and two decoders run the same steps.

GPU plugins have computed wrong values without an error: in calibrated vision graphs, when rows joined or left, and when
tokens were banned (see `devices.WORKAROUNDS`). So each load on a GPU encodes pictures and runs such steps on the loaded
model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from florence_tagger.florence.batch import Decoder
from florence_tagger.florence.decoding import FloatArray, IntArray, StepInput, TopK
from florence_tagger.schemas import UInt8Array

NUM_COMPARED = 8  # the most probable tokens of each row
# Maximum difference of log-probabilities of the same token. With the bundled model f16 differs by 0.035, and int8
# weights, for which the CPU plugin rounds activations, by 0.14; known faults differ by 1.4 or more, or make banned
# tokens probable.
TOLERANCE = 0.5
MIN_COSINE = 0.99  # of keys and values for cross-attention; see `encoded_cosine`


@dataclass(frozen=True)
class Move:
    """A step of the self-test, and the pictures that join or leave before it.

    Attributes:
        join: number of pictures that join.
        leave: index of the picture that leaves, None if none does.
        width: number of rows of each picture after its first step, which has one row.
        bans: number of each row's most probable tokens that are banned.
        repeats: number of times that each ban is repeated.
        clear: True if all pictures leave before others join.
    """

    join: int = 0
    leave: int | None = None
    clear: bool = False
    width: int = 1
    bans: int = 0
    repeats: int = 1


# Rows grow after several steps of one row, shrink with a picture that leaves and grow again with one that joins; tokens
# are banned once and twice; the cache is reset and starts with a step of the same shape as before; and it is packed.
SELF_TEST = (
    *(Move(join=1), Move(), Move(width=3), Move(width=3, bans=2), Move(join=2, width=3, bans=2, repeats=2)),
    *(Move(width=3, bans=1, repeats=3), Move(leave=0, width=3), Move(width=3), Move(leave=1, width=1)),
    *(Move(clear=True, join=1), Move(clear=True, join=1), Move(width=3)),
    *(Move(width=3, bans=5) for _ in range(12)),
    *(Move(join=1, width=3), Move(width=2), Move(width=3)),
)


@dataclass(frozen=True)
class Difference:
    """The difference between the outputs of two decoders.

    Attributes:
        worst: maximum difference of log-probabilities of the same token; infinite if one of them is not finite.
        banned: number of banned tokens among the candidates.
        steps: number of steps.
    """

    worst: float = 0.0
    banned: int = 0
    steps: int = 0

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(max(self.worst, other.worst), self.banned + other.banned, self.steps + other.steps)

    def exceeds(self, tolerance: float) -> bool:
        """Return True if the difference is more than rounding."""
        return not self.worst <= tolerance or self.banned > 0


@dataclass(frozen=True)
class DeviceTest:
    """The difference between a device's graphs and the CPU's.

    Attributes:
        device: the device's name.
        precision: its inference precision.
        cosine: the lowest cosine between the encoders' outputs for a picture.
        difference: of the decoders; no steps are run if the decoder is on the CPU.
        error: the message of the failure, "" if there was none.
    """

    device: str
    precision: str = ""
    cosine: float = 1.0
    difference: Difference = Difference()
    error: str = ""

    @property
    def passed(self) -> bool:
        """True if the device differs by rounding only."""
        return not self.error and self.cosine >= MIN_COSINE and not self.difference.exceeds(TOLERANCE)

    def __str__(self) -> str:
        if self.error:
            return f"{self.device} fails: {self.error.rstrip('.')}."
        return (
            f"{self.device} computes {'like' if self.passed else 'otherwise than'} the CPU at {self.precision}: "
            f"encoded pictures have a cosine of {self.cosine:.5f} at least ({MIN_COSINE} is accepted); "
            f"in {self.difference.steps} steps log-probabilities were {self.difference.worst:.2g} apart at most "
            f"({TOLERANCE} are accepted), and {self.difference.banned} banned tokens were possible."
        )


class Lockstep:
    """Two decoders that run the same steps on the same pictures; each row continues with a probable token.

    Args:
        tested: the decoder under test.
        reference: the decoder that it is compared with.
        pictures: encoded pictures, a pair for the two decoders each; they join in turn, repeatedly.
        capacity: maximum number of pictures in both decoders; more do not join.
        seed: of the choice of tokens.
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
        self._rng = np.random.default_rng(seed)
        self._num_joined = 0
        self._previous: list[TopK | None] = []  # the reference's output of the previous step, of each picture
        self._positions: list[int] = []

    def step(self, move: Move) -> Difference:
        """Run a step, and return the difference of the outputs."""
        if move.clear:
            self.clear()
        if move.leave is not None and move.leave < len(self._positions):
            self._leave(move.leave)
        for _ in range(min(move.join, self._capacity - len(self._positions))):
            self._join()
        if not self._positions:
            return Difference()
        step_inputs = [self._step_input(index, move) for index in range(len(self._positions))]
        tested, reference = (decoder.step(step_inputs) for decoder in self._decoders)
        self._previous = list(reference)
        self._positions = [position + 1 for position in self._positions]
        compared = zip(step_inputs, tested, reference, strict=True)
        return sum((compare(*outputs) for outputs in compared), Difference(steps=1))

    def clear(self) -> None:
        """Remove all pictures."""
        while self._positions:
            self._leave(0)

    def _join(self) -> None:
        pair = self._pictures[self._num_joined % len(self._pictures)]
        for decoder, picture in zip(self._decoders, pair, strict=True):
            decoder.add(picture)
        self._num_joined += 1
        self._previous.append(None)
        self._positions.append(0)

    def _leave(self, index: int) -> None:
        for decoder in self._decoders:
            decoder.remove(index)
        for values in (self._previous, self._positions):
            last = values.pop()
            if index < len(values):
                values[index] = last  # type: ignore[assignment]

    def _step_input(self, index: int, move: Move) -> StepInput:
        """Return rows of a picture that continue random previous rows with one of their most probable tokens."""
        previous = self._previous[index]
        if previous is None:
            return StepInput(np.array([2]), np.zeros(1, np.int64), 0, (np.empty(0, np.int64),))
        parents = self._rng.integers(0, len(previous.token_ids), move.width)
        token_ids = previous.token_ids[parents, self._rng.integers(0, 3, move.width)]
        banned = tuple(np.repeat(row, move.repeats) for row in previous.token_ids[parents][:, : move.bans])
        return StepInput(token_ids, parents, self._positions[index], banned)


def compare(step_input: StepInput, tested: TopK, reference: TopK) -> Difference:
    """Return the difference between two decoders' top-k tokens (B, K) for the same step input."""
    rows = range(len(step_input.token_ids))
    worst = max(row_difference(tested.take(row), reference.take(row)) for row in rows)
    banned = sum(count_banned(tested.take(row), step_input.banned[row]) for row in rows)
    return Difference(worst, banned)


def row_difference(tested: TopK, reference: TopK) -> float:
    """Return the maximum difference in log-probability of the reference's most probable tokens; infinite for NaN.

    A token that the tested decoder did not return is at most as probable as the last one that it returned.
    """
    log_probs = dict(zip(tested.token_ids.tolist(), tested.log_probs.tolist(), strict=True))
    token_ids, expected = reference.token_ids[:NUM_COMPARED].tolist(), reference.log_probs[:NUM_COMPARED].tolist()
    last = float(tested.log_probs[-1])
    differences = [
        abs(log_probs.get(token_id, min(last, log_prob)) - log_prob)
        for token_id, log_prob in zip(token_ids, expected, strict=True)
    ]
    return max(difference if np.isfinite(difference) else np.inf for difference in differences)


def count_banned(tested: TopK, banned: IntArray) -> int:
    """Return the number of candidates that are banned, yet have a finite log-probability."""
    return int(np.count_nonzero(np.isin(tested.token_ids, banned) & (tested.log_probs > -np.inf)))


def encoded_cosine(tested: Mapping[str, FloatArray], reference: Mapping[str, FloatArray]) -> float:
    """Return the cosine between two encoders' outputs for a picture, arrays by name; NaN if one of them has NaN."""
    a, b = (np.concatenate([arrays[name].ravel() for name in sorted(arrays)]) for arrays in (tested, reference))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def run_self_test(
    tested: Decoder[Any], reference: Decoder[Any], pictures: Sequence[tuple[Any, Any]], capacity: int
) -> Difference:
    """Run the steps of `SELF_TEST` on two empty decoders."""
    lockstep = Lockstep(tested, reference, pictures, capacity)
    difference = sum((lockstep.step(move) for move in SELF_TEST), Difference())
    lockstep.clear()
    return difference


def make_pictures(image_size: tuple[int, int]) -> list[UInt8Array]:
    """Return test pictures, uint8 (H, W, 3): a gradient, a chessboard and noise."""
    height, width = image_size
    rows, columns = np.mgrid[:height, :width]
    gradient = 255 * (rows + columns) // (height + width - 2)
    chessboard = 255 * ((rows // (height // 8) + columns // (width // 8)) % 2)
    noise = np.random.default_rng(0).integers(0, 256, (height, width))
    patterns = (gradient, chessboard, noise)
    return [np.repeat(pattern.astype(np.uint8)[..., np.newaxis], 3, axis=-1) for pattern in patterns]
