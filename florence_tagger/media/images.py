"""Pictures and pages to frames of the model's input size.

Pillow decodes and resizes, because the reference implementation does: the counts equal the reference's only if the
bicubic filter is the same bit by bit.
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
from florence_tagger.media.avif import make_readable
from florence_tagger.media.formats import HEAD_BYTES, TIFF, Format, find_format
from florence_tagger.media.jpeg import read_jpeg
from florence_tagger.media.jpeg2000 import read_jpeg_2000
from florence_tagger.media.limits import ORIGINAL_SIZE, DecodeOptions, check_pixels
from florence_tagger.media.orientation import (
    MIN_SWAPPED,
    UPRIGHT,
    apply_orientation,
    exif_orientation,
    exif_with_orientation,
    stated_orientation,
)
from florence_tagger.media.png import SIGNATURE, keep_pixel_chunks
from florence_tagger.media.raw import is_raw, open_preview
from florence_tagger.media.tiff import tiff_pages
from florence_tagger.schemas import Frame, UInt8Array
from florence_tagger.tiling import grid


def read_heif(file: IO[bytes]) -> ImageFile.ImageFile:
    """Open a HEIC file; its library is imported only when needed, since that takes 40 ms."""
    from pillow_heif import HeifImageFile

    return replace_orientation(HeifImageFile(file))  # type: ignore[no-untyped-call]


def replace_orientation(picture: ImageFile.ImageFile, orientation: int = UPRIGHT) -> ImageFile.ImageFile:
    """Replace a picture's EXIF and XMP data, which do not apply to its format, by an orientation."""
    picture.info.pop("xmp", None)
    picture.info["exif"] = exif_with_orientation(orientation)
    return picture


def read_avif(file: IO[bytes]) -> ImageFile.ImageFile:
    """Open an AVIF file; of its metadata only the picture's rotation applies, which Pillow returns as EXIF data."""
    picture = AvifImageFile(BytesIO(make_readable(file.read())))
    return replace_orientation(picture, exif_orientation(picture.info.get("exif", b"")) or UPRIGHT)


def read_png(file: IO[bytes]) -> PngImageFile:
    """Open a PNG file without the chunks that its pixels do not need."""
    return PngImageFile(keep_pixel_chunks(file))


def read_icon(file: IO[bytes]) -> Image.Image:
    """Open the largest picture of an ICO file; IcoImageFile decodes it before its size can be checked."""
    icon = IcoFile(file)
    file.seek(icon.entry[0].offset)
    content = file.read()
    return read_png(BytesIO(content)) if content.startswith(SIGNATURE) else icon.frame(0)


# Pillow's name of a format -> reader. Image.open would hide the reason why it can't read a file.
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

# Errors that Pillow's parsers raise for damaged files.
DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    *(AttributeError, ZeroDivisionError, RuntimeError, struct.error, zlib.error),
    ImportError,  # a codec that imagecodecs lacks
)

# Part of their message -> description in the reason; all others are described by `UNKNOWN_DAMAGE`.
DAMAGE_DESCRIPTIONS = {
    "12-bit": "has 12 bits a channel; a 12-bit JPEG can't be read",
    "truncated": "is truncated or damaged: it ends before its last pixels",
}
UNKNOWN_DAMAGE = "is damaged or of a kind that can't be read"

Box = tuple[int, int, int, int]
FloatArray = NDArray[np.float32]

DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
NO_PIXELS: UInt8Array = np.empty((0, 0, 3), np.uint8)
LARGE_PIXELS = 2_000_000  # from here on a second thread is faster
HUGE_PIXELS = 100_000_000  # from here on a copy in RGB takes too much memory
BAND_PIXELS = 4_000_000  # of a band that is converted to RGB
_resize_pool = ThreadPoolExecutor(2, "resize")

# Pillow only warns of large pictures; here the size is checked by the header, before decoding.
Image.MAX_IMAGE_PIXELS = None


def open_picture(content: bytes, image_size: tuple[int, int], max_pixels: int) -> Frame:
    """Decode the picture of a trusted file in this process; of several pages or frames the first.

    Raises:
        DocumentError: not a picture, damaged, or of more than `max_pixels`.
    """
    file_format = find_format(content[:HEAD_BYTES])
    if file_format.kind == "video":
        raise DocumentError(f"The file is a video ({file_format.name}), not a picture.")
    with closing(still_frames(BytesIO(content), file_format, DecodeOptions(image_size, max_pixels))) as frames:
        return next(frames)


