"""A picture to overlapping tiles, and what was found in them to what is in the picture. Geometry alone.

A tile shows small things larger to the model. Each tile overlaps its neighbours, so that what one cuts another shows in
full. What no tile shows in full is taken from a look at the whole picture.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

import numpy as np
from numpy.typing import NDArray

from florence_tagger.geometry import area, iou, share_within, sides_of
from florence_tagger.schemas import MAX_TILES, Box, Detection, FrameResult

WHOLE = (1,)  # tiles a side of each picture of a document, the last for all further ones: none is cut

# Sizes are longer sides, as shares of the side of a square of the picture's area.
OVERLAP = 0.25  # of a tile's side, with each neighbour

EDGE = 0.02  # of a tile's side: a box that ends so near to the tile's edge may be cut by it
INSIDE = 0.99  # the least share of a box in a tile that shows it in full
LARGE = 0.5  # of a tile's side: of what is larger, the whole picture has the better view
SURE = 0.5  # the least score of what the whole picture is believed against the tiles
PART = 0.7  # the least share of a box in a large one that it may be a part of
GROUP = 0.6  # the least share of a box of the whole picture's that is but a group of small things
SMALL = 0.12  # of the picture's side: of what is smaller, tiles have the better view
RASTER = 20  # points a side that the share of a box is told by
UNSEEN = 0.04  # of the picture's side: what is smaller the whole picture may not name
SAME = 0.4  # the least IoU of two boxes of one object, in what both tiles show
WITHIN = 0.6  # the least share of a cut piece in another piece of the same object

# The rule of "auto": a picture is cut where half of its boxes are smaller than SMALL.
COMFORTABLE = 0.185  # it is cut so that their median is at least as large in a tile
TRUNCATED_TILES = 2  # a side, at least, where the answer was cut off
WORTHWHILE = 1.7  # times the pixels of a tile, that a picture must have to be cut

Boxes = NDArray[np.float64]  # (N, 4)


@dataclass(frozen=True)
class Look:
    """What was found in a tile; box and detections in pixels of the picture."""

    tile: Box
    detections: tuple[Detection, ...]

    def shows(self, box: Box, whole: Box) -> bool:
        """Whether all of a box is in the tile, and not cut by it; `whole` is the picture's."""
        return share_within(box, self.tile) >= INSIDE and not is_cut(box, self.tile, whole)

    def views(self, box: Box, whole: Box) -> bool:
        """Whether the tile shows a box in full, and not too near."""
        (width, height), (across, down) = sides_of(box), sides_of(self.tile)
        return width <= LARGE * across and height <= LARGE * down and self.shows(box, whole)


@dataclass(frozen=True)
class Piece:
    """A detection, the tile it was found in, and whether an edge of that may cut it."""

    detection: Detection
    tile: Box
    cut: bool = False


# ---- cutting ---------------------------------------------------------------------------------------------------------


def grid(width: int, height: int, side: int, least: tuple[int, int]) -> tuple[tuple[int, int, int, int], ...]:
    """Return the tiles of a picture, row by row: boxes of one size that cover it; none where it is not cut.

    Args:
        width, height: of the picture, pixels.
        side: tiles a side; fewer where they would have fewer than `least` pixels.
        least: (height, width) of the model's input, to which no tile is enlarged.
    """
    tile_width, columns = spread(width, side, least[1])
    tile_height, rows = spread(height, side, least[0])
    if len(columns) * len(rows) == 1:
        return ()
    return tuple((x, y, x + tile_width, y + tile_height) for y, x in product(rows, columns))


def spread(length: int, number: int, least: int) -> tuple[int, list[int]]:
    """Return the length of overlapping tiles and where each begins, `number` of them or fewer of `least` pixels."""
    tile = max(math.ceil(length / (number - (number - 1) * OVERLAP)), least)
    if tile >= length:
        return length, [0]
    needed = math.ceil((length - OVERLAP * tile) / (tile * (1 - OVERLAP)))
    steps = min(max(needed, 2), number) - 1
    return tile, [round(step * (length - tile) / steps) for step in range(steps + 1)]


def looks_at(side: int) -> int:
    """Return how many frames a picture of so many tiles a side takes at most: the whole, and the tiles."""
    return 1 if side == 1 else side**2 + 1


# ---- auto ------------------------------------------------------------------------------------------------------------


