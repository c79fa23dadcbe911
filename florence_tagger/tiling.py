"""Geometry of tiles: a picture's size -> overlapping tiles, and the tiles' detections -> those of the picture.

Objects are larger in a tile than in the model's input for the full picture. Each tile overlaps its neighbors, so that
an object that one tile cuts is complete in another. Objects that no tile contains are taken from the full picture.
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

UNTILED = (1,)  # tiles per side of each picture of a document, the last for all further pictures: no picture is tiled
OVERLAP = 0.25  # of a tile's side, with each neighbor

# Sizes are longer sides, relative to the side of a square with the picture's area.
EDGE_MARGIN = 0.02  # of a tile's side: the tile may cut a box that ends this close to its edge
MIN_INSIDE_SHARE = 0.99  # of a box's area in a tile that contains it
MAX_RESOLVED_SIDE = 0.5  # of a tile's side: the full picture shows larger objects better
MIN_FULL_SCORE = 0.5  # of a detection in the full picture that overrides the tiles
MIN_PART_SHARE = 0.7  # of a box's area in a larger box of which it may be a part
MIN_GROUP_SHARE = 0.6  # of a box's area that small objects cover: the box is a group of them
SMALL_SIZE = 0.12  # tiles show smaller objects better
RASTER_POINTS = 20  # per side, for the share of a box that others cover
MIN_NAMED_SIZE = 0.04  # the full picture may miss smaller objects
MIN_IOU = 0.4  # of two boxes of one object, within the area that both tiles show
MIN_SMALLER_OVERLAP = 0.6  # intersection over smaller area, of a cut box and another box of the object

# With "auto", a picture is tiled if half of its boxes are smaller than SMALL_SIZE.
TARGET_SIZE = 0.185  # minimum of the boxes' median size in a tile
TRUNCATED_TILES = 2  # per side, minimum for a truncated answer
MIN_PIXEL_RATIO = 1.7  # of the picture to a tile, below which it is not tiled

Boxes = NDArray[np.float64]  # (N, 4)


@dataclass(frozen=True)
class Crop:
    """A tile or the full picture with its detections, all boxes in pixels of the picture."""

    box: Box
    detections: tuple[Detection, ...]

    def contains(self, box: Box, picture: Box) -> bool:
        """Return whether the crop contains a box without cutting it; `picture` is the box of the full picture."""
        return share_within(box, self.box) >= MIN_INSIDE_SHARE and not is_cut(box, self.box, picture)

    def resolves(self, box: Box, picture: Box) -> bool:
        """Return whether the crop contains a box that is not too large for it."""
        (width, height), (crop_width, crop_height) = sides_of(box), sides_of(self.box)
        fits = width <= MAX_RESOLVED_SIDE * crop_width and height <= MAX_RESOLVED_SIDE * crop_height
        return fits and self.contains(box, picture)


@dataclass(frozen=True)
class Candidate:
    """A detection before merging.

    Attributes:
        crop: box of the crop with this detection.
        is_cut: an edge of the crop may cut the detection.
    """

    detection: Detection
    crop: Box
    is_cut: bool = False


def grid(width: int, height: int, side: int, min_size: tuple[int, int]) -> tuple[tuple[int, int, int, int], ...]:
    """Return the tiles of a picture, row by row: boxes of one size that cover it; none if it is not tiled.

    Args:
        width: of the picture, pixels.
        height: of the picture, pixels.
        side: tiles per side; fewer if they would be smaller than `min_size`.
        min_size: (height, width) of the model's input, to which no tile is enlarged.
    """
    tile_width, columns = tile_offsets(width, side, min_size[1])
    tile_height, rows = tile_offsets(height, side, min_size[0])
    if len(columns) * len(rows) == 1:
        return ()
    return tuple((x, y, x + tile_width, y + tile_height) for y, x in product(rows, columns))


def tile_offsets(length: int, max_tiles: int, min_length: int) -> tuple[int, list[int]]:
    """Return the length of overlapping tiles, `min_length` pixels or more, and the offset of each."""
    tile_length = max(math.ceil(length / (max_tiles - (max_tiles - 1) * OVERLAP)), min_length)
    if tile_length >= length:
        return length, [0]
    num_tiles = math.ceil((length - OVERLAP * tile_length) / (tile_length * (1 - OVERLAP)))
    steps = min(max(num_tiles, 2), max_tiles) - 1
    return tile_length, [round(step * (length - tile_length) / steps) for step in range(steps + 1)]


def max_frames_per_picture(side: int) -> int:
    """Return the maximum number of frames of a picture with `side` tiles per side: the full picture and its tiles."""
    return 1 if side == 1 else side**2 + 1


def plan_tiles(frame_results: Sequence[FrameResult], frame_budget: int, min_size: tuple[int, int]) -> tuple[int, ...]:
    """Return the tiles per side for each picture of a document, based on the detections in the full pictures.

    Args:
        frame_results: of the full pictures.
        frame_budget: maximum number of tiles of a video; frames with the most detections come first. Pages have no
            such limit.
        min_size: (height, width) of the model's input.
    """
    plan = [tiles_per_side(frame_result, min_size) for frame_result in frame_results]
    fullest = sorted(range(len(plan)), key=lambda index: -len(frame_results[index].detections))
    for index in fullest:
        if frame_results[index].time_s is not None:
            while plan[index] > 1 and plan[index] ** 2 > frame_budget:
                plan[index] -= 1
            frame_budget -= plan[index] ** 2 if plan[index] > 1 else 0
    return UNTILED if set(plan) == {1} else tuple(plan)


def tiles_per_side(frame_result: FrameResult, min_size: tuple[int, int]) -> int:
    """Return the tiles per side that the result of a full picture requires; `min_size` as of `plan_tiles`."""
    side = TRUNCATED_TILES if frame_result.truncated else 1
    size = median_size(frame_result)
    if size < SMALL_SIZE:
        zoom = TARGET_SIZE / size  # of n tiles, n - (n - 1) * OVERLAP
        side = min(max(math.ceil((zoom - OVERLAP) / (1 - OVERLAP)), side), MAX_TILES)
    tiles = grid(frame_result.width, frame_result.height, side, min_size)
    is_enlarged = tiles and frame_result.width * frame_result.height >= MIN_PIXEL_RATIO * area(tiles[0])
    return side if is_enlarged else 1


def median_size(frame_result: FrameResult) -> float:
    """Return the median size of the detections in a picture; 1 if there are none."""
    unit = math.sqrt(frame_result.width * frame_result.height)
    sizes = [max(sides_of(detection.box)) / unit for detection in frame_result.detections]
    return max(median(sizes), 1e-3) if sizes else 1.0


def to_picture(detections: Sequence[Detection], tile: Box, width: int, height: int) -> tuple[Detection, ...]:
    """Map detections of a tile, with the tile scaled to `width` x `height`, to pixels of the picture."""
    x, y = tile[:2]
    scale_x, scale_y = (tile[2] - x) / width, (tile[3] - y) / height
    return tuple(
        replace(detection, box=(x + x1 * scale_x, y + y1 * scale_y, x + x2 * scale_x, y + y2 * scale_y))
        for detection in detections
        for x1, y1, x2, y2 in [detection.box]
    )


def merge_tiles(
    full: FrameResult, tiles: Sequence[Box], tile_results: Sequence[FrameResult], by_label: bool
) -> FrameResult:
    """Merge the result of the full picture with that of each of its tiles; `by_label` as of `merge`."""
    if not tiles:
        return full
    crops = [
        Crop(tile, to_picture(result.detections, tile, full.width, full.height))
        for tile, result in zip(tiles, tile_results, strict=True)
    ]
    return replace(
        full,
        detections=merge(Crop((0, 0, full.width, full.height), full.detections), crops, by_label),
        truncated=any(result.truncated for result in tile_results),
        tokens=full.tokens + sum(result.tokens for result in tile_results),
        tiles=tuple(tiles),
    )


def merge(full: Crop, crops: Sequence[Crop], by_label: bool = True) -> tuple[Detection, ...]:
    """Return the detections of a picture, each object once, from those of the full picture and of its tiles.

    Two boxes of different tiles are one object if the tiles agree on it: within the area that both tiles show, the
    boxes are about the same, or one box is cut and lies in the other. The complete box with the highest score is kept.
    If an object is cut in every tile, its boxes become the box around them.

    Args:
        full: the full picture.
        crops: the tiles.
        by_label: boxes with different labels are different objects.
    """
    candidates = sorted(candidates_of(full, crops), key=merge_order)
    labels = np.array([candidate.detection.label if by_label else "" for candidate in candidates])
    boxes = np.array([candidate.detection.box for candidate in candidates]).reshape(-1, 4)
    shown = np.array([candidate.crop for candidate in candidates]).reshape(-1, 4)
    kept = np.zeros(len(candidates), bool)
    for index, candidate in enumerate(candidates):
        others = np.flatnonzero(kept & (labels == labels[index]) & overlaps(boxes, boxes[index]))
        others = others[(shown[others] != shown[index]).any(axis=1)]
        ious = match_ious(boxes[index], shown[index], boxes[others], shown[others], candidate.is_cut)
        if not ious.any():
            kept[index] = True
        elif candidates[match := others[ious.argmax()]].is_cut:  # the current one, which is later in order, is cut too
            boxes[match] = enclosing_box(boxes[match], boxes[index])
            shown[match] = enclosing_box(shown[match], shown[index])
    return tuple(
        replace(candidates[index].detection, box=tuple(boxes[index].tolist()))
        for index in np.flatnonzero(kept).tolist()
    )


def merge_order(candidate: Candidate) -> tuple[bool, float]:
    """Return a sort key: complete boxes by descending score, then cut ones by descending area."""
    box, score = candidate.detection.box, candidate.detection.score
    return candidate.is_cut, -area(box) if candidate.is_cut else -score


def candidates_of(full: Crop, crops: Sequence[Crop]) -> Iterator[Candidate]:
    """Yield the detections to merge: large objects from the full picture, all others from the tiles."""
    tiled = [
        (crop, Candidate(detection, crop.box, is_cut(detection.box, crop.box, full.box)))
        for crop in crops
        for detection in crop.detections
    ]
    large = large_detections(full, crops, [candidate.detection for _, candidate in tiled if not candidate.is_cut])
    yield from (Candidate(detection, full.box) for detection in large)
    for crop, candidate in tiled:
        box = candidate.detection.box
        unresolved = [detection for detection in large if not crop.resolves(detection.box, full.box)]
        is_complete_elsewhere = candidate.is_cut and any(
            other.contains(box, full.box) for other in crops if other is not crop
        )
        if not (is_complete_elsewhere or is_part(candidate, unresolved, full)) or is_in(candidate.detection, full):
            yield candidate


def large_detections(full: Crop, crops: Sequence[Crop], complete: Sequence[Detection]) -> list[Detection]:
    """Return the detections that the full picture shows better than the tiles.

    These have a high score, are too large for every tile, and are not groups of small objects.

    Args:
        full: the full picture.
        crops: the tiles.
        complete: detections that no tile cuts.
    """
    large = (detection for detection in full.detections if detection.score >= MIN_FULL_SCORE)
    large = (detection for detection in large if not any(crop.resolves(detection.box, full.box) for crop in crops))
    side = math.sqrt(area(full.box))
    small = [detection.box for detection in complete if max(sides_of(detection.box)) < SMALL_SIZE * side]
    return [detection for detection in large if covered_share(detection.box, small) < MIN_GROUP_SHARE]


def covered_share(box: Box, others: Iterable[Box]) -> float:
    """Return the share of a box that is covered by those of the others that lie in it, on a raster of points."""
    inner = np.array([other for other in others if share_within(other, box) >= MIN_PART_SHARE]).reshape(-1, 4)
    points = (np.arange(RASTER_POINTS) + 0.5) / RASTER_POINTS
    x, y = box[0] + points * (box[2] - box[0]), box[1] + points * (box[3] - box[1])
    columns = (inner[:, :1] <= x) & (x < inner[:, 2:3])
    rows = (inner[:, 1:2] <= y) & (y < inner[:, 3:])
    return float((rows[:, :, None] & columns[:, None, :]).any(axis=0).mean())


def is_part(candidate: Candidate, large: Sequence[Detection], full: Crop) -> bool:
    """Return whether a tile's detection is only a part of a large object that the tile does not resolve.

    A detection with another label that is too small for the full picture may be a separate object in front of it.
    """
    box, label = candidate.detection.box, candidate.detection.label
    around = [detection for detection in large if share_within(box, detection.box) >= MIN_PART_SHARE]
    is_tiny = max(sides_of(box)) < MIN_NAMED_SIZE * math.sqrt(area(full.box))
    is_separate = is_tiny and not candidate.is_cut and all(detection.label != label for detection in around)
    return bool(around) and not is_separate


def is_in(detection: Detection, crop: Crop) -> bool:
    """Return whether a crop has a detection with the same label and about the same box."""
    return any(other.label == detection.label and iou(other.box, detection.box) >= MIN_IOU for other in crop.detections)


def match_ious(box: Boxes, tile: Boxes, others: Boxes, other_tiles: Boxes, allow_part: bool) -> Boxes:
    """Return the IoU of a box with others within the area that their tiles share, (N,), 0 for other objects.

    Args:
        box: (4,).
        tile: with the box, (4,).
        others: (N, 4).
        other_tiles: with the others, (N, 4).
        allow_part: intersection over smaller area is enough for a match, because the tile cuts the box.
    """
    shared = intersections(tile, other_tiles)
    clipped, other_clipped = intersections(box, shared), intersections(others, shared)
    common = areas(intersections(clipped, other_clipped))
    smaller = np.minimum(areas(clipped), areas(other_clipped))
    ious = common / np.maximum(areas(clipped) + areas(other_clipped) - common, 1e-9)
    matches = (ious >= MIN_IOU) | (allow_part & (common >= MIN_SMALLER_OVERLAP * np.maximum(smaller, 1e-9)))
    return np.where(matches, ious, 0.0)


def is_cut(box: Box, tile: Box, picture: Box) -> bool:
    """Return whether an edge of a tile that is not an edge of the picture may cut a box."""
    margins = [EDGE_MARGIN * side for side in sides_of(tile)] * 2
    edges = zip(box, tile, picture, margins, strict=True)
    return any(
        tile_edge != picture_edge and abs(box_edge - tile_edge) <= margin
        for box_edge, tile_edge, picture_edge, margin in edges
    )


def overlaps(boxes: Boxes, box: Boxes) -> NDArray[np.bool_]:
    """Return which of the boxes, (N, 4), overlap another one, (4,): bool (N,)."""
    starts, ends = boxes[:, :2] < box[2:], boxes[:, 2:] > box[:2]
    both: NDArray[np.bool_] = starts[:, 0] & starts[:, 1] & ends[:, 0] & ends[:, 1]
    return both


def intersections(boxes: Boxes, others: Boxes) -> Boxes:
    """Return the intersection of a box, (4,), or of each of several, (N, 4), with others, (N, 4)."""
    return np.concatenate(
        [np.maximum(boxes[..., :2], others[:, :2]), np.minimum(boxes[..., 2:], others[:, 2:])], axis=1
    )


def areas(boxes: Boxes) -> Boxes:
    """Return the areas of boxes, (N, 4): (N,), 0 for empty ones."""
    sides: Boxes = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def enclosing_box(box: Boxes, other: Boxes) -> Boxes:
    """Return the smallest box around two."""
    return np.concatenate([np.minimum(box[:2], other[:2]), np.maximum(box[2:], other[2:])])
