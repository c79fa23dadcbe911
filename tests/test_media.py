"""Bytes to frames: what is displayed, in RGB, resized exactly as Pillow does it; everything else with a reason."""

import base64
import io
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from florence_tagger.errors import DocumentError
from florence_tagger.media.content import decode_base64
from florence_tagger.media.images import fit, open_picture
from florence_tagger.schemas import Frame

SIZE = (48, 64)
PLENTY = 10**8


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(content: bytes, max_pixels: int = PLENTY) -> Frame:
    return open_picture(content, SIZE, max_pixels)


def noise(*shape: int) -> Any:
    return np.random.default_rng(5).integers(0, 256, shape, np.uint8)


SHAPES = [(1501, 2003), (1634, 1226), (4032, 3024), (4000, 3000), (3024, 4032), (1442, 1442), (2500, 1500), (33, 65535)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(768, 768), (192, 192)])
def test_large_pictures_are_resized_as_pillow_does_it(shape: tuple[int, int], size: tuple[int, int]) -> None:
    picture = Image.fromarray(noise(*shape, 3))
    np.testing.assert_array_equal(fit(picture, size), picture.resize(size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", [(301, 97, 3), (20, 30, 3), (48, 64, 3)])
def test_pixels_are_pillows_bicubic_resize(shape: tuple[int, ...]) -> None:
    picture = Image.fromarray(noise(*shape))
    frame = opened(encoded(picture))
    assert (frame.width, frame.height) == picture.size
    assert frame.pixels.shape == (48, 64, 3)
    np.testing.assert_array_equal(frame.pixels, picture.resize((64, 48), Image.Resampling.BICUBIC))


def test_a_turned_photo_is_seen_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    frame = opened(encoded(Image.fromarray(noise(30, 20, 3)), "JPEG", exif=exif, quality=95))
    assert (frame.width, frame.height) == (30, 20)


def uniform(frame: Frame) -> tuple[int, ...]:
    colours = np.unique(frame.pixels.reshape(-1, 3), axis=0)
    assert len(colours) == 1
    return tuple(colours[0].tolist())


@pytest.mark.parametrize(
    ("picture", "kind", "colour"),
    [
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), "PNG", (255, 0, 0)),
        (Image.new("LA", (8, 8), (0, 128)), "PNG", (127, 127, 127)),
        (Image.new("L", (8, 8), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (8, 8), 1), "PNG", (255, 255, 255)),
        (Image.new("I;16", (8, 8), 0x8000), "PNG", (127, 127, 127)),
        (Image.new("RGB", (8, 8), (10, 200, 30)).quantize(2), "PNG", (10, 200, 30)),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG", (255, 255, 255)),
        (Image.new("L", (8, 8), 90), "JPEG", (90, 90, 90)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_modes(picture: Image.Image, kind: str, colour: tuple[int, ...]) -> None:
    assert uniform(opened(encoded(picture, kind))) == colour


def test_a_transparent_palette_is_on_white() -> None:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 200, 0, 0])
    assert uniform(opened(encoded(picture, transparency=1))) == (255, 255, 255)


def test_too_many_pixels_are_refused_by_the_header() -> None:
    with pytest.raises(DocumentError, match=r"30 x 20 pixels, more than the 599 accepted"):
        opened(encoded(Image.new("RGB", (30, 20))), 599)


def test_a_thin_line_is_refused() -> None:
    with pytest.raises(DocumentError, match=r"70000 x 1 pixels; a side of 65,535 is accepted"):
        opened(encoded(Image.new("RGB", (70_000, 1))))


@pytest.mark.parametrize("content", [b"x", b"GIF89a", bytes(1000), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_picture_has_a_reason(content: bytes) -> None:
    with pytest.raises(DocumentError, match=r"picture"):
        opened(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_and_damaged_files_have_a_reason(kind: str) -> None:
    content = encoded(Image.fromarray(noise(40, 40, 3)), kind)
    random = np.random.default_rng(1)
    for length in range(1, len(content) - 20, 41):
        with pytest.raises(DocumentError):
            opened(content[:length])
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 8):
            damaged[place] ^= int(random.integers(1, 256))
        with suppress(DocumentError):  # nothing else may come out; damage that a decoder does not notice is fine
            opened(bytes(damaged))


@given(st.binary(min_size=1, max_size=200), st.sampled_from(["", "data:image/png;base64,"]))
def test_base64(content: bytes, prefix: str) -> None:
    text = base64.b64encode(content).decode()
    wrapped = "\r\n\t ".join(text[i : i + 7] for i in range(0, len(text), 7))
    assert decode_base64(prefix + wrapped, 1000) == content


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("data:image/png;base64,", "empty"),
        ("AAA", "not base64"),
        ("A*==", "not base64"),
        ("bücher", "not base64"),
        ("  DATA:image/png;base64, A", "not base64"),
        ("data:no comma", "empty"),
        ("A" * 2000, "larger than 0.001 MB"),
    ],
)
def test_bad_base64(text: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        decode_base64(text, 1000)
