"""Boxes (x1, y1, x2, y2), in any unit: sides, areas, overlaps."""

from collections.abc import Sequence


def sides_of(box: Sequence[float]) -> tuple[float, float]:
    """Return the width and the height of a box."""
    return box[2] - box[0], box[3] - box[1]


def area(box: Sequence[float]) -> float:
    """Return the area of a box, 0 for an empty one."""
    width, height = sides_of(box)
    return max(width, 0) * max(height, 0)


def common_area(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the area that two boxes share."""
    return area((max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3])))


def share_within(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the share of a box's area that lies in another box; 1 for a box without an area."""
    return common_area(box, other) / area(box) if area(box) else 1.0


def iou(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes, 0 for boxes without an area."""
    common = common_area(box, other)
    return common / max(area(box) + area(other) - common, 1e-12)
