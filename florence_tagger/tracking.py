"""Boxes in the frames of a video -> the same boxes with the numbers of their tracks, one for each object that passes.

The association is ByteTrack's (Zhang et al., ECCV 2022): a Kalman filter with a constant velocity says where each track
is now, strong boxes are assigned to tracks first, then weak ones to the tracks that are left. Three things differ. All
noise is in seconds, because frames may lie any time apart. Costs are the filter's own distances, because the boxes of a
fast thing need not overlap. And a box that is smaller than its object is taken for a part of it, whose one edge or the
other is the object's own, because what goes behind something or out of the picture is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from florence_tagger.schemas import Detection, FrameResult

STRONG = 0.75  # of the median score of a video, of a box that may begin a track: models differ in how sure they are
LOST_SECONDS = 1.5  # that a track lives without a box
CONFIRMING_SECONDS, CONFIRMING_BOXES = 0.65, 5.0  # of the usual score; either makes a track count

# Of a filter, in shares of the object's longer side.
MEASURED = 0.1  # standard deviation of a box's centre
STARTING = 5.0  # of the velocity of what has been seen once, 1/s
TURNING = 0.4  # acceleration noise, 1/s^1.5

CUT = 0.85  # a box with less of the object's side shows a part of it
LEARNING = 0.5  # of an object's sides, from a box that shows all of it
SIZES = 0.5  # standard deviation of the logarithm of a side

MAX_DISTANCE = 20.0  # squared, in standard deviations, between a track and its box
MAX_WEAK_DISTANCE = 4.0
OTHER_LABEL = 10.0  # added where a box has another label than the track
NEVER = 1e6  # what no assignment costs

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Motion:
    """A Kalman filter's state: the centre of an object and its velocity, with equal variances along both axes.

    Attributes:
        centre, velocity: float64 (2,), pixels and pixels/s.
        own, both, moving: variances of the centre, of both together, of the velocity.
    """

    centre: Array
    velocity: Array
    own: float
    both: float
    moving: float

    @classmethod
    def starting(cls, centre: Array, size: float) -> "Motion":
        """Return the state of what has been seen once, with a longer side of `size` pixels."""
        return cls(centre, np.zeros(2), (MEASURED * size) ** 2, 0.0, (STARTING * size) ** 2)

    def after(self, seconds: float, size: float) -> "Motion":
        """Predict the state after a time."""
        turning = (TURNING * size) ** 2
        return Motion(
            self.centre + seconds * self.velocity,
            self.velocity,
            self.own + 2 * seconds * self.both + seconds**2 * self.moving + turning * seconds**3 / 3,
            self.both + seconds * self.moving + turning * seconds**2 / 2,
            self.moving + turning * seconds,
        )

    def corrected(self, centre: Array, size: float) -> "Motion":
        """Correct the state by where the object was seen."""
        expected = self.own + (MEASURED * size) ** 2
        gain, gain_of_velocity = self.own / expected, self.both / expected
        off = centre - self.centre
        return Motion(
            self.centre + gain * off,
            self.velocity + gain_of_velocity * off,
            (1 - gain) * self.own,
            (1 - gain) * self.both,
            self.moving - gain_of_velocity * self.both,
        )


@dataclass(frozen=True)
class Found:
    """A box, its place in its frame, and its corners, float64 (2,) each."""

    place: int
    detection: Detection
    low: Array
    high: Array

    @classmethod
    def of(cls, place: int, detection: Detection) -> "Found":
        """Return a detection with its corners in order; its sides are a pixel at least."""
        x1, y1, x2, y2 = detection.box
        low = np.array([min(x1, x2), min(y1, y2)])
        return cls(place, detection, low, np.maximum([max(x1, x2), max(y1, y2)], low + 1))

    @property
    def sides(self) -> Array:
        """Width and height."""
        return self.high - self.low


@dataclass(eq=False)
class Track:
    """An object: how it moved and how large it was when it was last seen, and what was seen of it.

    Attributes:
        sides: of all of it, float64 (2,).
        boxes: by their frame and their place in it.
        votes: by label, the sum of its boxes' scores.
    """

    motion: Motion
    sides: Array
    time_s: float
    boxes: list[tuple[int, int]]
    votes: dict[str, float]

    @classmethod
    def starting(cls, found: Found, frame: int, time_s: float) -> "Track":
        """Return the track of what is seen for the first time."""
        motion = Motion.starting((found.low + found.high) / 2, found.sides.max())
        votes = {found.detection.label: found.detection.score}
        return cls(motion, found.sides, time_s, [(frame, found.place)], votes)

    @property
    def label(self) -> str:
        """The label that most of the scores speak for."""
        return max(self.votes, key=lambda label: (self.votes[label], label))

    def at(self, time_s: float) -> Motion:
        """Predict the motion at a time."""
        return self.motion.after(time_s - self.time_s, self.sides.max())

    def see(self, found: Found, centre: Array, motion: Motion, frame: int, time_s: float) -> None:
        """Take a box for this object's, whose centre then is there."""
        self.motion = motion.corrected(centre, self.sides.max())
        whole = found.sides >= CUT * self.sides
        self.sides = self.sides + np.where(whole, LEARNING * (found.sides - self.sides), 0)
        self.time_s = time_s
        self.boxes.append((frame, found.place))
        self.votes[found.detection.label] = self.votes.get(found.detection.label, 0.0) + found.detection.score


