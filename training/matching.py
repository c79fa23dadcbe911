"""Which of the boxes (x1, y1, x2, y2) that a model names are right, and how far things cover each other."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from florence_tagger.geometry import area, common_area, iou

MIN_IOU = 0.5  # of a box that is right


class Labelled(Protocol):
    """A box and what is in it."""

    @property
    def label(self) -> str: ...

    @property
    def box(self) -> Sequence[float]: ...


def covered(a: Sequence[float], b: Sequence[float]) -> float:
    """The common area of two boxes as a share of the smaller one's."""
    return common_area(a, b) / min(area(a), area(b))


def claims(found: Iterable[Labelled], there: Iterable[Labelled]) -> Iterator[bool]:
    """Whether each box that is found is something that is there, and that no earlier one has claimed."""
    left = list(there)
    for one in found:
        fitting = [other for other in left if other.label == one.label and iou(one.box, other.box) >= MIN_IOU]
        if fitting:
            left.remove(max(fitting, key=lambda other: iou(one.box, other.box)))
        yield bool(fitting)
