"""TIFF files to pixels: each layout of samples shows the same, and of resolutions one is looked at."""

import io
import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from florence_tagger.errors import DocumentError
from florence_tagger.media.formats import TIFF
from florence_tagger.media.images import open_rgb, stills
from florence_tagger.media.limits import OWN_SIZE, DecodeOptions
from florence_tagger.media.tiff import ALIKE, small_grey
from tests import tiffs
from tests.variants import PARK, QUEUE, SIDE, STREET, YARD, picture

LIMITS = DecodeOptions(OWN_SIZE, 10**8)
RANGES = {  # by NumPy's type the values that are black and white
    "u1": (0, 255),
    "u2": (0, 65_535),
    "u4": (0, 2**32 - 1),
    "u8": (0, 2**60),
    "i1": (-128, 127),
    "i2": (-32_768, 32_767),
    "i4": (-(10**9), 10**9),
    "f2": (0, 1),
    "f4": (-200, 565),
    "f8": (0, 1),
}
STORED: dict[str, dict[str, Any]] = {
    "one strip": {"rowsperstrip": 61},
    "strips": {"rowsperstrip": 13},
    "tiles": {"tile": (16, 32)},
}
PACKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "LZW": {"compression": "lzw"},
    "LZW, predictor": {"compression": "lzw", "predictor": 2},
    "deflate": {"compression": "zlib"},
    "float predictor": {"compression": "zlib", "predictor": 3},
    "PackBits": {"compression": "packbits"},
    "Zstandard": {"compression": "zstd"},
}


def shown(content: bytes) -> Any:
    """The pixels of the first page."""
    return np.asarray(open_rgb(content, 10**8)).astype(np.float64)


def truth(mode: str, pixels: Any = None) -> Any:
    """What is shown of pixels of 8 bits, or of the scene."""
    pixels = np.array(picture(mode) if pixels is None else pixels)
    pixels[0, 0], pixels[0, 1] = 0, 255
    return np.asarray(Image.fromarray(pixels).convert("RGB")).astype(np.float64)


def noise(mode: str) -> Any:
    return np.random.default_rng(7).integers(0, 256, (61, 53, 3) if mode == "RGB" else (61, 53), np.uint8)


def fitting(kind: str, packing: str) -> bool:
    """Whether a predictor is for a kind of numbers."""
    return ("predictor" not in packing) or (("float" in packing) == (kind[0] == "f"))


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("kind", RANGES)
def test_every_layout_shows_the_same(kind: str, packing: str) -> None:
    if not fitting(kind, packing):
        packing = "plain"
    least, most = RANGES[kind]
    for order, big, planar, stored in itertools.product("<>", (False, True), ("contig", "separate"), STORED):
        pixels = tiffs.ranging(noise("RGB"), kind, most, least)
        options = STORED[stored] | PACKED[packing] | {"byteorder": order, "bigtiff": big, "planarconfig": planar}
        arranged = tiffs.apart(pixels) if planar == "separate" else pixels
        content = tiffs.written(arranged, photometric="rgb", **options)
        assert np.abs(shown(content) - truth("RGB", noise("RGB"))).max() <= 1.5, (order, big, planar, stored)


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_any_number_of_bits(bits: int, mode: str) -> None:
    for order, compression, planar in itertools.product("<>", (1, 8), (1, 2)):
        if bits == 16 and order == "<":
            continue  # whole bytes are in the order of the file
        content = tiffs.packed(noise(mode), bits, order, compression, planar)
        off = np.abs(shown(content) - truth(mode, noise(mode))).max()
        assert off <= 255 / (2**bits - 1) + 1, (order, compression, planar)


def test_what_is_no_number_is_black_and_stretches_nothing() -> None:
    pixels = tiffs.scene_in("f4", "L", 3000, 1000)
    pixels[5, 5], pixels[5, 6], pixels[5, 7] = np.nan, np.inf, -np.inf
    values = shown(tiffs.written(pixels, photometric="minisblack"))
    assert values[5, 5:8, 0].tolist() == [0, 255, 0]
    assert np.abs(np.delete(values - truth("L"), 5, 0)).max() <= 1.5


def test_small_integers_of_32_bits_are_as_those_of_16() -> None:
    content = tiffs.written(tiffs.scene_in("u4", "L", 65_535), photometric="minisblack")
    assert np.abs(shown(content) - truth("L")).max() <= 1.5


