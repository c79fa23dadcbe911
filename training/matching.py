"""Matching of detected boxes (x1, y1, x2, y2) with true ones, and the overlap of boxes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from florence_tagger.geometry import area, common_area, iou

MIN_IOU = 0.5  # of a detected box with the true one


class LabeledBox(Protocol):
    """A box and the label of the object in it."""

    @property
    def label(self) -> str:
        """The object's label."""

    @property
    def box(self) -> Sequence[float]:
        """The corners (x1, y1, x2, y2)."""


def overlap_share(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the common area of two boxes as a share of the smaller one's area."""
    return common_area(a, b) / min(area(a), area(b))


def match_detections(detections: Iterable[LabeledBox], truth: Iterable[LabeledBox]) -> Iterator[bool]:
    """Yield whether each detection matches a true object that no earlier detection matches."""
    unmatched = list(truth)
    for detection in detections:
        box = detection.box
        candidates = [item for item in unmatched if item.label == detection.label and iou(box, item.box) >= MIN_IOU]
        if candidates:
            unmatched.remove(max(candidates, key=lambda item: iou(box, item.box)))
        yield bool(candidates)
