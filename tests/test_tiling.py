"""Tiles: the geometry, and that what is seen in parts is counted once, by an observer that makes no mistakes."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_tagger.geometry import area, common_area
from florence_tagger.schemas import Box, Detection, FrameResult
from florence_tagger.tiling import OVERLAP, WHOLE, Look, grid, in_picture, looks_at, merge, plan_of

LEAST = (224, 224)
SIZE = (1200, 900)
PICTURE: Box = (0, 0, *SIZE)
TILES = grid(*SIZE, 3, LEAST)
Pair = tuple[float, float]

SEEN = 0.3  # the least share of an object in a tile that is found there


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 6), st.integers(1, 800), st.integers(1, 800))
def test_tiles_cover_the_picture_and_are_never_enlarged(
    width: int, height: int, side: int, least_height: int, least_width: int
) -> None:
    tiles = grid(width, height, side, (least_height, least_width))
    assert len(tiles) <= side**2
    if side == 1 or (width <= least_width and height <= least_height):
        assert tiles == ()
    for x1, y1, x2, y2 in tiles:
        assert x2 - x1 >= min(width, least_width)
        assert y2 - y1 >= min(height, least_height)
    for low, high, length in ((0, 2, width), (1, 3, height)) if tiles else ():
        spans = sorted({(tile[low], tile[high]) for tile in tiles})
        assert (spans[0][0], spans[-1][1]) == (0, length)
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= math.floor(OVERLAP * (spans[0][1] - 1)) - 1


@pytest.mark.parametrize(
    ("size", "side", "number"),
    [((1200, 900), 3, 9), ((224, 224), 6, 0), ((448, 224), 2, 2), ((1200, 300), 3, 6), ((10_000, 10_000), 6, 36)],
)
def test_a_side_that_is_not_larger_than_the_input_is_not_cut(size: tuple[int, int], side: int, number: int) -> None:
    assert len(grid(*size, side, LEAST)) == number


def test_the_looks_at_a_picture() -> None:
    assert [looks_at(side) for side in (1, 2, 3, 6)] == [1, 5, 10, 37]


def test_regions_move_from_a_tile_to_where_they_are() -> None:
    detection = Detection(
        "cat", (0, 450, 600, 900), 0.5
    )  # the lower left quarter, in pixels as if of the whole picture
    (moved,) = in_picture([detection], (400, 300, 800, 600), *SIZE)
    assert moved == Detection("cat", (400, 450, 600, 600), 0.5)


# ---- merging ---------------------------------------------------------------------------------------------------------


def seen_in(tile: Box, objects: Iterable[Detection], least: float = SEEN) -> Look:
    """What an observer finds in a tile: of each object what is in the tile, if that is enough of it."""
    detections = [
        Detection(one.label, clip(one.box, tile), one.score)
        for one in objects
        if common_area(one.box, tile) >= least * area(one.box)
    ]
    return Look(tile, tuple(detections))


def clip(box: Box, tile: Box) -> Box:
    return max(box[0], tile[0]), max(box[1], tile[1]), min(box[2], tile[2]), min(box[3], tile[3])


def counts(detections: Iterable[Detection]) -> Counter[str]:
    return Counter(one.label for one in detections)


def merged(objects: Sequence[Detection], whole: Sequence[Detection], tiles: Sequence[Box] = TILES) -> Counter[str]:
    """The counts by looks at the tiles, and at the whole, in which `whole` are found."""
    return counts(merge(Look(PICTURE, tuple(whole)), [seen_in(tile, objects) for tile in tiles]))


def draw_objects(
    sizes: Iterable[tuple[float, float]], places: Iterable[tuple[float, float]], labels: str
) -> list[Detection]:
    """Objects of these sizes at these places, both as shares, but for those that would be on another."""
    objects: list[Detection] = []
    for (across, down), (x, y), label in zip(sizes, places, labels, strict=False):
        width, height = 20 + across * 100, 20 + down * 80
        left, top = x * (SIZE[0] - width), y * (SIZE[1] - height)
        box = (left, top, left + width, top + height)
        if all(common_area(box, one.box) == 0 for one in objects):
            objects.append(Detection(label, box, 0.9))
    return objects


shares = st.tuples(st.floats(0, 1), st.floats(0, 1))


@settings(max_examples=100)
@given(st.lists(shares, max_size=25), st.lists(shares, max_size=25), st.text("ab", min_size=25, max_size=25))
def test_what_tiles_show_is_counted_once_wherever_it_is(sizes: list[Pair], places: list[Pair], labels: str) -> None:
    """The whole picture shows nothing of what is so small."""
    objects = draw_objects(sizes, places, labels)
    assert merged(objects, []) == counts(objects)


@settings(max_examples=100)
@given(st.sampled_from(TILES), st.integers(0, 3), st.floats(0.1, 0.9), st.floats(0, 1), st.booleans())
def test_touching_neighbours_on_a_seam_stay_two(
    tile: Box, edge: int, before: float, along: float, beside: bool
) -> None:
    """The edge of a tile is somewhere in the two, or between them."""
    width, height = 60.0, 50.0
    across, down = (2 * width, height) if beside else (width, 2 * height)
    x, y = along * (SIZE[0] - across), along * (SIZE[1] - down)
    if edge % 2 == 0:
        x = min(max(tile[edge] - before * across, 0), SIZE[0] - across)
    else:
        y = min(max(tile[edge] - before * down, 0), SIZE[1] - down)
    second = (x + width, y) if beside else (x, y + height)
    objects = [Detection("cat", (left, top, left + width, top + height), 0.9) for left, top in ((x, y), second)]
    assert merged(objects, []) == {"cat": 2}
    both = Detection("dog", (x, y, x + across, y + down), 0.9)  # what the whole picture makes of them
    assert merged(objects, [both]) == {"cat": 2}


@pytest.mark.parametrize("box", [(100, 100, 1100, 800), (350, 50, 700, 850), (0, 0, 1200, 900)])
def test_what_no_tile_shows_in_full_is_taken_from_the_whole(box: Box) -> None:
    large, small = Detection("bus", box, 0.9), Detection("cat", (380, 400, 420, 430), 0.9)
    looks = [seen_in(tile, [large, small], 0.1) for tile in TILES]
    mistaken = [Look(look.tile, (*look.detections, Detection("cup", clip(box, look.tile), 0.8))) for look in looks]
    found = merge(Look(PICTURE, (large,)), mistaken)
    assert counts(found) == {"bus": 1, "cat": 1}, "a part is nothing else, and what is before it stays"
    assert next(one.box for one in found if one.label == "bus") == box


def test_pieces_of_what_no_look_shows_in_full_are_one() -> None:
    long = Detection("train", (50, 420, 1150, 470), 0.9)
    (found,) = merge(Look(PICTURE, ()), [seen_in(tile, [long], 0.1) for tile in TILES])
    assert found.box == pytest.approx(long.box)


def test_labels_tell_objects_apart_unless_they_are_captions() -> None:
    tiles = grid(*SIZE, 2, LEAST)
    box = (560, 410, 640, 490)  # all tiles show it
    looks = [Look(tile, (Detection(f"a cat, {place}", box, 0.9),)) for place, tile in enumerate(tiles)]
    whole = Look(PICTURE, ())
    assert len(merge(whole, looks)) == 4
    assert len(merge(whole, looks, by_label=False)) == 1


def test_boxes_of_one_tile_are_never_merged() -> None:
    twice = tuple(Detection("cat", (100, 100, 150 + more, 150), 0.9) for more in (0, 1))
    assert len(merge(Look(PICTURE, ()), [Look(TILES[0], twice), *(Look(tile, ()) for tile in TILES[1:])])) == 2


# ---- auto ------------------------------------------------------------------------------------------------------------


def frame_result(size: float, number: int = 10, truncated: bool = False, **more: float) -> FrameResult:
    """A picture of 1,200 pixels a side with so many boxes of a size, a share of the side."""
    boxes = [(100.0 * place, 0.0, 100.0 * place + size * 1200, size * 1200) for place in range(number)]
    return FrameResult(tuple(Detection("cat", box, 0.9) for box in boxes), truncated, width=1200, height=1200, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "plan"),
    [
        (frame_result(0.2), WHOLE),
        (frame_result(0.2, number=0), WHOLE),
        (frame_result(0.2, truncated=True), (2,)),
        (frame_result(0.11), (2,)),
        (frame_result(0.08), (3,)),
        (frame_result(0.01), (6,)),
    ],
)
def test_small_boxes_and_answers_that_were_cut_off_call_for_tiles(seen: FrameResult, plan: tuple[int, ...]) -> None:
    assert plan_of([seen], 100, LEAST) == plan


def test_a_picture_that_tiles_would_not_enlarge_is_not_cut() -> None:
    assert plan_of([frame_result(0.01)], 100, (1000, 1000)) == WHOLE


def test_the_fullest_frames_have_the_first_call_on_the_budget() -> None:
    frames = [frame_result(0.08, number, time_s=float(number)) for number in (5, 9, 7)]
    assert [plan_of(frames, budget, LEAST) for budget in (0, 4, 9, 13, 27)] == [
        WHOLE,
        (1, 2, 1),
        (1, 3, 1),
        (1, 3, 2),
        (3, 3, 3),
    ]
    pages = [frame_result(0.08, 5, page=page) for page in (1, 2)]
    assert plan_of(pages, 0, LEAST) == (3, 3)
