"""Regions to counts and probabilities, document by document."""

import pytest

from florence_tagger.counting import above, count_document, highest, label_probabilities
from florence_tagger.schemas import Detection, FrameResult

BOX = (0.0, 0.0, 1.0, 1.0)


def frame_result(found: dict[str, list[float]], page: int | None = None, time_s: float | None = None) -> FrameResult:
    """A frame with detections of these scores by label."""
    detections = tuple(Detection(label, BOX, score) for label, scores in found.items() for score in scores)
    return FrameResult(detections, page=page, time_s=time_s)


FIRST, SECOND = {"car": [0.9, 0.4], "dog": [0.6]}, {"car": [0.8], "bus": [0.3, 0.2]}


def test_pages_add_up_and_frames_have_a_peak() -> None:
    pages = [frame_result(FIRST, page=1), frame_result(SECOND, page=2)]
    assert count_document(pages) == {"car": 3, "dog": 1, "bus": 2}
    frames = [frame_result(FIRST, time_s=0.0), frame_result(SECOND, time_s=1.0)]
    assert count_document(frames) == {"car": 2, "dog": 1, "bus": 2}
    assert count_document([frame_result(FIRST)]) == {"car": 2, "dog": 1}
    assert count_document([]) == {}


@pytest.mark.parametrize(
    ("min_score", "counts"),
    [(0.0, {"car": 2, "dog": 1}), (0.4, {"car": 2, "dog": 1}), (0.5, {"car": 1, "dog": 1}), (0.95, {})],
)
def test_weak_regions_are_left_out_before_counting(min_score: float, counts: dict[str, int]) -> None:
    assert count_document(above([frame_result(FIRST)], min_score)) == counts


def test_a_label_is_as_probable_as_its_strongest_region() -> None:
    assert label_probabilities([frame_result(FIRST), frame_result(SECOND)]) == {"car": 0.9, "dog": 0.6, "bus": 0.3}


def test_the_highest_come_first_and_equal_ones_by_the_alphabet() -> None:
    assert highest({"b": 2, "a": 2, "c": 3, "d": 1}, 3) == ["c", "a", "b"]
    assert highest({"b": 1, "a": 1}, 0) == ["a", "b"]
