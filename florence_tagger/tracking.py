"""Boxes in the frames of a video -> the same boxes with the numbers of their tracks, one for each object that passes.

The association is ByteTrack's (Zhang et al., ECCV 2022): a Kalman filter with a constant velocity says where each track
is now, strong boxes are assigned to tracks first, then weak ones to the tracks that are left. Three things differ. All
noise is in seconds, because frames may lie any time apart. Costs are the filter's own distances, because the boxes of a
fast thing need not overlap. And a box that is smaller than its object is taken for a part of it, whose one edge or the
other is the object's own, because what goes behind something or out of the picture is cut.

The filter knows only what was before. When all frames have been followed, tracks are put together which are pieces of
one: those whose boxes lie on one straight way as well as on two. That is the test of a likelihood ratio; what it weighs
are squared distances in standard deviations, as in the association.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from florence_tagger.schemas import Detection, FrameResult

STRONG = 0.75  # of the median score of a video, of a box that may begin a track: models differ in how sure they are
LOST_SECONDS = 1.1  # that a track lives without a box; longer than frames of one a second lie apart
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

# Of pieces. In 124 clips of training.passing, 38 of the 39 pairs of pieces with three boxes or more that are one object
# of one label have a misfit below 10, and all pairs of two objects of one label one above 50; with 1 s instead of
# NEAR_SECONDS three of those are below 50, with 0.5 s 43. Where labels differ, 3 of two objects are below 5.
HIDDEN_SECONDS = 1.5  # that an object may be hidden
NEAR_SECONDS = 1.5  # before and after a gap, of the boxes that tell the way through it
BOTH_SECONDS = 3.0  # for which two pieces of one label may be seen at a time, on both sides of what hides the rest
MOST_MISFIT = 15.0  # of one way, beyond that of two
USUAL_SPEED = 3.0  # standard deviation of the velocity, in longer sides a second
REACH = 8.0  # the most that a velocity may be, in longer sides a second
FULL = 0.9  # quantile of the sides of a piece's boxes that is its object's
ROUNDS = 6  # of finding a way for boxes that are cut

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
    tracks = joined(tracks_of(frame_results, STRONG * usual), frame_results)
    counting = sorted(
        (one for one in tracks if evidence(one, frame_results, usual) >= enough), key=lambda one: one.boxes[0]
    )
    numbers = {box: (number, one.label) for number, one in enumerate(counting, 1) for box in one.boxes}
    return tuple(
        numbered(frame_result, [numbers.get((frame, place)) for place in range(len(frame_result.detections))])
        for frame, frame_result in enumerate(frame_results)
    )


# ---- pieces ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """What was seen of a track.

    Attributes:
        times: of its boxes, float64 (N,), seconds, ascending.
        low, high: corners of its boxes, float64 (N, 2).
        sides: of all of the object as far as was seen, float64 (2,).
        label: of the track.
    """

    times: Array
    low: Array
    high: Array
    sides: Array
    label: str

    @classmethod
    def of(cls, one: Track, frame_results: Sequence[FrameResult]) -> "Piece":
        """Return what was seen of a track."""
        found = [Found.of(place, frame_results[frame].detections[place]) for frame, place in one.boxes]
        times = np.array([frame_results[frame].time_s or 0.0 for frame, _ in one.boxes])
        low, high = np.array([box.low for box in found]), np.array([box.high for box in found])
        return cls(times, low, high, np.quantile(high - low, FULL, axis=0), one.label)

    @property
    def begin(self) -> float:
        """When it was seen first, seconds."""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """When it was seen last, seconds."""
        return float(self.times[-1])

    def at(self, times: Array) -> Array:
        """Return the middle of its box at times, float64 (M,), the first or last one's before and after: (M, 2)."""
        middles = (self.low + self.high) / 2
        return np.stack([np.interp(times, self.times, middles[:, axis]) for axis in (0, 1)], axis=1)

    def between(self, begin: float, end: float) -> "Piece":
        """Return what was seen from a time to another."""
        when = (self.times >= begin) & (self.times <= end)
        return replace(self, times=self.times[when], low=self.low[when], high=self.high[when])

    def with_all_of(self, other: "Piece") -> "Piece":
        """Return the boxes of both."""
        pairs = [(self.times, other.times), (self.low, other.low), (self.high, other.high)]
        times, low, high = (np.concatenate(pair) for pair in pairs)
        return replace(self, times=times, low=low, high=high)


