"""Boxes (x1, y1, x2, y2), in any unit, and which of those that a model names are right."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

Box = tuple[float, float, float, float]

LEAST_IOU = 0.5  # of a box that is right


class Labelled(Protocol):
    """A box and what is in it."""

    @property
    def label(self) -> str: ...

    @property
    def box(self) -> Sequence[float]: ...


def common_area(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two boxes share."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def area(box: Sequence[float]) -> float:
    """The area of a box."""
    return (box[2] - box[0]) * (box[3] - box[1])


def covered(a: Sequence[float], b: Sequence[float]) -> float:
    """The common area of two boxes as a share of the smaller one's."""
    return common_area(a, b) / min(area(a), area(b))


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union, 0 for boxes without an area."""
    common = common_area(a, b)
    return common / max(area(a) + area(b) - common, 1e-12)


def claims(found: Iterable[Labelled], there: Iterable[Labelled]) -> Iterator[bool]:
    """Whether each box that is found is something that is there, and that no earlier one has claimed."""
    left = list(there)
    for one in found:
        fitting = [other for other in left if other.label == one.label and iou(one.box, other.box) >= LEAST_IOU]
        if fitting:
            left.remove(max(fitting, key=lambda other: iou(one.box, other.box)))
        yield bool(fitting)
