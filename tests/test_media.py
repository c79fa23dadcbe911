"""Bytes to frames: what is displayed, in RGB, resized exactly as Pillow does it; everything else with a reason."""

import base64
import io
import re
import struct
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from florence_tagger.errors import DocumentError
from florence_tagger.media.content import decode_base64
from florence_tagger.media.frames import open_frames
from florence_tagger.media.images import fit, open_picture
from florence_tagger.media.limits import DecodeOptions
from florence_tagger.media.orientation import exif_orientation
from florence_tagger.media.sampling import Sampling
from florence_tagger.schemas import Frame
from tests import metadata, raws, variants
from tests.raws import LONG, SHORT, TEXT, Part, Values, Writer

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
        ("AAAAA", "not base64"),
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


SEGMENTS = (
    b"JFIF\0",
    b"Exif\0\0",
    b"Exif\0\0II*\0",
    b"http://ns.adobe.com/xap/1.0/\0",
    b"ICC_PROFILE\0",
    b"MPF\0MM\0*\0\0\0\x08",
)
SEGMENTS += (b"Photoshop 3.0\x008BIM\x03\xed\0\0", b"FPXR\0", b"")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of EXIF data that are damaged
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SEGMENTS), st.sampled_from([0xE0, 0xE1, 0xE2, 0xED, 0xEF, 0xFE]), st.binary(max_size=300))
def test_no_segment_beside_the_pixels_refuses_a_jpeg(start: bytes, marker: int, rest: bytes) -> None:
    assert same_as_without(metadata.jpeg_with(marker, start + rest), "JPEG")


CHUNKS = (
    b"gAMA",
    b"cHRM",
    b"sRGB",
    b"iCCP",
    b"sBIT",
    b"bKGD",
    b"hIST",
    b"pHYs",
    b"sPLT",
    b"tIME",
    b"tEXt",
    b"zTXt",
    b"iTXt",
)
CHUNKS += (b"eXIf", b"cICP", b"mDCV", b"acTL", b"fcTL", b"fdAT", b"tRNS", b"prIv")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CHUNKS), st.binary(max_size=300), st.sampled_from([b"IDAT", b"IEND"]))
def test_no_damaged_chunk_beside_the_pixels_refuses_a_png(name: bytes, data: bytes, before: bytes) -> None:
    assert same_as_without(metadata.png_with(metadata.chunk(name, data, damage=1), before=before), "PNG")


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["II*\0", "MM\0*", "II*\0\x08\0\0\0", "MM\0*\0\0\0\x08", ""]))
def test_no_exif_refuses_a_picture(data: bytes, start: str) -> None:
    exif = start.encode() + data
    if exif_orientation(exif) is None:
        for content, kind in (
            (metadata.jpeg_exif(exif), "JPEG"),
            (metadata.png_with(metadata.chunk(b"eXIf", exif)), "PNG"),
        ):
            assert same_as_without(content, kind)


def same_as_without(content: bytes, kind: str) -> bool:
    """Whether a picture shows the same as the scene alone."""
    frame, plain = opened(content), opened(plain_picture(kind))
    return bool((frame.pixels == plain.pixels).all())


@cache
def plain_picture(kind: str) -> bytes:
    return encoded(variants.picture(), kind, **({"quality": 90} if kind == "JPEG" else {}))


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT", b"PLTE"])
def test_damage_that_the_pixels_need_is_a_reason(name: bytes) -> None:
    content = bytearray(encoded(variants.picture().quantize(64), "PNG"))
    start = content.index(name)
    length = int.from_bytes(content[start - 4 : start], "big")
    content[start + 4 + length] ^= 1  # of the checksum
    with pytest.raises(DocumentError, match="damaged"):
        opened(bytes(content))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_whatever_is_beside_it(orientation: int, order: str) -> None:
    odd: dict[int, Values] = {270: (LONG, (2**31,)), 274: (SHORT, (orientation,)), 34665: (TEXT, b"x" * 40)}
    exif = Writer(order).file((Part(odd),))
    assert exif_orientation(exif) == exif_orientation(b"Exif\0\0" + exif) == orientation
    end = exif.index(struct.pack(order + "HH", 274, SHORT)) + 12  # of its entry
    assert exif_orientation(exif[:end] if end > 20 else exif) == orientation


@pytest.mark.parametrize(
    "exif", [b"", b"junk", b"II*\0", bytes(100), b"II*\0\x08\0\0\0", b"MM\0*\xff\xff\xff\xff" + bytes(20)]
)
def test_what_is_no_exif_has_no_orientation(exif: bytes) -> None:
    assert exif_orientation(exif) is None


def test_exif_goes_before_xmp() -> None:
    xmp = metadata.chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="3"/>')
    both = metadata.png_with(xmp, metadata.chunk(b"eXIf", metadata.odd_exif(6)), image=metadata.turned_left())
    assert same_as_without(both, "PNG")
    upside_down = variants.picture().transpose(Image.Transpose.ROTATE_180)
    assert same_as_without(metadata.png_with(xmp, image=upside_down), "PNG")


