"""Pictures and pages to frames of the model's input size.

Pillow, because the reference implementation resizes with it: bit for bit the same bicubic filter is what makes the
counts the reference's.
"""

import struct
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.IcoImagePlugin import IcoFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.WebPImagePlugin import WebPImageFile

from florence_tagger.errors import DocumentError
from florence_tagger.media.avif import readable_avif
from florence_tagger.media.formats import HEAD_BYTES, TIFF, Format, find_format
from florence_tagger.media.jpeg import read_jpeg
from florence_tagger.media.jpeg2000 import read_jpeg_2000
from florence_tagger.media.limits import OWN_SIZE, DecodeOptions, check_pixels
from florence_tagger.media.orientation import (
    TURNED,
    UPRIGHT,
    exif_of,
    exif_orientation,
    orientation_of,
    turned,
)
from florence_tagger.media.png import SIGNATURE, pixels_alone
from florence_tagger.media.raw import is_raw, open_preview
from florence_tagger.media.tiff import tiff_pages
from florence_tagger.schemas import Frame, UInt8Array
from florence_tagger.tiling import grid


def read_heif(file: IO[bytes]) -> ImageFile.ImageFile:
    """A HEIC file; its library is loaded only where there is one, since that takes 40 ms."""
    from pillow_heif import HeifImageFile

    return untold(HeifImageFile(file))  # type: ignore[no-untyped-call]


def untold(picture: ImageFile.ImageFile, orientation: int = UPRIGHT) -> ImageFile.ImageFile:
    """A picture of a format in which EXIF and XMP data don't say how it is to be turned."""
    picture.info.pop("xmp", None)
    picture.info["exif"] = exif_of(orientation)
    return picture


def read_avif(file: IO[bytes]) -> ImageFile.ImageFile:
    """An AVIF file, the turns of its picture, which Pillow hands over as EXIF data, and no other."""
    picture = AvifImageFile(BytesIO(readable_avif(file.read())))
    return untold(picture, exif_orientation(picture.info.get("exif", b"")) or UPRIGHT)


def read_png(file: IO[bytes]) -> PngImageFile:
    """A PNG file, without what its pixels don't need."""
    return PngImageFile(pixels_alone(file))


def read_icon(file: IO[bytes]) -> Image.Image:
    """The largest picture of an ICO file; IcoImageFile decodes it before its size can be checked."""
    icon = IcoFile(file)
    file.seek(icon.entry[0].offset)
    content = file.read()
    return read_png(BytesIO(content)) if content.startswith(SIGNATURE) else icon.frame(0)


# By Pillow's name of the format. Not Image.open, which keeps the reason to itself where it can't read a file.
READERS: dict[str, Callable[[IO[bytes]], Image.Image]] = {
    "AVIF": read_avif,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "HEIF": read_heif,
    "ICO": read_icon,
    "JPEG": read_jpeg,
    "JPEG2000": read_jpeg_2000,
    "PNG": read_png,
    "PPM": PpmImageFile,
    "WEBP": WebPImageFile,
}

# What Pillow's parsers raise on damaged files besides OSError.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    *(AttributeError, ZeroDivisionError, RuntimeError, struct.error, zlib.error),
    ImportError,  # of a codec that imagecodecs has not
)

# What they say of it, and what is said for it; anything else is the same in their words.
DAMAGES = {
    "12-bit": "has 12 bits a channel; a 12-bit JPEG can't be read",
    "truncated": "is truncated or damaged: it ends before its last pixels",
}
DAMAGED_SOMEHOW = "is damaged or of a kind that can't be read"

Box = tuple[int, int, int, int]
FloatArray = NDArray[np.float32]

DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
NO_PIXELS: UInt8Array = np.empty((0, 0, 3), np.uint8)
LARGE_PIXELS = 2_000_000  # from here on a second thread pays
HUGE_PIXELS = 100_000_000  # from here on a copy in RGB takes too much memory
BAND_PIXELS = 4_000_000  # of what is not RGB, so much is made RGB at a time
_resizing = ThreadPoolExecutor(2, "resize")

# Pillow only warns of large pictures; ours are checked on the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