def track(frame_results: Sequence[FrameResult]) -> tuple[FrameResult, ...]:
    """Number the objects in the frames of a video: each box of a track that counts has its number and label."""
    usual = float(np.median([detection.score for one in frame_results for detection in one.detections] or [1.0]))
    enough = boxes_enough([frame_result.time_s or 0.0 for frame_result in frame_results])
    tracks = tracks_of(frame_results, STRONG * usual)
    counting = sorted(
        (one for one in tracks if evidence(one, frame_results, usual) >= enough), key=lambda one: one.boxes[0]
    )
    numbers = {box: (number, one.label) for number, one in enumerate(counting, 1) for box in one.boxes}
    return tuple(
        numbered(frame_result, [numbers.get((frame, place)) for place in range(len(frame_result.detections))])
        for frame, frame_result in enumerate(frame_results)
    )


def boxes_enough(times: Sequence[float]) -> float:
    """Return how many boxes of the usual score make a track count in frames of these times; all do in one frame."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else np.inf
    return min(CONFIRMING_SECONDS / max(step, 1e-9), CONFIRMING_BOXES)


def evidence(one: Track, frame_results: Sequence[FrameResult], usual: float) -> float:
    """Return how many boxes of the usual score the boxes of a track are worth; what is misnamed scores less."""
    scores = (frame_results[frame].detections[place].score for frame, place in one.boxes)
    return sum(min(score / usual, 1.0) ** 2 if usual else 1.0 for score in scores)


def numbered(frame_result: FrameResult, numbers: Sequence[tuple[int, str] | None]) -> FrameResult:
    """Return a frame whose boxes have these numbers and labels."""
    pairs = zip(frame_result.detections, numbers, strict=True)
    detections = tuple(
        replace(detection, track=found[0], label=found[1]) if found else detection for detection, found in pairs
    )
    return replace(frame_result, detections=detections)


def tracks_of(frame_results: Sequence[FrameResult], least: float) -> list[Track]:
    """Follow all objects from frame to frame; boxes of at least this score begin tracks."""
    tracks: list[Track] = []
    hull = hull_of(frame_results)
    alive: list[Track] = []
    for frame, frame_result in enumerate(frame_results):
        time_s = frame_result.time_s or 0.0
        found = [Found.of(place, detection) for place, detection in enumerate(frame_result.detections)]
        strong = [one for one in found if one.detection.score >= least]
        weak = [one for one in found if one.detection.score < least]
        alive = [one for one in alive if time_s - one.time_s <= LOST_SECONDS]
        left, new = follow(alive, strong, frame, time_s, MAX_DISTANCE)
        left, _ = follow(left, weak, frame, time_s, MAX_WEAK_DISTANCE)
        gone = [one for one in left if is_outside(one.at(time_s).centre, hull)]
        alive = [one for one in alive if one not in gone]
        started = [Track.starting(one, frame, time_s) for one in new]
        tracks += started
        alive += started
    return tracks


def hull_of(frame_results: Sequence[FrameResult]) -> tuple[Array, Array]:
    """Return the corners of what holds all boxes, float64 (2,) each."""
    boxes = [one.box for frame_result in frame_results for one in frame_result.detections]
    corners = np.array(boxes or [(0.0, 0.0, 0.0, 0.0)]).reshape(-1, 2)
    return corners.min(axis=0), corners.max(axis=0)


def is_outside(centre: Array, hull: tuple[Array, Array]) -> bool:
    """Return whether a point is outside a hull."""
    return bool((centre < hull[0]).any() or (centre > hull[1]).any())


def follow(
    tracks: Sequence[Track], found: Sequence[Found], frame: int, time_s: float, most: float
) -> tuple[list[Track], list[Found]]:
    """Assign boxes to tracks and move these there; return the tracks and the boxes that are left."""
    if not tracks or not found:
        return list(tracks), list(found)
    motions = [one.at(time_s) for one in tracks]
    centres, costs = fit(tracks, motions, found)
    chosen = assign(costs, most)
    for row, place in enumerate(chosen):
        if place >= 0:
            tracks[row].see(found[place], centres[row, place], motions[row], frame, time_s)
    taken = set(chosen)
    return (
        [one for one, place in zip(tracks, chosen, strict=True) if place < 0],
        [one for place, one in enumerate(found) if place not in taken],
    )


def fit(tracks: Sequence[Track], motions: Sequence[Motion], found: Sequence[Found]) -> tuple[Array, Array]:
    """Return where each object is if a box shows it or a part of it, and how little the box fits.

    Along an axis where a box is cut, one of its edges is the object's: the one nearer to where it is expected. The cost
    is a squared distance in standard deviations, more for a larger box and for another label; one of another label must
    lie on the object, because where nothing is known of the velocity all distances are small.

    Returns:
        centres, float64 (tracks, boxes, 2), and costs, float64 (tracks, boxes).
    """
    low, high = np.array([one.low for one in found]), np.array([one.high for one in found])
    sides = np.array([one.sides for one in tracks])[:, None]
    expected = np.array([one.centre for one in motions])[:, None]
    by_high, by_low = high - sides / 2, low + sides / 2
    nearer = np.where(abs(by_high - expected) < abs(by_low - expected), by_high, by_low)
    centres = np.where(high - low < CUT * sides, nearer, (low + high) / 2)
    variances = np.array([[one.own] for one in motions]) + (MEASURED * sides.max(axis=2)) ** 2
    larger = np.log(np.maximum((high - low) / sides, 1)) / SIZES
    costs = ((centres - expected) ** 2).sum(axis=2) / variances + (larger**2).sum(axis=2)
    other = np.array([one.label for one in tracks])[:, None] != np.array([one.detection.label for one in found])
    beside = (abs(centres - expected) > sides / 2).any(axis=2)
    return centres, costs + np.where(other, np.where(beside, NEVER, OTHER_LABEL), 0.0)


def assign(costs: Array, most: float) -> list[int]:
    """Return for each row of costs, float64 (tracks, boxes), its column in the cheapest assignment, -1 for none.

    No pair costs more than `most`. Rows and columns without a cheaper one are left out first: crowds stay quick.
    """
    from lap import lapjv  # for those who count what passes

    rows, columns = np.flatnonzero((costs < most).any(axis=1)), np.flatnonzero((costs < most).any(axis=0))
    chosen = np.full(len(costs), -1)
    if len(rows):
        _, found, _ = lapjv(costs[np.ix_(rows, columns)], extend_cost=True, cost_limit=most)
        chosen[rows] = np.where(found < 0, -1, columns[found])
    return [int(column) for column in chosen]
