"""Boxes (x1, y1, x2, y2): sides, areas, overlaps."""

from florence_tagger.schemas import Box


def sides_of(box: Box) -> tuple[float, float]:
    """Return the width and the height of a box."""
    return box[2] - box[0], box[3] - box[1]


def area(box: Box) -> float:
    """Return the area of a box, 0 of what is none."""
    width, height = sides_of(box)
    return max(width, 0) * max(height, 0)


def common_area(box: Box, other: Box) -> float:
    """Return the area that two boxes share."""
    return area((max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3])))


def share_within(box: Box, other: Box) -> float:
    """Return the share of a box that lies in another; 1 of a box without an area."""
    return common_area(box, other) / area(box) if area(box) else 1.0


def iou(box: Box, other: Box) -> float:
    """Return the intersection over union of two boxes."""
    common = common_area(box, other)
    return common / max(area(box) + area(other) - common, 1e-9)