def open_picture(content: bytes, image_size: tuple[int, int], max_pixels: int) -> Frame:
    """The picture of a file that can be trusted, here and now; of several pages or frames the first.

    Raises:
        DocumentError: not a picture, damaged, or of more than `max_pixels`.
    """
    found = find_format(content[:HEAD_BYTES])
    if found.kind == "video":
        raise DocumentError(f"The file is a video ({found.name}), not a picture.")
    with closing(stills(BytesIO(content), found, DecodeOptions(image_size, max_pixels))) as frames:
        return next(frames)


def open_rgb(content: bytes, max_pixels: int) -> Image.Image:
    """The picture as it is displayed, in RGB and in its own size; DocumentError as `open_picture`."""
    return Image.fromarray(open_picture(content, OWN_SIZE, max_pixels).pixels)


def stills(file: IO[bytes], found: Format, limits: DecodeOptions) -> Generator[Frame]:
    """The frames of a file that shows all at once: its picture, or its pages.

    Raises:
        DocumentError: it is damaged or too large.
    """
    if found.kind == "raw" or (found == TIFF and is_raw(file)):
        preview, orientation = open_preview(file, found)
        with opened(preview, "JPEG", limits) as picture:
            yield from still(picture, limits, orientation)
    elif found == TIFF:
        yield from pages(file, limits)
    else:
        file.seek(0)
        with opened(file, found.decoder, limits) as picture:
            yield from still(picture, limits)


@contextmanager
def opened(file: IO[bytes], form: str, limits: DecodeOptions) -> Iterator[Image.Image]:
    """A file of a format by Pillow's name, its header read and its size checked.

    Raises:
        DocumentError: of damage here and in the block, and of too many pixels.
    """
    with readable(form), READERS[form](file) as picture:
        check_pixels(picture.width, picture.height, limits.pixels)
        yield picture


@contextmanager
def readable(form: str) -> Iterator[None]:
    """DocumentError where a decoder finds a file of this format damaged in the block."""
    try:
        yield
    except DAMAGED as exc:
        raise DocumentError(f"The {form} picture {damage(str(exc))}.") from exc


def damage(said: str) -> str:
    """What a decoder says of a file, in words."""
    return next((words for part, words in DAMAGES.items() if part in said), DAMAGED_SOMEHOW)


def still(picture: Image.Image, limits: DecodeOptions, orientation: int = UPRIGHT) -> Iterator[Frame]:
    """The frames of a picture that is one; `orientation` is that of a picture that does not give it itself."""
    size = picture.size
    if limits.reduced and isinstance(picture, JpegImageFile):
        picture.draft(None, (limits.least_side,) * 2)  # where the picture is so large
    reduced = picture.size != size
    orientation = orientation_of(picture, orientation)
    shown = upright(picture, orientation)
    if not reduced:
        size = shown.size
    elif orientation >= TURNED:
        size = size[::-1]
    return frames_of(shown, Frame(NO_PIXELS, *size), limits)


def pages(file: IO[bytes], limits: DecodeOptions) -> Iterator[Frame]:
    """The frames of a TIFF, which are its pages.

    Raises:
        DocumentError: it is damaged, has no page or too many, or one of them has too many pixels.
    """
    with readable("TIFF"):
        for place, (number, page) in enumerate(tiff_pages(file, limits)):
            yield from frames_of(page, Frame(NO_PIXELS, *page.size, page=number), limits, place)


def frames_of(picture: Image.Image, frame: Frame, limits: DecodeOptions, place: int = 0) -> Iterator[Frame]:
    """The frames that a picture is looked at in: the whole, then its tiles, each cut when it is asked for.

    Args:
        picture: as it is displayed, possibly smaller.
        frame: what there is to say of all of them.
        place: the picture's number in its document, from 0.
    """
    yield replace(frame, pixels=fit(picture, limits.image_size))
    across, down = frame.width / picture.width, frame.height / picture.height
    for area in grid(*picture.size, limits.tiles_of(place), limits.image_size):
        x1, y1, x2, y2 = area
        tile = (x1 * across, y1 * down, x2 * across, y2 * down)
        yield replace(frame, pixels=fit(picture, limits.image_size, area), tile=tile)