def test_alpha_without_a_size_of_its_own_is_as_with_it() -> None:
    image = variants.picture("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    content = metadata.avif_without_size(image)
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(content))
    expected = opened(encoded(image, "AVIF", quality=80, speed=10))
    np.testing.assert_array_equal(opened(content).pixels, expected.pixels)


def test_palettes_of_jpeg_2000_are_as_they_are_in_the_file() -> None:
    colours = variants.picture().quantize(120).convert("RGB")
    for content in (metadata.doubled_colour(), metadata.deep_palette()):
        expected = opened(encoded(colours)).pixels.astype(int)
        assert np.abs(opened(content).pixels - expected).max() <= 1


def grey_below() -> Image.Image:
    """A picture whose lower part is of the grey that libjpeg makes of what is not there."""
    image = variants.picture()
    image.paste((128, 128, 128), (0, 200, *image.size))
    return image


JPEGS = {
    "plain": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "4:4:4": {"subsampling": 0},
    "optimised": {"optimize": True},
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_ends_early_is_truncated_and_one_without_an_end_is_not(name: str, mode: str) -> None:
    for image in (variants.picture(), grey_below()):
        content = encoded(image.convert(mode), "JPEG", quality=90, **JPEGS[name])
        expected = opened(content).pixels
        without_end = () if name == "progressive" else (content[:-2], content[:-2] + b"\0\0")
        for whole in (content + bytes(70_000), *without_end):
            np.testing.assert_array_equal(opened(whole).pixels, expected)
    start = content.index(b"\xff\xda") + 100
    for cut in range(start, len(content) - 200, len(content) // 9):
        with pytest.raises(DocumentError, match="truncated"):
            opened(content[:cut])
    first = content.find(b"\xff\xda", start)  # behind the first pass of a progressive one all has a little of it
    for cut in range(start, (first if first > 0 else len(content)) - 200, 700):
        with pytest.raises(DocumentError, match="truncated"):
            opened(content[:cut] + b"\xff\xd9")


@pytest.mark.parametrize("alpha", [False, True])
def test_an_avif_that_is_left_to_ffmpeg_is_as_pillow_has_it(alpha: bool) -> None:
    image = variants.picture("RGBA") if alpha else variants.picture()
    if alpha:
        image.putpixel((0, 0), (0, 0, 0, 0))
    (expected,) = open_all(encoded(image, "AVIF", quality=80, speed=10))
    content = metadata.avif_without(b"pitm", alpha)
    (frame,) = open_all(content)
    assert (frame.width, frame.height) == image.size
    assert np.abs(frame.pixels.astype(int) - expected.pixels).mean() < 2
    for share in range(5, 100, 5):
        with pytest.raises(DocumentError):
            open_all(content[: len(content) * share // 100])


def open_all(content: bytes) -> list[Frame]:
    return list(open_frames(io.BytesIO(content), DecodeOptions(SIZE, PLENTY), Sampling()))


@pytest.mark.parametrize("kind", ["PNG", "AVIF"])
def test_animations_that_are_left_to_pillow(kind: str) -> None:
    scenes = (variants.YARD, variants.PARK)
    content = metadata.deep_animation(scenes) if kind == "PNG" else metadata.half_seen_animation()
    frames = list(open_frames(io.BytesIO(content), DecodeOptions(SIZE, PLENTY), Sampling()))
    assert frames[0].time_s == 0
    expected = [opened(encoded(variants.picture(one=one))) for one in scenes]
    off = [
        float(np.abs(got.pixels.astype(int) - one.pixels).mean()) for got, one in zip(frames, expected, strict=False)
    ]
    assert off[0] < 4
    last = frames[-1].pixels
    assert (last == 255).all() if kind == "AVIF" else off[1] < 4


@pytest.mark.parametrize("name", raws.LAYOUTS)
def test_raw_photos_are_counted_by_a_preview_of_half_their_size(name: str) -> None:
    make = raws.LAYOUTS[name]
    for side in (variants.SIDE, variants.SIDE // 2):
        assert (opened(make(raws.jpeg(side))).width) == side
    with pytest.raises(DocumentError, match=rf"raw photo \({name[:3]}.*190 x 190 pixels, the photo 384 x 384"):
        opened(make(raws.jpeg(variants.SIDE // 2 - 2)))


def test_sensors_in_tiles_of_jpeg_are_no_previews() -> None:
    sensor = raws.Part(raws.sensor(34892).fields, strip=raws.jpeg())
    content = raws.Writer().file((raws.Part({50706: (1, (1, 4, 0, 0))}, children=(sensor,)),))
    with pytest.raises(DocumentError, match="none in it"):
        opened(content)


def test_reasons_quote_no_exception() -> None:
    content = encoded(Image.fromarray(noise(40, 40, 3)), "TIFF")
    for damaged in (content[:-20], content[:4] + b"\xff" * 4 + content[8:], content[:50]):
        with pytest.raises(DocumentError) as caught:
            opened(damaged)
        assert re.fullmatch(r"The TIFF picture is (truncated or )?damaged[a-z':, ]*\.", str(caught.value))