def joined(tracks: Sequence[Track], frame_results: Sequence[FrameResult]) -> list[Track]:
    """Put tracks together that are pieces of one object, by the cheapest assignment, until none are."""
    tracks = sorted(tracks, key=lambda one: one.boxes)
    while True:
        chosen = assign(misfits([Piece.of(one, frame_results) for one in tracks]), MOST_MISFIT)
        pairs = {place: later for place, later in enumerate(chosen) if later >= 0}
        if not pairs:
            return tracks
        heads = sorted(set(range(len(tracks))) - set(pairs.values()))
        tracks = [chained(tracks, place, pairs, frame_results) for place in heads]


def chained(
    tracks: Sequence[Track], place: int, later: Mapping[int, int], frame_results: Sequence[FrameResult]
) -> Track:
    """Return a track with those that follow it, of which `later` has the place of each."""
    chain = [place]
    while chain[-1] in later:
        chain.append(later[chain[-1]])
    boxes: dict[int, int] = {}
    votes: dict[str, float] = {}
    for one in (tracks[link] for link in chain):
        votes = {label: votes.get(label, 0.0) + one.votes.get(label, 0.0) for label in (*votes, *one.votes)}
        for frame, box in one.boxes:
            detections = frame_results[frame].detections
            boxes[frame] = max(boxes.get(frame, box), box, key=lambda number: detections[number].score)
    return replace(tracks[place], boxes=sorted(boxes.items()), votes=votes)


def misfits(pieces: Sequence[Piece]) -> Array:
    """Return how little each two pieces are one: float64 (N, N), the earlier in the rows; sorted by their begins."""
    costs = np.full((len(pieces), len(pieces)), NEVER)
    for row, place in np.argwhere(near(pieces)).tolist():
        costs[row, place] = misfit(pieces[row], pieces[place])
    return costs


def near(pieces: Sequence[Piece]) -> NDArray[np.bool_]:
    """Tell which pieces, (N, N), may be one by where the earlier one is when the later one begins, and by the times."""
    begin, end = np.array([one.begin for one in pieces]), np.array([one.end for one in pieces])
    first = np.array([(one.low[0] + one.high[0]) / 2 for one in pieces]).reshape(-1, 2)
    last = np.array([one.at(begin) for one in pieces]).reshape(len(pieces), len(pieces), 2)
    size = np.array([one.sides.max() for one in pieces])
    labels = np.array([one.label for one in pieces])
    gap, both = begin - end[:, None], np.minimum(end, end[:, None]) - begin
    in_time = (gap <= HIDDEN_SECONDS) & (both <= np.where(labels == labels[:, None], BOTH_SECONDS, 0.0))
    reach = (REACH * np.maximum(gap, 0) + 1) * np.maximum(size, size[:, None])
    found: NDArray[np.bool_] = in_time & (abs(first - last).max(axis=2, initial=0) <= reach)
    return np.triu(found, 1)


def misfit(one: Piece, later: Piece) -> float:
    """Return how much less one way fits two pieces than a way for each, more if they have different labels."""
    begin = min(one.end, later.begin) - NEAR_SECONDS
    end = max(min(one.end, later.end), later.begin) + NEAR_SECONDS
    sides = np.maximum(one.sides, later.sides)
    pieces = one.between(begin, end), later.between(begin, end)
    more = off_way(pieces[0].with_all_of(pieces[1]), sides) - sum(off_way(piece, sides) for piece in pieces)
    return more + (OTHER_LABEL if one.label != later.label else 0.0)


def off_way(piece: Piece, sides: Array) -> float:
    """Return how far boxes are from the straight way at an even speed that fits them best, squared, in deviations.

    A box that is cut fits anywhere that the object covers it: the way is found again for the nearest such places.
    """
    middles, shown = (piece.low + piece.high) / 2, piece.high - piece.low
    play = np.where(shown < CUT * sides, np.maximum(sides - shown, 0) / 2, 0)
    times = (piece.times - piece.times.mean())[:, None]
    slow = (MEASURED / USUAL_SPEED) ** 2
    places = middles
    for _ in range(ROUNDS if play.any() else 1):
        velocity = (times * places).sum(axis=0) / ((times**2).sum() + slow)
        way = places.mean(axis=0) + times * velocity
        places = np.clip(way, middles - play, middles + play)
    off = ((way - places) ** 2).sum() + slow * (velocity**2).sum()
    return float(off / (MEASURED * sides.max()) ** 2)


# ---- what counts -----------------------------------------------------------------------------------------------------


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