@pytest.mark.parametrize("extra", ["assocalpha", "unassalpha"])
@pytest.mark.parametrize(("kind", "most"), [("u1", 255), ("u2", 65_535), ("f4", 1)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_alpha_is_on_white(mode: str, kind: str, most: int, extra: str) -> None:
    expected = truth(mode)
    expected[: SIDE // 8] = expected[: SIDE // 8] * 0.6 + 255 * 0.4
    assert np.abs(shown(tiffs.in_alpha(kind, most, extra, mode)) - expected).max() <= 3


def pages_of(content: bytes) -> list[Any]:
    return [(frame.page, frame.width) for frame in stills(io.BytesIO(content), TIFF, LIMITS)]


@pytest.mark.parametrize("name", tiffs.LEVELS)
def test_of_resolutions_the_first_is_looked_at(name: str) -> None:
    assert [width for _, width in pages_of(tiffs.LEVELS[name]())] == [SIDE]


def test_pages_of_half_the_size_are_pages() -> None:
    assert pages_of(tiffs.half_sized_pages(STREET, PARK)) == [(1, SIDE), (2, SIDE // 2)]


def test_a_sole_thumbnail_is_a_page() -> None:
    content = tiffs.Writer().file((tiffs.page(picture(), {254: (tiffs.LONG, (1,))}),))
    assert pages_of(content) == [(None, SIDE)]


def test_thumbnails_alone_are_refused() -> None:
    small = tiffs.page(picture(), {254: (tiffs.LONG, (1,))})
    with pytest.raises(DocumentError, match="no page"):
        pages_of(tiffs.Writer().file((small, small)))


def likeness(first: Image.Image, second: Image.Image) -> float:
    return float(np.corrcoef(small_grey(first).ravel(), small_grey(second).ravel())[0, 1])


def test_levels_are_more_alike_than_scenes() -> None:
    image, filters = picture(), list(Image.Resampling)
    halves = [image.resize((SIDE // 2, SIDE // 2), one) for one in filters]
    same = [likeness(image, half) for half in halves]
    others = [
        likeness(picture(one=one), picture(one=other))
        for one, other in itertools.combinations((STREET, QUEUE, YARD, PARK), 2)
    ]
    print(f"levels {min(same):.3f}, scenes {max(others):.3f}")
    assert max(others) + 0.03 < ALIKE < min(same) - 0.03


def test_text_on_pages_of_one_layout_is_not_alike() -> None:
    rng = np.random.default_rng(4)
    written_pages = []
    for _ in range(2):
        lines = np.full((1754, 1240), 255, np.uint8)
        for top in range(120, 1600, 24):
            words = rng.random(125) < 0.8
            lines[top : top + 14, 120:1120] = np.where(np.repeat(words, 8), rng.integers(0, 2, 1000) * 255, 255)
        written_pages.append(Image.fromarray(lines))
    print(f"pages {likeness(*written_pages):.3f}")
    assert likeness(*written_pages) < ALIKE - 0.03


@pytest.mark.parametrize("missing", range(1, 5000, 331))
def test_a_truncated_deep_page_has_a_reason(missing: int) -> None:
    content = tiffs.written(tiffs.scene_in("u2", largest=65_535), photometric="rgb", compression="zlib", rowsperstrip=9)
    with pytest.raises(DocumentError, match="damaged"):
        shown(content[:-missing])


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"planarconfig": "separate"}])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_a_page_that_ends_too_early_has_a_reason(kind: str, options: dict[str, Any]) -> None:
    pixels = tiffs.ranging(noise("RGB"), kind, RANGES[kind][1])
    if "planarconfig" in options:
        pixels = tiffs.apart(pixels)
    content = tiffs.written(pixels, photometric="rgb", **options)
    for missing in (1, 2, 20, 500, len(content) // 2):
        with pytest.raises(DocumentError, match="truncated or damaged"):
            shown(content[:-missing])


@pytest.mark.parametrize("bits", [8, 16])
def test_undefined_samples_are_unsigned(bits: int) -> None:
    content = tiffs.packed(noise("L"), bits, ">", sample_format=4)
    assert np.abs(shown(content) - truth("L", noise("L"))).max() <= 1.5


def test_samples_of_different_bits_have_a_reason() -> None:
    fields: dict[int, tiffs.Values] = {258: (tiffs.SHORT, (5, 6, 5))}
    with pytest.raises(DocumentError, match="kind that can't be read"):
        shown(tiffs.Writer().file((tiffs.page(picture(), fields),)))
