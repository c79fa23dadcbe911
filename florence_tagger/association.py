"""Detections in the frames of a video -> tracks, by associating the detections of each frame with the tracks so far.

The method is ByteTrack's (Zhang et al., ECCV 2022): a Kalman filter predicts the center of each track, boxes with a
high score are assigned to tracks first, and boxes with a low score are assigned to the remaining tracks. Three things
differ. All noise is in seconds, because frames may be any time apart. Costs are the filter's distances, because the
boxes of a fast object need not overlap. A box that is smaller than its object is treated as a part of it, with one edge
that is the object's own, because an object behind something or at the edge of the picture is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from florence_tagger.kalman import MEASUREMENT_NOISE, Array, KalmanState
from florence_tagger.schemas import Detection, FrameResult

MAX_LOST_SECONDS = 1.1  # for which a track stays alive without a box; longer than the step of one frame a second

MIN_FULL_SHARE = 0.85  # of the object's side: a box with a shorter side shows a part of the object
SIDES_GAIN = 0.5  # of the update of an object's sides by a box that shows all of it
LOG_SIDE_NOISE = 0.5  # standard deviation of the logarithm of a side

GATING_DISTANCE = 20.0  # between a track and its box, squared, in standard deviations
WEAK_GATING_DISTANCE = 4.0  # the same for a box with a low score
LABEL_COST = 10.0  # added if the labels differ
FORBIDDEN_COST = 1e6  # above the limit of every assignment


@dataclass(frozen=True)
class Observation:
    """A detection in a frame, with the corners of its box.

    Attributes:
        index: of the detection in its frame.
        low, high: corners with the smaller and the larger coordinates, float64 (2,), pixels.
    """

    index: int
    detection: Detection
    low: Array
    high: Array

    @classmethod
    def from_detection(cls, index: int, detection: Detection) -> "Observation":
        """Return a detection with its corners in order; its sides are at least one pixel."""
        x1, y1, x2, y2 = detection.box
        low = np.array([min(x1, x2), min(y1, y2)])
        return cls(index, detection, low, np.maximum([max(x1, x2), max(y1, y2)], low + 1))

    @property
    def sides(self) -> Array:
        """Width and height."""
        return self.high - self.low


@dataclass(eq=False)
class Track:
    """Boxes of one object, and the state of its motion after the last of them.

    Attributes:
        state: at `time_s`.
        sides: width and height of the complete object, float64 (2,).
        time_s: time of the last box.
        boxes: index of the frame and of the detection in it, for each box.
        votes: sum of the scores of the boxes with each label.
    """

    state: KalmanState
    sides: Array
    time_s: float
    boxes: list[tuple[int, int]]
    votes: dict[str, float]

    @classmethod
    def start(cls, observation: Observation, frame_index: int, time_s: float) -> "Track":
        """Return a new track that begins with an observation."""
        state = KalmanState.initial((observation.low + observation.high) / 2, observation.sides.max())
        votes = {observation.detection.label: observation.detection.score}
        return cls(state, observation.sides, time_s, [(frame_index, observation.index)], votes)

    @property
    def label(self) -> str:
        """Label with the largest sum of scores."""
        return max(self.votes, key=lambda label: (self.votes[label], label))

    def predict(self, time_s: float) -> KalmanState:
        """Return the predicted state at a time."""
        return self.state.predict(time_s - self.time_s, self.sides.max())

    def update(
        self, observation: Observation, center: Array, predicted: KalmanState, frame_index: int, time_s: float
    ) -> None:
        """Add an observation to the track and correct the predicted state by its center."""
        self.state = predicted.update(center, self.sides.max())
        is_full = observation.sides >= MIN_FULL_SHARE * self.sides
        self.sides = self.sides + np.where(is_full, SIDES_GAIN * (observation.sides - self.sides), 0)
        self.time_s = time_s
        self.boxes.append((frame_index, observation.index))
        label, score = observation.detection.label, observation.detection.score
        self.votes[label] = self.votes.get(label, 0.0) + score


def build_tracks(frame_results: Sequence[FrameResult], min_score: float) -> list[Track]:
    """Return the tracks in the order of their first frames; boxes with scores below `min_score` start none."""
    tracks: list[Track] = []
    bounds = bounds_of(frame_results)
    alive: list[Track] = []
    for frame_index, frame_result in enumerate(frame_results):
        time_s = frame_result.time_s or 0.0
        observations = [
            Observation.from_detection(index, detection) for index, detection in enumerate(frame_result.detections)
        ]
        strong = [observation for observation in observations if observation.detection.score >= min_score]
        weak = [observation for observation in observations if observation.detection.score < min_score]
        alive = [track for track in alive if time_s - track.time_s <= MAX_LOST_SECONDS]
        lost, unmatched = associate(alive, strong, frame_index, time_s, GATING_DISTANCE)
        lost, _ = associate(lost, weak, frame_index, time_s, WEAK_GATING_DISTANCE)
        ended = [track for track in lost if is_outside(track.predict(time_s).center, bounds)]
        alive = [track for track in alive if track not in ended]
        started = [Track.start(observation, frame_index, time_s) for observation in unmatched]
        tracks += started
        alive += started
    return tracks


def bounds_of(frame_results: Sequence[FrameResult]) -> tuple[Array, Array]:
    """Return the corners of the box around all boxes, float64 (2,) each."""
    boxes = [detection.box for frame_result in frame_results for detection in frame_result.detections]
    corners = np.array(boxes or [(0.0, 0.0, 0.0, 0.0)]).reshape(-1, 2)
    return corners.min(axis=0), corners.max(axis=0)


def is_outside(center: Array, bounds: tuple[Array, Array]) -> bool:
    """Return whether a point is outside the box with these corners."""
    return bool((center < bounds[0]).any() or (center > bounds[1]).any())


def associate(
    tracks: Sequence[Track],
    observations: Sequence[Observation],
    frame_index: int,
    time_s: float,
    gating_distance: float,
) -> tuple[list[Track], list[Observation]]:
    """Assign observations to tracks and update these; return the tracks and observations that remain."""
    if not tracks or not observations:
        return list(tracks), list(observations)
    states = [track.predict(time_s) for track in tracks]
    centers, costs = association_costs(tracks, states, observations)
    matches = assign(costs, gating_distance)
    for row, column in enumerate(matches):
        if column >= 0:
            tracks[row].update(observations[column], centers[row, column], states[row], frame_index, time_s)
    matched = set(matches)
    return (
        [track for track, column in zip(tracks, matches, strict=True) if column < 0],
        [observation for column, observation in enumerate(observations) if column not in matched],
    )


def association_costs(
    tracks: Sequence[Track], states: Sequence[KalmanState], observations: Sequence[Observation]
) -> tuple[Array, Array]:
    """Return the center of each object if an observation shows it or a part of it, and the cost of this association.

    Along an axis on which a box is cut, one of its edges is the object's: the one that is nearer to its predicted
    position. The cost is a squared distance in standard deviations, plus a cost of larger boxes and of other labels. A
    box of another label must lie on the object, because all distances are small while the velocity is unknown.

    Returns:
        centers, float64 (tracks, observations, 2), and costs, float64 (tracks, observations).
    """
    low = np.array([observation.low for observation in observations])
    high = np.array([observation.high for observation in observations])
    sides = np.array([track.sides for track in tracks])[:, None]
    predicted = np.array([state.center for state in states])[:, None]
    by_high, by_low = high - sides / 2, low + sides / 2
    nearer = np.where(abs(by_high - predicted) < abs(by_low - predicted), by_high, by_low)
    centers = np.where(high - low < MIN_FULL_SHARE * sides, nearer, (low + high) / 2)
    variances = np.array([[state.center_variance] for state in states])
    variances = variances + (MEASUREMENT_NOISE * sides.max(axis=2)) ** 2
    growth = np.log(np.maximum((high - low) / sides, 1)) / LOG_SIDE_NOISE
    costs = ((centers - predicted) ** 2).sum(axis=2) / variances + (growth**2).sum(axis=2)
    labels = np.array([observation.detection.label for observation in observations])
    differ = np.array([track.label for track in tracks])[:, None] != labels
    beside = (abs(centers - predicted) > sides / 2).any(axis=2)
    return centers, costs + np.where(differ, np.where(beside, FORBIDDEN_COST, LABEL_COST), 0.0)


def assign(costs: Array, max_cost: float) -> list[int]:
    """Return the column of each row in the assignment with the least total cost, -1 for a row without one.

    No pair costs more than `max_cost`. Rows and columns without a cheaper pair are removed first, which keeps crowds
    fast.

    Args:
        costs: float64 (rows, columns).
        max_cost: limit for a pair, and the cost of a row without a column.
    """
    from lap import lapjv  # imported here, because only distinct counts need it

    rows, columns = np.flatnonzero((costs < max_cost).any(axis=1)), np.flatnonzero((costs < max_cost).any(axis=0))
    matches = np.full(len(costs), -1)
    if len(rows):
        _, reduced, _ = lapjv(costs[np.ix_(rows, columns)], extend_cost=True, cost_limit=max_cost)
        matches[rows] = np.where(reduced < 0, -1, columns[reduced])
    return [int(column) for column in matches]