def plan_of(frame_results: Sequence[FrameResult], budget: int, least: tuple[int, int]) -> tuple[int, ...]:
    """Return the tiles a side for each picture of a document, by what was found in all of it.

    Args:
        frame results: of the whole pictures.
        budget: frames of a video that may be looked at beyond these, those with the most in them first; pages have no
            such limit.
        least: (height, width) of the model's input.
    """
    plan = [tiles_for(frame_result, least) for frame_result in frame_results]
    fullest = sorted(range(len(plan)), key=lambda place: -len(frame_results[place].detections))
    for place in fullest:
        if frame_results[place].time_s is not None:
            while plan[place] > 1 and plan[place] ** 2 > budget:
                plan[place] -= 1
            budget -= plan[place] ** 2 if plan[place] > 1 else 0
    return WHOLE if set(plan) == {1} else tuple(plan)


def tiles_for(frame_result: FrameResult, least: tuple[int, int]) -> int:
    """Return the tiles a side that a look at a whole picture calls for; `least` as of `plan_of`."""
    sides = TRUNCATED_TILES if frame_result.truncated else 1
    size = median_size(frame_result)
    if size < SMALL:
        zoom = COMFORTABLE / size  # of n tiles, n - (n - 1) * OVERLAP
        sides = min(max(math.ceil((zoom - OVERLAP) / (1 - OVERLAP)), sides), MAX_TILES)
    tiles = grid(frame_result.width, frame_result.height, sides, least)
    worthwhile = tiles and frame_result.width * frame_result.height >= WORTHWHILE * area(tiles[0])
    return sides if worthwhile else 1


def median_size(frame_result: FrameResult) -> float:
    """Return the median size of what was found in a picture; 1 where nothing was."""
    unit = math.sqrt(frame_result.width * frame_result.height)
    sizes = [max(sides_of(detection.box)) / unit for detection in frame_result.detections]
    return max(median(sizes), 1e-3) if sizes else 1.0


# ---- merging ---------------------------------------------------------------------------------------------------------


def in_picture(detections: Sequence[Detection], tile: Box, width: int, height: int) -> tuple[Detection, ...]:
    """Move detections of a tile, in pixels as if it were the picture, to where they are in the picture."""
    x, y = tile[:2]
    across, down = (tile[2] - x) / width, (tile[3] - y) / height
    return tuple(
        replace(one, box=(x + x1 * across, y + y1 * down, x + x2 * across, y + y2 * down))
        for one in detections
        for x1, y1, x2, y2 in [one.box]
    )


def merge(whole: Look, looks: Sequence[Look], by_label: bool = True) -> tuple[Detection, ...]:
    """Return what is in a picture by a look at the whole and one at each tile, each object once.

    Two boxes of different tiles are one object where the tiles agree on it: in what both tiles show, the boxes are
    about the same, or one is a cut piece that lies in the other. Of these the one that is whole and most certain stays;
    pieces of an object that no look shows in full become the box around them.

    Args:
        by_label: objects of different labels are different.
    """
    pieces = sorted(pieces_of(whole, looks), key=rank)
    labels = np.array([piece.detection.label if by_label else "" for piece in pieces])
    boxes = np.array([piece.detection.box for piece in pieces]).reshape(-1, 4)
    shown = np.array([piece.tile for piece in pieces]).reshape(-1, 4)
    kept = np.zeros(len(pieces), bool)
    for place, piece in enumerate(pieces):
        others = np.flatnonzero(kept & (labels == labels[place]) & touching(boxes, boxes[place]))
        others = others[(shown[others] != shown[place]).any(axis=1)]
        likeness = agreement(boxes[place], shown[place], boxes[others], shown[others], piece.cut)
        if not likeness.any():
            kept[place] = True
        elif pieces[other := others[likeness.argmax()]].cut:  # and so is this one, which comes after it
            boxes[other], shown[other] = hull(boxes[other], boxes[place]), hull(shown[other], shown[place])
    return tuple(
        replace(pieces[place].detection, box=tuple(boxes[place].tolist())) for place in np.flatnonzero(kept).tolist()
    )


def rank(piece: Piece) -> tuple[bool, float]:
    """Order whole pieces by their scores before cut ones by their areas."""
    return piece.cut, -area(piece.detection.box) if piece.cut else -piece.detection.score


def pieces_of(whole: Look, looks: Sequence[Look]) -> Iterator[Piece]:
    """Yield what counts of each look: the whole picture has a say in what is large, the tiles in all else."""
    found = [
        (look, Piece(detection, look.tile, is_cut(detection.box, look.tile, whole.tile)))
        for look in looks
        for detection in look.detections
    ]
    large = large_in(whole, looks, [piece.detection for _, piece in found if not piece.cut])
    yield from (Piece(detection, whole.tile) for detection in large)
    for look, piece in found:
        box = piece.detection.box
        hidden = [one for one in large if not look.views(one.box, whole.tile)]
        seen_better = piece.cut and any(other.shows(box, whole.tile) for other in looks if other is not look)
        if not (seen_better or is_part(piece, hidden, whole)) or is_named(piece.detection, whole):
            yield piece


