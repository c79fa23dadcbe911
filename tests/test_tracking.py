"""Tracking: synthetic detections with known tracks, and independent oracles for association, filter and stitching."""

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


def detection(label: str, x: float, y: float, score: float = 0.9) -> Detection:
    """Return a detection with a square box around a point."""
    return Detection(label, (x - SIZE / 2, y - SIZE / 2, x + SIZE / 2, y + SIZE / 2), score)


def video(frames: list[list[Detection]], fps: float = FPS) -> list[FrameResult]:
    """Return frames at a constant rate."""
    return [FrameResult(tuple(detections), time_s=index / fps) for index, detections in enumerate(frames)]


def count_distinct(frames: list[list[Detection]], fps: float = FPS) -> dict[str, int]:
    """Return the number of different objects by label."""
    return count_document(track(video(frames, fps)), DISTINCT)


def moving(count: int, x: float = 0.0, y: float = 50.0, step: float = 5.0, label: str = "car") -> list[list[Detection]]:
    """Return the frames of one object that moves to the right, or with a negative step to the left."""
    return [[detection(label, x + step * index, y)] for index in range(count)]


def combine(*videos: list[list[Detection]]) -> list[list[Detection]]:
    """Return one video with the detections of several."""
    return [[item for detections in frames for item in detections] for frames in zip(*videos, strict=True)]


def test_track_counts_objects_one_after_the_other() -> None:
    empty: list[list[Detection]] = [[]] * 16
    frames = moving(12) + empty + moving(12) + empty + moving(12)
    assert count_distinct(frames) == {"car": 3}
    assert count_document(video(frames)) == {"car": 1}


def test_track_keeps_the_numbers_of_objects_that_cross() -> None:
    frames = combine(moving(24), moving(24, x=115.0, y=54.0, step=-5.0))
    tracks = track(video(frames))
    for index in (0, 1):
        assert len({frame_result.detections[index].track for frame_result in tracks}) == 1
    assert count_distinct(frames) == {"car": 2}


@pytest.mark.parametrize(("hidden", "count"), [(4, 1), (8, 1), (16, 2)])
def test_track_keeps_a_lost_track_for_some_seconds(hidden: int, count: int) -> None:
    frames = moving(40)
    frames[12 : 12 + hidden] = [[]] * hidden
    assert count_distinct(frames) == {"car": count}
    assert count_distinct(frames[::2], FPS / 2) == {"car": count}


def test_track_starts_no_track_with_a_weak_box() -> None:
    weak = [[detection("car", 5.0 * index, 50.0, 0.3)] for index in range(30)]
    frames = moving(30)
    frames[8:20] = weak[8:20]
    assert count_distinct(frames) == {"car": 1}
    beside = combine(moving(30), [[detection("car", 100.0, 5.0, 0.3)] if index % 2 else [] for index in range(30)])
    assert count_distinct(beside) == {"car": 1}


def test_track_corrects_a_label_that_changes_for_some_frames() -> None:
    frames = moving(20)
    frames[6:9] = moving(20, label="bus")[6:9]
    tracks = track(video(frames))
    assert {(item.label, item.track) for frame_result in tracks for item in frame_result.detections} == {("car", 1)}


def test_track_does_not_confirm_a_single_box() -> None:
    frames = combine(moving(20), [[detection("dog", 10.0, 150.0)] if index == 7 else [] for index in range(20)])
    tracks = track(video(frames))
    assert count_document(tracks, DISTINCT) == {"car": 1}
    assert [item.track for item in tracks[7].detections] == [1, None]


def test_track_follows_an_object_behind_a_band() -> None:
    frames = [[visible] if (visible := hide(item, 60.0, 90.0)) else [] for (item,) in moving(32, x=10.0, step=4.0)]
    assert any(not detections for detections in frames[8:24])
    assert count_distinct(frames) == {"car": 1}


