"""Tracklet stitching: tracks that may be fragments of an object's track -> one track for each object.

The Kalman filter of the association uses past boxes only. After the last frame, two tracklets are stitched if one
straight line at constant speed fits their boxes about as well as two lines do. This is a likelihood-ratio test on
squared distances in standard deviations, as in the association.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from florence_tagger.association import FORBIDDEN_COST, LABEL_COST, MIN_FULL_SHARE, Observation, Track, assign
from florence_tagger.kalman import MEASUREMENT_NOISE, Array
from florence_tagger.schemas import FrameResult

# In 124 clips of training.passing, 38 of the 39 pairs of tracklets with at least three boxes that belong to one object
# and have one label cost less than 10, and all pairs of two objects with one label cost more than 50. With 1 s instead
# of CONTEXT_SECONDS three of those cost less than 50, with 0.5 s 43. If the labels differ, 3 pairs of two objects cost
# less than 5.
MAX_GAP_SECONDS = 1.5  # for which an object may be hidden
CONTEXT_SECONDS = 1.5  # before and after a gap, in which boxes are fitted
MAX_OVERLAP_SECONDS = 3.0  # for which an object may show on both sides of what hides the rest, if the labels are equal
MAX_STITCHING_COST = 15.0  # of the fit of one line, beyond that of two
VELOCITY_NOISE = 3.0  # standard deviation of the velocity, in longer sides per second
MAX_SPEED = 8.0  # along an axis, in longer sides per second
FULL_SIDE_QUANTILE = 0.9  # of the sides of a tracklet's boxes, taken as the object's
MAX_TRACKLETS = 1000  # that are stitched: time and memory grow with the square of their number
FIT_ITERATIONS = 6  # of the line through boxes that are cut


@dataclass(frozen=True)
class Tracklet:
    """Boxes of a track as arrays.

    Attributes:
        times: of the boxes, float64 (N,), seconds, ascending.
        low, high: corners of the boxes, float64 (N, 2).
        sides: of the complete object as far as it was visible, float64 (2,).
        label: of the track.
    """

    times: Array
    low: Array
    high: Array
    sides: Array
    label: str

    @classmethod
    def from_track(cls, track: Track, frame_results: Sequence[FrameResult]) -> "Tracklet":
        """Return the boxes of a track."""
        observations = [
            Observation.from_detection(index, frame_results[frame_index].detections[index])
            for frame_index, index in track.boxes
        ]
        times = np.array([frame_results[frame_index].time_s or 0.0 for frame_index, _ in track.boxes])
        low = np.array([observation.low for observation in observations])
        high = np.array([observation.high for observation in observations])
        return cls(times, low, high, np.quantile(high - low, FULL_SIDE_QUANTILE, axis=0), track.label)

    @property
    def start(self) -> float:
        """Time of the first box, seconds."""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """Time of the last box, seconds."""
        return float(self.times[-1])

    def centers_at(self, times: Array) -> Array:
        """Return the interpolated centers at times, float64 (M,): (M, 2); before and after, the first or last one."""
        centers = (self.low + self.high) / 2
        return np.stack([np.interp(times, self.times, centers[:, axis]) for axis in (0, 1)], axis=1)

    def between(self, start: float, end: float) -> "Tracklet":
        """Return the tracklet with its boxes from `start` to `end` only."""
        selected = (self.times >= start) & (self.times <= end)
        return replace(self, times=self.times[selected], low=self.low[selected], high=self.high[selected])

    def concatenate(self, other: "Tracklet") -> "Tracklet":
        """Return the tracklet with the boxes of both."""
        pairs = [(self.times, other.times), (self.low, other.low), (self.high, other.high)]
        times, low, high = (np.concatenate(pair) for pair in pairs)
        return replace(self, times=times, low=low, high=high)


def stitch(tracks: Sequence[Track], frame_results: Sequence[FrameResult]) -> list[Track]:
    """Merge the tracks of each object, by repeated assignment with the least total cost."""
    tracks = sorted(tracks, key=lambda track: track.boxes)
    if len(tracks) > MAX_TRACKLETS:
        return tracks
    while True:
        costs = stitching_costs([Tracklet.from_track(track, frame_results) for track in tracks])
        successors = {index: later for index, later in enumerate(assign(costs, MAX_STITCHING_COST)) if later >= 0}
        if not successors:
            return tracks
        heads = sorted(set(range(len(tracks))) - set(successors.values()))
        tracks = [merge_chain(tracks, head, successors, frame_results) for head in heads]


def merge_chain(
    tracks: Sequence[Track], head: int, successors: Mapping[int, int], frame_results: Sequence[FrameResult]
) -> Track:
    """Return the track at index `head` merged with its chain of successors.

    If two of them have a box in the same frame, the one with the higher score is kept.
    """
    chain = [head]
    while chain[-1] in successors:
        chain.append(successors[chain[-1]])
    boxes: dict[int, int] = {}
    votes: dict[str, float] = {}
    for track in (tracks[index] for index in chain):
        votes = {label: votes.get(label, 0.0) + track.votes.get(label, 0.0) for label in (*votes, *track.votes)}
        for frame_index, box in track.boxes:
            detections = frame_results[frame_index].detections
            boxes[frame_index] = max(boxes.get(frame_index, box), box, key=lambda index: detections[index].score)
    return replace(tracks[head], boxes=sorted(boxes.items()), votes=votes)


def stitching_costs(tracklets: Sequence[Tracklet]) -> Array:
    """Return the cost of each pair, float64 (N, N), the earlier one in the rows; tracklets are sorted by start."""
    costs = np.full((len(tracklets), len(tracklets)), FORBIDDEN_COST)
    for row, column in np.argwhere(gate(tracklets)).tolist():
        costs[row, column] = stitching_cost(tracklets[row], tracklets[column])
    return costs


def gate(tracklets: Sequence[Tracklet]) -> NDArray[np.bool_]:
    """Return the pairs that times and positions allow, bool (N, N), the earlier tracklet in the rows.

    The later tracklet must start near the position of the earlier one at that time.
    """
    start = np.array([tracklet.start for tracklet in tracklets])
    end = np.array([tracklet.end for tracklet in tracklets])
    first = np.array([(tracklet.low[0] + tracklet.high[0]) / 2 for tracklet in tracklets]).reshape(-1, 2)
    last = np.array([tracklet.centers_at(start) for tracklet in tracklets])
    last = last.reshape(len(tracklets), len(tracklets), 2)
    size = np.array([tracklet.sides.max() for tracklet in tracklets])
    labels = np.array([tracklet.label for tracklet in tracklets])
    gap, overlap = start - end[:, None], np.minimum(end, end[:, None]) - start
    max_overlap = np.where(labels == labels[:, None], MAX_OVERLAP_SECONDS, 0.0)
    max_distance = (MAX_SPEED * np.maximum(gap, 0) + 1) * np.maximum(size, size[:, None])
    is_near = abs(first - last).max(axis=2, initial=0) <= max_distance
    allowed: NDArray[np.bool_] = (gap <= MAX_GAP_SECONDS) & (overlap <= max_overlap) & is_near
    return np.triu(allowed, 1)


def stitching_cost(earlier: Tracklet, later: Tracklet) -> float:
    """Return the residual of one line through two tracklets beyond that of a line each, plus a cost of other labels."""
    start = min(earlier.end, later.start) - CONTEXT_SECONDS
    end = max(min(earlier.end, later.end), later.start) + CONTEXT_SECONDS
    sides = np.maximum(earlier.sides, later.sides)
    parts = earlier.between(start, end), later.between(start, end)
    separate = sum(line_residual(part, sides) for part in parts)
    cost = line_residual(parts[0].concatenate(parts[1]), sides) - separate
    return cost + (LABEL_COST if earlier.label != later.label else 0.0)


def line_residual(tracklet: Tracklet, sides: Array) -> float:
    """Return the sum of squared distances, in standard deviations, of boxes from the best line at constant speed.

    If a box is cut, the object's center may be at any point from which the object covers the box. The line is then
    fitted repeatedly to the nearest of these points.
    """
    box_centers, box_sides = (tracklet.low + tracklet.high) / 2, tracklet.high - tracklet.low
    tolerance = np.where(box_sides < MIN_FULL_SHARE * sides, np.maximum(sides - box_sides, 0) / 2, 0)
    times = (tracklet.times - tracklet.times.mean())[:, None]
    ridge = (MEASUREMENT_NOISE / VELOCITY_NOISE) ** 2
    centers = box_centers
    for _ in range(FIT_ITERATIONS if tolerance.any() else 1):
        velocity = (times * centers).sum(axis=0) / ((times**2).sum() + ridge)
        line = centers.mean(axis=0) + times * velocity
        centers = np.clip(line, box_centers - tolerance, box_centers + tolerance)
    residual = ((line - centers) ** 2).sum() + ridge * (velocity**2).sum()
    return float(residual / (MEASUREMENT_NOISE * sides.max()) ** 2)