def large_in(whole: Look, looks: Sequence[Look], uncut: Sequence[Detection]) -> list[Detection]:
    """Return what the whole picture shows better than the tiles: what is sure, large, and no group of small things.

    Args:
        uncut: what tiles show in full.
    """
    large = (one for one in whole.detections if one.score >= SURE)
    large = (one for one in large if not any(look.views(one.box, whole.tile) for look in looks))
    side = math.sqrt(area(whole.tile))
    small = [one.box for one in uncut if max(sides_of(one.box)) < SMALL * side]
    return [one for one in large if covered(one.box, small) < GROUP]


def covered(box: Box, others: Iterable[Box]) -> float:
    """Return the share of a box that others cover which lie in it, by a raster of its points."""
    inner = np.array([other for other in others if share_within(other, box) >= PART]).reshape(-1, 4)
    middles = (np.arange(RASTER) + 0.5) / RASTER
    x, y = box[0] + middles * (box[2] - box[0]), box[1] + middles * (box[3] - box[1])
    columns = (inner[:, :1] <= x) & (x < inner[:, 2:3])
    rows = (inner[:, 1:2] <= y) & (y < inner[:, 3:])
    return float((rows[:, :, None] & columns[:, None, :]).any(axis=0).mean())


def is_part(piece: Piece, large: Sequence[Detection], whole: Look) -> bool:
    """Whether a piece of a tile is but a part of something large that the tile has no good view of.

    What may be too small for the whole picture to name may be something else before it.
    """
    box, label = piece.detection.box, piece.detection.label
    around = [one for one in large if share_within(box, one.box) >= PART]
    unseen = max(sides_of(box)) < UNSEEN * math.sqrt(area(whole.tile))
    return bool(around) and not (unseen and not piece.cut and all(one.label != label for one in around))


def is_named(detection: Detection, whole: Look) -> bool:
    """Whether the look at the whole picture names a detection, too."""
    return any(one.label == detection.label and iou(one.box, detection.box) >= SAME for one in whole.detections)


def agreement(box: Boxes, tile: Boxes, others: Boxes, tiles: Boxes, cut: bool) -> Boxes:
    """Return how much alike a box and others are in what their tiles both show, (N,), 0 of other objects.

    Args:
        box, tile: (4,).
        others, tiles: (N, 4).
        cut: an edge of the tile cuts the box.
    """
    both = clipped(tile, tiles)
    mine, theirs = clipped(box, both), clipped(others, both)
    common, smaller = areas(clipped(mine, theirs)), np.minimum(areas(mine), areas(theirs))
    ious = common / np.maximum(areas(mine) + areas(theirs) - common, 1e-9)
    same = (ious >= SAME) | (cut & (common >= WITHIN * np.maximum(smaller, 1e-9)))
    return np.where(same, ious, 0.0)


# ---- boxes -----------------------------------------------------------------------------------------------------------


def is_cut(box: Box, tile: Box, whole: Box) -> bool:
    """Whether an edge of its tile that is none of the picture may cut a box."""
    margins = [EDGE * side for side in sides_of(tile)] * 2
    edges = zip(box, tile, whole, margins, strict=True)
    return any(edge != end and abs(place - edge) <= margin for place, edge, end, margin in edges)


def touching(boxes: Boxes, box: Boxes) -> NDArray[np.bool_]:
    """Tell which of boxes, (N, 4), share an area with another, (4,)."""
    starts, ends = boxes[:, :2] < box[2:], boxes[:, 2:] > box[:2]
    both: NDArray[np.bool_] = starts[:, 0] & starts[:, 1] & ends[:, 0] & ends[:, 1]
    return both


def clipped(boxes: Boxes, others: Boxes) -> Boxes:
    """Return what a box, (4,), or each of some, (N, 4), shares with others, (N, 4)."""
    return np.concatenate(
        [np.maximum(boxes[..., :2], others[:, :2]), np.minimum(boxes[..., 2:], others[:, 2:])], axis=1
    )


def areas(boxes: Boxes) -> Boxes:
    """Return the areas of boxes (N, 4), 0 of what is none: (N,)."""
    sides: Boxes = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def hull(box: Boxes, other: Boxes) -> Boxes:
    """Return the box around two."""
    return np.concatenate([np.minimum(box[:2], other[:2]), np.maximum(box[2:], other[2:])])
