"""Tiles: their geometry, and merging of the detections of a simulated detector without errors."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_tagger.geometry import area, common_area
from florence_tagger.schemas import Box, Detection, FrameResult
from florence_tagger.tiling import OVERLAP, UNTILED, Crop, grid, max_frames_per_picture, merge, plan_tiles, to_picture

MIN_SIZE = (224, 224)
SIZE = (1200, 900)
PICTURE: Box = (0, 0, *SIZE)
TILES = grid(*SIZE, 3, MIN_SIZE)
Pair = tuple[float, float]

MIN_SHOWN = 0.3  # of an object's area in a tile in which it is detected


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 6), st.integers(1, 800), st.integers(1, 800))
def test_tiles_cover_the_picture_and_are_never_enlarged(
    width: int, height: int, side: int, min_height: int, min_width: int
) -> None:
    tiles = grid(width, height, side, (min_height, min_width))
    assert len(tiles) <= side**2
    if side == 1 or (width <= min_width and height <= min_height):
        assert tiles == ()
    for x1, y1, x2, y2 in tiles:
        assert x2 - x1 >= min(width, min_width)
        assert y2 - y1 >= min(height, min_height)
    for low, high, length in ((0, 2, width), (1, 3, height)) if tiles else ():
        spans = sorted({(tile[low], tile[high]) for tile in tiles})
        assert (spans[0][0], spans[-1][1]) == (0, length)
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= math.floor(OVERLAP * (spans[0][1] - 1)) - 1


@pytest.mark.parametrize(
    ("size", "side", "number"),
    [((1200, 900), 3, 9), ((224, 224), 6, 0), ((448, 224), 2, 2), ((1200, 300), 3, 6), ((10_000, 10_000), 6, 36)],
)
def test_grid_of_a_side_that_is_not_larger_than_the_input(size: tuple[int, int], side: int, number: int) -> None:
    assert len(grid(*size, side, MIN_SIZE)) == number


def test_max_frames_per_picture_counts_the_picture_and_its_tiles() -> None:
    assert [max_frames_per_picture(side) for side in (1, 2, 3, 6)] == [1, 5, 10, 37]


def test_to_picture_moves_boxes_from_a_tile() -> None:
    detection = Detection("cat", (0, 450, 600, 900), 0.5)  # the lower left quarter, in pixels of the full picture
    (moved,) = to_picture([detection], (400, 300, 800, 600), *SIZE)
    assert moved == Detection("cat", (400, 450, 600, 600), 0.5)


def detect_in(tile: Box, objects: Iterable[Detection], min_shown: float = MIN_SHOWN) -> Crop:
    """Return the detections in a tile: of each object the part in the tile, if it is large enough."""
    detections = [
        Detection(item.label, clip(item.box, tile), item.score)
        for item in objects
        if common_area(item.box, tile) >= min_shown * area(item.box)
    ]
    return Crop(tile, tuple(detections))


def clip(box: Box, tile: Box) -> Box:
    return max(box[0], tile[0]), max(box[1], tile[1]), min(box[2], tile[2]), min(box[3], tile[3])


def counts(detections: Iterable[Detection]) -> Counter[str]:
    return Counter(item.label for item in detections)


def merged_counts(
    objects: Sequence[Detection], full: Sequence[Detection], tiles: Sequence[Box] = TILES
) -> Counter[str]:
    """Return the counts merged from the tiles and from the full picture, in which `full` are detected."""
    return counts(merge(Crop(PICTURE, tuple(full)), [detect_in(tile, objects) for tile in tiles]))


def draw_objects(
    sizes: Iterable[tuple[float, float]], positions: Iterable[tuple[float, float]], labels: str
) -> list[Detection]:
    """Return objects with these sizes and positions, both as shares, without those that overlap another one."""
    objects: list[Detection] = []
    for (relative_width, relative_height), (x, y), label in zip(sizes, positions, labels, strict=False):
        width, height = 20 + relative_width * 100, 20 + relative_height * 80
        left, top = x * (SIZE[0] - width), y * (SIZE[1] - height)
        box = (left, top, left + width, top + height)
        if all(common_area(box, item.box) == 0 for item in objects):
            objects.append(Detection(label, box, 0.9))
    return objects


shares = st.tuples(st.floats(0, 1), st.floats(0, 1))


@settings(max_examples=100)
@given(st.lists(shares, max_size=25), st.lists(shares, max_size=25), st.text("ab", min_size=25, max_size=25))
def test_merge_counts_each_object_in_tiles_once(sizes: list[Pair], positions: list[Pair], labels: str) -> None:
    """The objects are too small for the full picture."""
    objects = draw_objects(sizes, positions, labels)
    assert merged_counts(objects, []) == counts(objects)


@settings(max_examples=100)
@given(st.sampled_from(TILES), st.integers(0, 3), st.floats(0.1, 0.9), st.floats(0, 1), st.booleans())
def test_merge_keeps_touching_neighbors_on_a_seam_apart(
    tile: Box, edge: int, before: float, along: float, beside: bool
) -> None:
    """The edge of a tile is inside one of the two, or between them."""
    width, height = 60.0, 50.0
    across, down = (2 * width, height) if beside else (width, 2 * height)
    x, y = along * (SIZE[0] - across), along * (SIZE[1] - down)
    if edge % 2 == 0:
        x = min(max(tile[edge] - before * across, 0), SIZE[0] - across)
    else:
        y = min(max(tile[edge] - before * down, 0), SIZE[1] - down)
    second = (x + width, y) if beside else (x, y + height)
    objects = [Detection("cat", (left, top, left + width, top + height), 0.9) for left, top in ((x, y), second)]
    assert merged_counts(objects, []) == {"cat": 2}
    both = Detection("dog", (x, y, x + across, y + down), 0.9)  # the detection of the full picture instead of the two
    assert merged_counts(objects, [both]) == {"cat": 2}


@pytest.mark.parametrize("box", [(100, 100, 1100, 800), (350, 50, 700, 850), (0, 0, 1200, 900)])
def test_merge_takes_what_no_tile_contains_from_the_full_picture(box: Box) -> None:
    large, small = Detection("bus", box, 0.9), Detection("cat", (380, 400, 420, 430), 0.9)
    crops = [detect_in(tile, [large, small], 0.1) for tile in TILES]
    mistaken = [Crop(crop.box, (*crop.detections, Detection("cup", clip(box, crop.box), 0.8))) for crop in crops]
    merged = merge(Crop(PICTURE, (large,)), mistaken)
    assert counts(merged) == {"bus": 1, "cat": 1}, "a part is no object, and an object in front stays"
    assert next(item.box for item in merged if item.label == "bus") == box


def test_merge_joins_parts_of_an_object_that_no_crop_contains() -> None:
    long = Detection("train", (50, 420, 1150, 470), 0.9)
    (train,) = merge(Crop(PICTURE, ()), [detect_in(tile, [long], 0.1) for tile in TILES])
    assert train.box == pytest.approx(long.box)


def test_merge_separates_labels_unless_they_are_captions() -> None:
    tiles = grid(*SIZE, 2, MIN_SIZE)
    box = (560, 410, 640, 490)  # all tiles show it
    crops = [Crop(tile, (Detection(f"a cat, {index}", box, 0.9),)) for index, tile in enumerate(tiles)]
    full = Crop(PICTURE, ())
    assert len(merge(full, crops)) == 4
    assert len(merge(full, crops, by_label=False)) == 1


def test_merge_keeps_boxes_of_one_tile_apart() -> None:
    twice = tuple(Detection("cat", (100, 100, 150 + more, 150), 0.9) for more in (0, 1))
    assert len(merge(Crop(PICTURE, ()), [Crop(TILES[0], twice), *(Crop(tile, ()) for tile in TILES[1:])])) == 2


def frame_result(size: float, number: int = 10, truncated: bool = False, **more: float) -> FrameResult:
    """Return a picture of 1,200 x 1,200 pixels with `number` boxes of a size, as a share of the side."""
    boxes = [(100.0 * index, 0.0, 100.0 * index + size * 1200, size * 1200) for index in range(number)]
    return FrameResult(tuple(Detection("cat", box, 0.9) for box in boxes), truncated, width=1200, height=1200, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "plan"),
    [
        (frame_result(0.2), UNTILED),
        (frame_result(0.2, number=0), UNTILED),
        (frame_result(0.2, truncated=True), (2,)),
        (frame_result(0.11), (2,)),
        (frame_result(0.08), (3,)),
        (frame_result(0.01), (6,)),
    ],
)
def test_plan_tiles_of_small_boxes_and_truncated_answers(seen: FrameResult, plan: tuple[int, ...]) -> None:
    assert plan_tiles([seen], 100, MIN_SIZE) == plan


def test_plan_tiles_of_a_picture_that_tiles_would_not_enlarge() -> None:
    assert plan_tiles([frame_result(0.01)], 100, (1000, 1000)) == UNTILED


def test_plan_tiles_spends_the_budget_on_the_fullest_frames_first() -> None:
    frames = [frame_result(0.08, number, time_s=float(number)) for number in (5, 9, 7)]
    assert [plan_tiles(frames, budget, MIN_SIZE) for budget in (0, 4, 9, 13, 27)] == [
        UNTILED,
        (1, 2, 1),
        (1, 3, 1),
        (1, 3, 2),
        (3, 3, 3),
    ]
    pages = [frame_result(0.08, 5, page=page) for page in (1, 2)]
    assert plan_tiles(pages, 0, MIN_SIZE) == (3, 3)