def open_rgb(content: bytes, max_pixels: int) -> Image.Image:
    """Decode a picture as it is displayed, in RGB and at its original size.

    Raises:
        DocumentError: as `open_picture`.
    """
    return Image.fromarray(open_picture(content, ORIGINAL_SIZE, max_pixels).pixels)


def still_frames(file: IO[bytes], file_format: Format, options: DecodeOptions) -> Generator[Frame]:
    """Yield the frames of a file without animation: of its picture, or of its pages.

    Raises:
        DocumentError: it is damaged or too large.
    """
    if file_format.kind == "raw" or (file_format == TIFF and is_raw(file)):
        preview, orientation = open_preview(file, file_format)
        with open_checked(preview, "JPEG", options) as picture:
            yield from single_picture_frames(picture, options, orientation)
    elif file_format == TIFF:
        yield from page_frames(file, options)
    else:
        file.seek(0)
        with open_checked(file, file_format.decoder, options) as picture:
            yield from single_picture_frames(picture, options)


@contextmanager
def open_checked(file: IO[bytes], format_name: str, options: DecodeOptions) -> Iterator[Image.Image]:
    """Open a file of a format by Pillow's name, read its header and check its size.

    Raises:
        DocumentError: the file is damaged, which includes decoder errors in the block, or has too many pixels.
    """
    with translate_errors(format_name), READERS[format_name](file) as picture:
        check_pixels(picture.width, picture.height, options.max_pixels)
        yield picture


@contextmanager
def translate_errors(format_name: str) -> Iterator[None]:
    """Translate errors that a decoder raises in the block for a file of this format to DocumentError."""
    try:
        yield
    except DECODER_ERRORS as exc:
        raise DocumentError(f"The {format_name} picture {describe_damage(str(exc))}.") from exc


def describe_damage(message: str) -> str:
    """Return a description of the damage that a decoder reports."""
    return next((words for part, words in DAMAGE_DESCRIPTIONS.items() if part in message), UNKNOWN_DAMAGE)


def single_picture_frames(picture: Image.Image, options: DecodeOptions, orientation: int = UPRIGHT) -> Iterator[Frame]:
    """Yield the frames of a single picture.

    Args:
        picture: opened, not yet decoded.
        options: for decoding.
        orientation: used if the picture states none itself.
    """
    size = picture.size
    if options.reduced and isinstance(picture, JpegImageFile):
        picture.draft(None, (options.min_reduced_side,) * 2)  # scales down only pictures that are large enough
    reduced = picture.size != size
    orientation = stated_orientation(picture, orientation)
    upright_picture = decode_upright(picture, orientation)
    if not reduced:
        size = upright_picture.size
    elif orientation >= MIN_SWAPPED:
        size = size[::-1]
    return frames_with_tiles(upright_picture, Frame(NO_PIXELS, *size), options)


def page_frames(file: IO[bytes], options: DecodeOptions) -> Iterator[Frame]:
    """Yield the frames of the pages of a TIFF.

    Raises:
        DocumentError: it is damaged, has no page or too many, or one of them has too many pixels.
    """
    with translate_errors("TIFF"):
        for index, (number, page) in enumerate(tiff_pages(file, options)):
            yield from frames_with_tiles(page, Frame(NO_PIXELS, *page.size, page=number), options, index)


def frames_with_tiles(picture: Image.Image, frame: Frame, options: DecodeOptions, index: int = 0) -> Iterator[Frame]:
    """Yield the frame of a whole picture, then those of its tiles, each cut on request.

    Args:
        picture: as it is displayed, possibly downscaled.
        frame: fields that all these frames share.
        options: for decoding.
        index: of the picture in its document.
    """
    yield replace(frame, pixels=resize_to_input(picture, options.image_size))
    scale_x, scale_y = frame.width / picture.width, frame.height / picture.height
    for area in grid(*picture.size, options.tiles_for(index), options.image_size):
        x1, y1, x2, y2 = area
        tile = (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y)
        yield replace(frame, pixels=resize_to_input(picture, options.image_size, area), tile=tile)


def decode_upright(picture: Image.Image, orientation: int = UPRIGHT) -> Image.Image:
    """Decode a picture to its displayed orientation, with at most 8 bits a channel; `orientation` is the default."""
    picture.load()
    picture = apply_orientation(picture, stated_orientation(picture, orientation))
    return to_8_bits(picture) if picture.mode in DEEP_MODES else picture