def upright(picture: Image.Image, orientation: int = UPRIGHT) -> Image.Image:
    """The picture, decoded, as its own data or else `orientation` want it displayed, in at most 8 bits a channel."""
    picture.load()
    picture = turned(picture, orientation_of(picture, orientation))
    return eight_bits(picture) if picture.mode in DEEP_MODES else picture


def eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats in 8 bits; `convert` would clip it.

    16 bits are scaled by their range. Of wider integers and floats the range is not known: floats from 0 to 1 and
    integers from 0 to 65,535 are taken for the whole range, all else is stretched from its least to its largest value.
    """
    ranges = [(float(values.min()), float(values.max())) for _, values in deep_bands(picture)]
    least, most = min(low for low, _ in ranges), max(high for _, high in ranges)
    whole = 1.0 if picture.mode == "F" else 65_535.0
    if least < 0 or most > whole:
        whole = max(most - least, 1e-6)
    else:
        least = 0.0
    grey = Image.new("L", picture.size)
    for box, values in deep_bands(picture):
        band = ((values - least) * (255.99 / whole)).clip(0, 255).astype(np.uint8)
        grey.paste(Image.fromarray(band), box[:2])
    return grey


def deep_bands(picture: Image.Image) -> Iterator[tuple[Box, FloatArray]]:
    """The values of a grey picture, finite ones, band by band, since they take four times the memory of the result."""
    for box in bands(picture):
        values = np.asarray(picture.crop(box)).astype(np.float32)
        yield box, np.nan_to_num(values, copy=False, posinf=0, neginf=0)


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of 8 bits in RGB as it would be displayed: transparency on white, palettes resolved."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def fit(picture: Image.Image, image_size: tuple[int, int], area: Box | None = None) -> UInt8Array:
    """A picture, or an area of it, in RGB and of `image_size` (height, width), or `OWN_SIZE`: uint8 (height, width, 3).

    Pillow filters along the rows first and along the columns then. Rows do not depend on each other, so large pictures
    are filtered in bands, two at the same time, which changes no pixel; what is not RGB becomes so band by band, which
    saves a copy. (Since version 13 Pillow begins with the columns where the height shrinks much more than the width;
    there it is left alone, unless it is an area or would take too much memory; then values may differ by 1 of 255.)
    """
    if image_size == OWN_SIZE:
        return np.asarray(to_rgb(picture))
    height, width = image_size
    x1, y1, x2, y2 = area or (0, 0, *picture.size)
    pixels = (x2 - x1) * (y2 - y1)
    rows_first = 3 * (y2 - y1) * width <= 4 * (x2 - x1) * height or pixels > HUGE_PIXELS or area is not None
    if pixels >= LARGE_PIXELS and rows_first:
        narrow = Image.new("RGB", (width, y2 - y1))
        boxes = bands(picture, area)
        for box, band in zip(boxes, _resizing.map(lambda box: narrowed(picture, box, width), boxes), strict=True):
            narrow.paste(band, (0, box[1] - y1))
        picture = narrow
    elif area is not None:
        picture = picture.crop(area)
    return np.asarray(to_rgb(picture).resize((width, height), Image.Resampling.BICUBIC))


def bands(picture: Image.Image, area: Box | None = None) -> list[Box]:
    """Boxes of all rows of an area, from top to bottom: two of what is RGB, and of limited size of what is not."""
    x1, y1, x2, y2 = area or (0, 0, *picture.size)
    size = (x2 - x1) * (y2 - y1)
    number = 2 if picture.mode == "RGB" else min(max(2, size // BAND_PIXELS), y2 - y1)
    edges = [y1 + (y2 - y1) * index // number for index in range(number + 1)]
    return [(x1, top, x2, bottom) for top, bottom in pairwise(edges)]


def narrowed(picture: Image.Image, box: Box, width: int) -> Image.Image:
    """Some rows of a picture in RGB and at another width."""
    size = (width, box[3] - box[1])
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture.resize(size, Image.Resampling.BICUBIC, box)
    return to_rgb(picture.crop(box)).resize(size, Image.Resampling.BICUBIC)


def to_jpeg(pixels: UInt8Array, quality: int = 90) -> bytes:
    """A JPEG file of uint8 RGB pixels (H, W, 3)."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