@pytest.mark.parametrize("speed", [3.5, 5.0, 7.0])  # 1.4 to 2.8 sides a second
@pytest.mark.parametrize("start", [-60.0, -20.0, 0.0])
def test_track_counts_an_object_once_that_enters_beside_a_band(speed: float, start: float) -> None:
    assert count_distinct(behind(start, speed, 60, begin=20.0, end=50.0, edge=0.0)) == {"car": 1}


@pytest.mark.parametrize("speed", [0.6, 1.0])
def test_track_counts_an_object_once_on_both_sides_of_a_band(speed: float) -> None:
    frames = behind(0.0, speed, 90, begin=30.0, end=40.0)
    assert any(len(detections) == 2 for detections in frames)
    tracks = track(video(frames))
    assert count_document(tracks, DISTINCT) == {"car": 1}
    assert all(sum(item.track == 1 for item in frame_result.detections) <= 1 for frame_result in tracks)


@pytest.mark.parametrize(("apart", "speed"), [(25.0, 3.0), (60.0, 3.0), (25.0, 0.5)])
def test_track_separates_similar_objects_from_behind_one_band(apart: float, speed: float) -> None:
    first, second = (behind(start, speed, 60, begin=60.0, end=90.0) for start in (20.0, 20.0 - apart))
    assert count_distinct(combine(first, second)) == {"car": 2}


def test_tracklets_with_different_labels_at_the_same_time_are_not_stitched() -> None:
    bus = [[Detection("bus", (5.0 * index, 0.0, 5.0 * index + 60, 60.0), 0.9)] for index in range(24)]
    before = [[detection("person", 5.0 * index + 30, 30.0)] if 12 <= index < 20 else [] for index in range(24)]
    assert count_distinct(combine(bus, before)) == {"bus": 1, "person": 1}


def behind(
    start: float, speed: float, count: int, begin: float, end: float, edge: float = -np.inf
) -> list[list[Detection]]:
    """Return the visible parts of an object that moves to the right behind a band; the picture starts at `edge`."""
    frames = []
    for x in start + speed * np.arange(count):
        parts = (max(x, edge), min(x + SIZE, begin)), (max(x, edge, end), x + SIZE)
        frames.append([Detection("car", (low, 40.0, high, 60.0), 0.9) for low, high in parts if high - low > 3])
    return frames


def hide(item: Detection, begin: float, end: float) -> Detection | None:
    """Return the larger visible part of an object behind a band; None if less than 3 pixels are visible."""
    x1, y1, x2, y2 = item.box
    left, right = (x1, min(x2, begin)), (max(x1, end), x2)
    low, high = left if left[1] - left[0] > right[1] - right[0] else right
    return Detection(item.label, (low, y1, high, y2), item.score) if high - low > 3 else None


def test_track_confirms_one_box_at_one_frame_a_second() -> None:
    frames = [[detection("car", 0, 50)], [detection("dog", 200, 50)], [detection("cat", 0, 150)]]
    assert count_distinct(frames, fps=1) == {"car": 1, "dog": 1, "cat": 1}


@pytest.mark.parametrize("late", [0.0, 0.01])
def test_track_follows_objects_at_one_frame_a_second(late: float) -> None:
    frames = video(moving(6), fps=1)
    tracks = track([replace(frame_result, time_s=(1 + late) * (frame_result.time_s or 0.0)) for frame_result in frames])
    assert count_document(tracks, DISTINCT) == {"car": 1}


def test_track_confirms_all_boxes_of_a_single_frame() -> None:
    assert count_distinct([[detection("car", 0, 50), detection("car", 60, 50, 0.85)]]) == {"car": 2}


def test_track_accepts_frames_without_boxes_and_boxes_without_area_or_score() -> None:
    assert count_distinct([[], []]) == {}
    assert count_distinct([]) == {}
    assert count_distinct([[Detection("car", (5.0, 5.0, 5.0, 5.0), 0.0)]] * 9) == {"car": 1}


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_assign_equals_brute_force(rows: int, columns: int, seed: int) -> None:
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
