"""Multi-object tracking: detections in the frames of a video -> the same detections with the numbers of their tracks.

Detections are associated to tracks from frame to frame, tracklets of one object are stitched, and tracks with enough
evidence are confirmed and numbered, one for each object that passes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from florence_tagger.association import Track, build_tracks
from florence_tagger.schemas import FrameResult
from florence_tagger.stitching import stitch

# Scores are relative to the median score of the video, because the scores of models differ.
STRONG_SCORE = 0.75  # of a box that may start a track
CONFIRMING_SECONDS, CONFIRMING_BOXES = 0.65, 5.0  # with boxes of the median score; either confirms a track


def track(frame_results: Sequence[FrameResult]) -> tuple[FrameResult, ...]:
    """Return the frames of a video with the number and the label of its track for each box of a confirmed track."""
    scores = [detection.score for frame_result in frame_results for detection in frame_result.detections]
    median_score = float(np.median(scores or [1.0]))
    min_evidence = min_confirming_boxes([frame_result.time_s or 0.0 for frame_result in frame_results])
    tracks = stitch(build_tracks(frame_results, STRONG_SCORE * median_score), frame_results)
    confirmed = sorted(
        (candidate for candidate in tracks if evidence(candidate, frame_results, median_score) >= min_evidence),
        key=lambda candidate: candidate.boxes[0],
    )
    numbers = {
        box: (number, candidate.label) for number, candidate in enumerate(confirmed, 1) for box in candidate.boxes
    }
    return tuple(
        with_tracks(frame_result, [numbers.get((frame_index, i)) for i in range(len(frame_result.detections))])
        for frame_index, frame_result in enumerate(frame_results)
    )


def min_confirming_boxes(times: Sequence[float]) -> float:
    """Return the number of boxes with the median score that confirm a track; 0 if the video has one frame."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else np.inf
    return min(CONFIRMING_SECONDS / max(step, 1e-9), CONFIRMING_BOXES)


def evidence(candidate: Track, frame_results: Sequence[FrameResult], median_score: float) -> float:
    """Return the number of boxes with the median score that a track is worth; wrong labels have lower scores."""
    scores = (frame_results[frame_index].detections[index].score for frame_index, index in candidate.boxes)
    return sum(min(score / median_score, 1.0) ** 2 if median_score else 1.0 for score in scores)


def with_tracks(frame_result: FrameResult, tracks: Sequence[tuple[int, str] | None]) -> FrameResult:
    """Return a frame with the number and the label of a track set on each detection that has one."""
    pairs = zip(frame_result.detections, tracks, strict=True)
    detections = tuple(
        replace(detection, track=numbered[0], label=numbered[1]) if numbered else detection
        for detection, numbered in pairs
    )
    return replace(frame_result, detections=detections)
