"""Boxes from frame to frame -> tracks: made-up boxes whose tracks are known, and independent oracles for both parts."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence_tagger.association import assign
from florence_tagger.counting import count_document
from florence_tagger.kalman import INITIAL_VELOCITY_NOISE, MEASUREMENT_NOISE, PROCESS_NOISE, KalmanState
from florence_tagger.schemas import Detection, FrameResult, Rules, VideoCount
from florence_tagger.stitching import (
    MAX_STITCHING_COST,
    VELOCITY_NOISE,
    Tracklet,
    line_residual,
    stitching_cost,
)
from florence_tagger.tracking import track

DISTINCT = Rules(video_count=VideoCount.DISTINCT)
SIZE = 20.0
FPS = 8

Mark = tuple[str, float, float, float]  # label, centre x and y, score


def detection(label: str, x: float, y: float, score: float = 0.9) -> Detection:
    """A square box around a point."""
    return Detection(label, (x - SIZE / 2, y - SIZE / 2, x + SIZE / 2, y + SIZE / 2), score)


def video(frames: list[list[Detection]], fps: float = FPS) -> list[FrameResult]:
    """Frames at an even rate."""
    return [FrameResult(tuple(found), time_s=index / fps) for index, found in enumerate(frames)]


def counted(frames: list[list[Detection]], fps: float = FPS) -> dict[str, int]:
    """How many different ones pass."""
    return count_document(track(video(frames, fps)), DISTINCT)


def passing(
    count: int, x: float = 0.0, y: float = 50.0, step: float = 5.0, label: str = "car"
) -> list[list[Detection]]:
    """One thing on its way to the right, or to the left."""
    return [[detection(label, x + step * index, y)] for index in range(count)]


def together(*ways: list[list[Detection]]) -> list[list[Detection]]:
    """Several ways in one video."""
    return [[one for found in frames for one in found] for frames in zip(*ways, strict=True)]


def test_what_passes_one_after_the_other_counts_each_time() -> None:
    gone: list[list[Detection]] = [[]] * 16
    frames = passing(12) + gone + passing(12) + gone + passing(12)
    assert counted(frames) == {"car": 3}
    assert count_document(video(frames)) == {"car": 1}


def test_two_that_cross_are_two_and_keep_their_numbers() -> None:
    frames = together(passing(24), passing(24, x=115.0, y=54.0, step=-5.0))
    tracks = track(video(frames))
    for place in (0, 1):
        assert len({one.detections[place].track for one in tracks}) == 1
    assert counted(frames) == {"car": 2}


@pytest.mark.parametrize(("hidden", "count"), [(4, 1), (8, 1), (16, 2)])
def test_a_lost_track_lives_for_a_time_in_seconds(hidden: int, count: int) -> None:
    frames = passing(40)
    frames[12 : 12 + hidden] = [[]] * hidden
    assert counted(frames) == {"car": count}
    assert counted(frames[::2], FPS / 2) == {"car": count}


def test_a_weak_box_keeps_a_track_and_begins_none() -> None:
    weak = [[detection("car", 5.0 * index, 50.0, 0.3)] for index in range(30)]
    frames = passing(30)
    frames[8:20] = weak[8:20]
    assert counted(frames) == {"car": 1}
    beside = together(passing(30), [[detection("car", 100.0, 5.0, 0.3)] if index % 2 else [] for index in range(30)])
    assert counted(beside) == {"car": 1}


def test_a_label_that_changes_for_some_frames_is_the_same_thing() -> None:
    frames = passing(20)
    frames[6:9] = passing(20, label="bus")[6:9]
    tracks = track(video(frames))
    assert {(one.label, one.track) for found in tracks for one in found.detections} == {("car", 1)}


def test_a_box_that_is_there_for_a_moment_does_not_count() -> None:
    frames = together(passing(20), [[detection("dog", 10.0, 150.0)] if index == 7 else [] for index in range(20)])
    tracks = track(video(frames))
    assert count_document(tracks, DISTINCT) == {"car": 1}
    assert [one.track for one in tracks[7].detections] == [1, None]


def test_what_goes_behind_something_is_cut_and_stays_one() -> None:
    frames = [
        [replaced] if (replaced := seen_beside(one[0], 60.0, 90.0)) else [] for one in passing(32, x=10.0, step=4.0)
    ]
    assert any(not found for found in frames[8:24])
    assert counted(frames) == {"car": 1}


@pytest.mark.parametrize("speed", [3.5, 5.0, 7.0])  # 1.4 to 2.8 sides a second
@pytest.mark.parametrize("start", [-60.0, -20.0, 0.0])
def test_what_comes_in_beside_something_is_one(speed: float, start: float) -> None:
    assert counted(behind(start, speed, 60, begin=20.0, end=50.0, edge=0.0)) == {"car": 1}


@pytest.mark.parametrize("speed", [0.6, 1.0])
def test_what_shows_on_both_sides_of_something_is_one_and_has_one_box_a_frame(speed: float) -> None:
    frames = behind(0.0, speed, 90, begin=30.0, end=40.0)
    assert any(len(found) == 2 for found in frames)
    tracks = track(video(frames))
    assert count_document(tracks, DISTINCT) == {"car": 1}
    assert all(sum(one.track == 1 for one in found.detections) <= 1 for found in tracks)


@pytest.mark.parametrize(("apart", "speed"), [(25.0, 3.0), (60.0, 3.0), (25.0, 0.5)])
def test_what_follows_something_alike_out_of_the_same_place_is_another(apart: float, speed: float) -> None:
    first, second = (behind(start, speed, 60, begin=60.0, end=90.0) for start in (20.0, 20.0 - apart))
    assert counted(together(first, second)) == {"car": 2}


def test_tracklets_of_other_labels_are_stitched_only_one_after_the_other() -> None:
    bus = [[Detection("bus", (5.0 * index, 0.0, 5.0 * index + 60, 60.0), 0.9)] for index in range(24)]
    before = [[detection("person", 5.0 * index + 30, 30.0)] if 12 <= index < 20 else [] for index in range(24)]
    assert counted(together(bus, before)) == {"bus": 1, "person": 1}


def behind(
    start: float, speed: float, count: int, begin: float, end: float, edge: float = -np.inf
) -> list[list[Detection]]:
    """What is seen of a thing on its way to the right, past a band, in a picture that begins at an edge."""
    frames = []
    for x in start + speed * np.arange(count):
        parts = (max(x, edge), min(x + SIZE, begin)), (max(x, edge, end), x + SIZE)
        frames.append([Detection("car", (low, 40.0, high, 60.0), 0.9) for low, high in parts if high - low > 3])
    return frames


def seen_beside(one: Detection, begin: float, end: float) -> Detection | None:
    """What is seen of a box that passes behind a band."""
    x1, y1, x2, y2 = one.box
    left, right = (x1, min(x2, begin)), (max(x1, end), x2)
    low, high = left if left[1] - left[0] > right[1] - right[0] else right
    return Detection(one.label, (low, y1, high, y2), one.score) if high - low > 3 else None


def test_of_one_frame_a_second_one_box_is_enough() -> None:
    frames = [[detection("car", 0, 50)], [detection("dog", 200, 50)], [detection("cat", 0, 150)]]
    assert counted(frames, fps=1) == {"car": 1, "dog": 1, "cat": 1}


@pytest.mark.parametrize("late", [0.0, 0.01])
def test_frames_of_about_one_a_second_are_followed(late: float) -> None:
    frames = video(passing(6), fps=1)
    tracks = track([replace(one, time_s=(1 + late) * (one.time_s or 0.0)) for one in frames])
    assert count_document(tracks, DISTINCT) == {"car": 1}


def test_all_count_in_one_frame() -> None:
    assert counted([[detection("car", 0, 50), detection("car", 60, 50, 0.85)]]) == {"car": 2}


def test_frames_may_have_nothing_and_boxes_no_area_or_score() -> None:
    assert counted([[], []]) == {}
    assert counted([]) == {}
    assert counted([[Detection("car", (5.0, 5.0, 5.0, 5.0), 0.0)]] * 9) == {"car": 1}


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_assign_is_the_cheapest_of_all_assignments(rows: int, columns: int, seed: int) -> None:
    costs, max_cost = np.random.default_rng(seed).uniform(0, 10, (rows, columns)), 6.0
    padded = np.hstack([costs, np.full((rows, rows), max_cost)])  # one more column for each row without a match
    best = min(sum(padded[range(rows), order]) for order in permutations(range(columns + rows), rows))
    matches = assign(costs, max_cost)
    total = sum(max_cost if column < 0 else costs[row, column] for row, column in enumerate(matches))
    matched = [column for column in matches if column >= 0]
    assert len(set(matched)) == len(matched)
    assert all(costs[row, column] <= max_cost for row, column in enumerate(matches) if column >= 0)
    assert total == pytest.approx(best)


def test_kalman_state_is_that_of_the_textbook_filter() -> None:
    seconds, size, measured = 0.3, 20.0, np.array([12.0, -3.0])
    ours = KalmanState.initial(np.zeros(2), size).predict(seconds, size).update(measured, size)
    ours = ours.predict(seconds, size).update(2 * measured, size)
    state = np.zeros(2)
    covariance = np.diag([(MEASUREMENT_NOISE * size) ** 2, (INITIAL_VELOCITY_NOISE * size) ** 2])
    transition, observation = np.array([[1, seconds], [0, 1]]), np.array([[1.0, 0.0]])
    noise = (PROCESS_NOISE * size) ** 2 * np.array([[seconds**3 / 3, seconds**2 / 2], [seconds**2 / 2, seconds]])
    for x in (measured[0], 2 * measured[0]):
        state, covariance = transition @ state, transition @ covariance @ transition.T + noise
        innovation_covariance = observation @ covariance @ observation.T + (MEASUREMENT_NOISE * size) ** 2
        gain = covariance @ observation.T / innovation_covariance
        state, covariance = state + gain[:, 0] * (x - state[0]), (np.eye(2) - gain @ observation) @ covariance
    assert [ours.center[0], ours.velocity[0]] == pytest.approx(state.tolist())
    variances = [ours.center_variance, ours.covariance, ours.velocity_variance]
    assert variances == pytest.approx([*covariance[0], covariance[1, 1]])


def tracklet(times: list[float], centers: list[tuple[float, float]], label: str = "car") -> Tracklet:
    """Return a tracklet of square boxes around points."""
    points = np.array(centers)
    return Tracklet(np.array(times), points - SIZE / 2, points + SIZE / 2, np.full(2, SIZE), label)


def test_line_residual_is_that_of_ridge_regression_for_full_boxes() -> None:
    rng = np.random.default_rng(1)
    times, centers = np.sort(rng.uniform(0, 2, 9)), rng.uniform(0, 100, (9, 2))
    full = tracklet(times.tolist(), [(x, y) for x, y in centers.tolist()])
    ridge = MEASUREMENT_NOISE / VELOCITY_NOISE
    design = np.vstack([np.stack([np.ones(9), times - times.mean()], axis=1), [[0.0, ridge]]])
    _, residuals, _, _ = np.linalg.lstsq(design, np.vstack([centers, np.zeros((1, 2))]))
    expected = residuals.sum() / (MEASUREMENT_NOISE * SIZE) ** 2
    assert line_residual(full, np.full(2, SIZE)) == pytest.approx(expected)


def test_a_cut_box_fits_wherever_its_object_covers_it() -> None:
    times, sides = [0.0, 0.1, 0.2, 0.3], np.full(2, SIZE)
    full = tracklet(times, [(0.0, 0.0), (5.0, 0.0), (10.0, 0.0), (15.0, 0.0)])
    low, high = full.low.copy(), full.high.copy()
    low[0, 0], high[3, 0] = low[0, 0] + 12, high[3, 0] - 12
    residual = line_residual(full, sides)
    assert line_residual(replace(full, low=low, high=high), sides) == pytest.approx(residual, abs=0.5)
    low[0, 0], high[0, 0] = low[0, 0] - 60, high[0, 0] - 60
    assert line_residual(replace(full, low=low, high=high), sides) > MAX_STITCHING_COST


def test_tracklets_on_one_line_are_stitched_and_those_on_two_are_not() -> None:
    first = tracklet([0.0, 0.125, 0.25, 0.375, 0.5], [(5.0 * step, 50.0) for step in range(5)])
    later = [1.0, 1.125, 1.25, 1.375, 1.5]
    same = tracklet(later, [(40 + 5.0 * step, 50.0) for step in range(5)])
    beside = tracklet(later, [(40 + 5.0 * step, 70.0) for step in range(5)])
    back = tracklet(later, [(20 - 5.0 * step, 50.0) for step in range(5)])
    assert stitching_cost(first, same) < 1
    assert stitching_cost(first, beside) > MAX_STITCHING_COST
    assert stitching_cost(first, back) > MAX_STITCHING_COST