def to_8_bits(picture: Image.Image) -> Image.Image:
    """Convert gray of 16 or 32 bits or floats to 8 bits; Pillow's `convert` would clip it.

    16 bits are scaled by their range. The range of wider integers and floats is not known: floats within 0 to 1 and
    integers within 0 to 65,535 are scaled by that range, all others from their minimum to their maximum.
    """
    ranges = [(float(values.min()), float(values.max())) for _, values in float_bands(picture)]
    black, white = min(low for low, _ in ranges), max(high for _, high in ranges)
    span = 1.0 if picture.mode == "F" else 65_535.0
    if black < 0 or white > span:
        span = max(white - black, 1e-6)
    else:
        black = 0.0
    gray = Image.new("L", picture.size)
    for box, values in float_bands(picture):
        band = ((values - black) * (255.99 / span)).clip(0, 255).astype(np.uint8)
        gray.paste(Image.fromarray(band), box[:2])
    return gray


def float_bands(picture: Image.Image) -> Iterator[tuple[Box, FloatArray]]:
    """Yield the finite values of a gray picture in bands, since floats take four times the memory of the result."""
    for box in band_boxes(picture):
        values = np.asarray(picture.crop(box)).astype(np.float32)
        yield box, np.nan_to_num(values, copy=False, posinf=0, neginf=0)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a picture of 8 bits to RGB as it would be displayed: transparency on white, palettes resolved."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def resize_to_input(picture: Image.Image, image_size: tuple[int, int], area: Box | None = None) -> UInt8Array:
    """Return a picture, or an area of it, in RGB and resized to `image_size`: uint8 (height, width, 3).

    Pillow filters along the rows first and along the columns then. Rows do not depend on each other, so large pictures
    are filtered in two bands in parallel, which changes no pixel; pictures of other modes are converted to RGB band by
    band, which saves a copy. (Since version 13 Pillow begins with the columns if the height shrinks much more than the
    width. Such pictures are left to it, unless an area is cut or a copy would take too much memory; values may then
    differ by 1 of 255.)

    Args:
        picture: in 8 bits a channel.
        image_size: (height, width), pixels, or `ORIGINAL_SIZE`.
        area: xyxy, pixels of the picture; None for all of it.
    """
    if image_size == ORIGINAL_SIZE:
        return np.asarray(to_rgb(picture))
    height, width = image_size
    x1, y1, x2, y2 = area or (0, 0, *picture.size)
    pixels = (x2 - x1) * (y2 - y1)
    rows_first = 3 * (y2 - y1) * width <= 4 * (x2 - x1) * height or pixels > HUGE_PIXELS or area is not None
    if pixels >= LARGE_PIXELS and rows_first:
        narrow = Image.new("RGB", (width, y2 - y1))
        boxes = band_boxes(picture, area)
        for box, band in zip(boxes, _resize_pool.map(lambda box: resize_rows(picture, box, width), boxes), strict=True):
            narrow.paste(band, (0, box[1] - y1))
        picture = narrow
    elif area is not None:
        picture = picture.crop(area)
    return np.asarray(to_rgb(picture).resize((width, height), Image.Resampling.BICUBIC))


def band_boxes(picture: Image.Image, area: Box | None = None) -> list[Box]:
    """Return boxes of all rows of an area, top to bottom: two for RGB, more of limited size for other modes."""
    x1, y1, x2, y2 = area or (0, 0, *picture.size)
    size = (x2 - x1) * (y2 - y1)
    num_bands = 2 if picture.mode == "RGB" else min(max(2, size // BAND_PIXELS), y2 - y1)
    edges = [y1 + (y2 - y1) * index // num_bands for index in range(num_bands + 1)]
    return [(x1, top, x2, bottom) for top, bottom in pairwise(edges)]


def resize_rows(picture: Image.Image, box: Box, width: int) -> Image.Image:
    """Return some rows of a picture in RGB, resized to another width."""
    size = (width, box[3] - box[1])
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture.resize(size, Image.Resampling.BICUBIC, box)
    return to_rgb(picture.crop(box)).resize(size, Image.Resampling.BICUBIC)


def to_jpeg(pixels: UInt8Array, quality: int = 90) -> bytes:
    """Encode uint8 RGB pixels (H, W, 3) as a JPEG file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
