"""Pictures and pages to frames of the model's input size.

Pillow, because the reference implementation resizes with it: bit for bit the same bicubic filter is what makes the
counts the reference's.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import pairwise
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.IcoImagePlugin import IcoFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile, jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from florence_tagger.errors import DocumentError
from florence_tagger.media.formats import HEAD_BYTES, find_format
from florence_tagger.media.limits import OWN_SIZE, Limits
from florence_tagger.schemas import Frame, UInt8Array

MOST_SIDE = 65_535  # JPEG's own limit; Pillow's resize needs memory that grows with the longer side alone


def read_heif(file: IO[bytes]) -> ImageFile.ImageFile:
    """A HEIC file; its library is loaded only where there is one, since that takes 40 ms."""
    from pillow_heif import HeifImageFile

    return HeifImageFile(file)  # type: ignore[no-untyped-call]


# By Pillow's name of the format. Not Image.open, which keeps the reason to itself where it can't read a file.
READERS: dict[str, Callable[[IO[bytes]], Image.Image]] = {
    "AVIF": AvifImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "HEIF": read_heif,
    "ICO": lambda file: IcoFile(file).frame(0),  # the largest; IcoImageFile decodes it before its size can be checked
    "JPEG": jpeg_factory,
    "JPEG2000": Jpeg2KImageFile,
    "PNG": PngImageFile,
    "PPM": PpmImageFile,
    "TIFF": TiffImageFile,
    "WEBP": WebPImageFile,
}

# What Pillow's parsers raise on damaged files besides OSError.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    *(AttributeError, ZeroDivisionError, RuntimeError, struct.error, zlib.error),
)

Box = tuple[int, int, int, int]
FloatArray = NDArray[np.float32]

# Of a TIFF directory (TIFF 6.0, page 36): it is another one at lower resolution, as thumbnails are, or a mask.
SUBFILE_TYPE, REDUCED, MASK = 254, 1, 4

TURNED = 5  # EXIF orientations from here on exchange width and height
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
LARGE_PIXELS = 2_000_000  # from here on a second thread pays
BAND_PIXELS = 4_000_000  # of what is not RGB, so much is made RGB at a time
_resizing = ThreadPoolExecutor(2, "resize")

# Pillow only warns of large pictures; ours are checked on the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


def open_picture(content: bytes, image_size: tuple[int, int], max_pixels: int) -> Frame:
    """The picture of a file that can be trusted, here and now; of several pages or frames the first.

    Raises:
        DocumentError: not a picture, damaged, or of more than `max_pixels`.
    """
    file = BytesIO(content)
    limits = Limits(image_size, max_pixels)
    with opened(file, picture_format(content), limits) as picture:
        return still(picture, limits)


def open_rgb(content: bytes, max_pixels: int) -> Image.Image:
    """The picture as it is displayed, in RGB and in its own size; DocumentError as `open_picture`."""
    with opened(BytesIO(content), picture_format(content), Limits((1, 1), max_pixels)) as picture:
        return to_rgb(upright(picture))


def picture_format(content: bytes) -> str:
    """Pillow's name of the format of a picture; DocumentError where it is none."""
    found = find_format(content[:HEAD_BYTES])
    if found.kind != "picture":
        raise DocumentError(f"The file is a video ({found.name}), not a picture.")
    return found.decoder


@contextmanager
def opened(file: IO[bytes], form: str, limits: Limits) -> Iterator[Image.Image]:
    """A file of a format by Pillow's name, its header read and its size checked.

    Raises:
        DocumentError: of damage here and in the block, and of too many pixels.
    """
    try:
        with READERS[form](file) as picture:
            check_size(picture, limits.pixels)
            yield picture
    except DAMAGED as exc:
        raise DocumentError(f"The {form} picture is damaged or of a kind that can't be read: {exc}.") from exc


def still(picture: Image.Image, limits: Limits) -> Frame:
    """The frame of a picture that is one."""
    size = picture.size
    if limits.reduced and isinstance(picture, JpegImageFile):
        picture.draft(None, (2 * max(limits.image_size),) * 2)  # where the picture is so large
    reduced = picture.size != size
    turned = reduced and picture.getexif().get(ExifTags.Base.Orientation, 1) >= TURNED
    shown = upright(picture)
    if reduced:
        return Frame(fit(shown, limits.image_size), *(size[::-1] if turned else size))
    return Frame(fit(shown, limits.image_size), *shown.size)


def pages(picture: Image.Image, limits: Limits) -> Iterator[Frame]:
    """The frames of a file with several pages.

    Raises:
        DocumentError: it has too many, or one of them has too many pixels.
    """
    with suppress(EOFError):
        picture.seek(limits.pages)  # which looks no further than that
        raise DocumentError(f"The file has more than the {limits.pages} pages accepted.")
    page = 0
    for place in range(limits.pages):
        try:
            picture.seek(place)
        except EOFError:
            break
        if getattr(picture, "tag_v2", {}).get(SUBFILE_TYPE, 0) & (REDUCED | MASK):
            continue
        page += 1
        check_size(picture, limits.pixels)
        shown = upright(picture)
        yield Frame(fit(shown, limits.image_size), *shown.size, page=page)
    if not page:
        raise DocumentError("The file has thumbnails and masks, but no page.")


def check_size(picture: Image.Image, max_pixels: int) -> None:
    """DocumentError where the header of a picture tells of too many pixels."""
    check_pixels(picture.width, picture.height, max_pixels)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """DocumentError where so many pixels are too many."""
    size = f"The picture has {width} x {height} pixels"
    if width * height > max_pixels:
        raise DocumentError(f"{size}, more than the {max_pixels:,} accepted.")
    if max(width, height) > MOST_SIDE:
        raise DocumentError(f"{size}; a side of {MOST_SIDE:,} is accepted.")


def upright(picture: Image.Image) -> Image.Image:
    """The picture, decoded, as its EXIF data want it displayed, in at most 8 bits a channel."""
    picture.load()  # before it is turned: Pillow turns some formats while it loads them
    ImageOps.exif_transpose(picture, in_place=True)
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


def fit(picture: Image.Image, image_size: tuple[int, int]) -> UInt8Array:
    """A picture in RGB and resized to `image_size` (height, width), or `OWN_SIZE`: uint8 (height, width, 3).

    Pillow filters along the rows first and along the columns then. Rows do not depend on each other, so large pictures
    are filtered in bands, two at the same time, which changes no pixel; what is not RGB becomes so band by band, which
    saves a copy. (Since version 13 Pillow begins with the columns where the height shrinks much more than the width;
    there it is left alone.)
    """
    if image_size == OWN_SIZE:
        return np.asarray(to_rgb(picture))
    height, width = image_size
    rows_first = 3 * picture.height * width <= 4 * picture.width * height
    if picture.width * picture.height >= LARGE_PIXELS and rows_first:
        narrow = Image.new("RGB", (width, picture.height))
        boxes = bands(picture)
        for box, band in zip(boxes, _resizing.map(lambda box: narrowed(picture, box, width), boxes), strict=True):
            narrow.paste(band, box[:2])
        picture = narrow
    return np.asarray(to_rgb(picture).resize((width, height), Image.Resampling.BICUBIC))


def bands(picture: Image.Image) -> list[Box]:
    """Boxes of all rows, from top to bottom: two of what is RGB, and of limited size of what is not."""
    size = picture.width * picture.height
    number = 2 if picture.mode == "RGB" else min(max(2, size // BAND_PIXELS), picture.height)
    edges = [picture.height * index // number for index in range(number + 1)]
    return [(0, top, picture.width, bottom) for top, bottom in pairwise(edges)]


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
