"""The bytes of a picture to a frame of the model's input size.

Pillow, because the reference implementation resizes with it: bit for bit the same bicubic filter is what makes the
counts the reference's.
"""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from florence_tagger.errors import DocumentError
from florence_tagger.schemas import Frame, UInt8Array

FORMATS = ("JPEG", "PNG")
MOST_SIDE = 65_535  # JPEG's own limit; Pillow's resize needs memory that grows with the longer side alone

# What Pillow's parsers raise on damaged files besides OSError.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    struct.error,
    zlib.error,
)

LARGE_PIXELS = 2_000_000  # from here on a second thread pays
_resizing = ThreadPoolExecutor(2, "resize")

# A picture of 100 megapixels takes several hundred MB while it is decoded: only so many at a time.
_decoding = BoundedSemaphore(2)

# Pillow only warns of large pictures; ours are checked on the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


def open_picture(content: bytes, image_size: tuple[int, int], max_pixels: int) -> Frame:
    """Decodes a picture and resizes it to `image_size` (height, width).

    Raises:
        DocumentError: not a picture of a known format, damaged, or of more than `max_pixels`.
    """
    with _decoding:
        rgb = open_rgb(content, max_pixels)
        return Frame(fit(rgb, image_size), rgb.width, rgb.height)


def fit(rgb: Image.Image, image_size: tuple[int, int]) -> UInt8Array:
    """An RGB picture resized to `image_size` (height, width): uint8 (height, width, 3).

    Pillow filters along the rows first and along the columns then. Rows do not depend on each other, so large pictures
    are filtered in two halves at the same time, which changes no pixel. (Since version 13 it begins with the columns
    where the height shrinks much more than the width; there it is left alone.)
    """
    height, width = image_size
    rows_first = 3 * rgb.height * width <= 4 * rgb.width * height
    if rgb.width * rgb.height >= LARGE_PIXELS and rows_first:
        halves = [(0, 0, rgb.width, rgb.height // 2), (0, rgb.height // 2, rgb.width, rgb.height)]
        narrow = Image.new("RGB", (width, rgb.height))
        for box, half in zip(halves, _resizing.map(lambda box: narrowed(rgb, box, width), halves), strict=True):
            narrow.paste(half, box[:2])
        rgb = narrow
    return np.asarray(rgb.resize((width, height), Image.Resampling.BICUBIC))


def narrowed(rgb: Image.Image, box: tuple[int, int, int, int], width: int) -> Image.Image:
    """Some rows of a picture at another width."""
    return rgb.resize((width, box[3] - box[1]), Image.Resampling.BICUBIC, box)


def open_rgb(content: bytes, max_pixels: int) -> Image.Image:
    """The picture as it is displayed, in RGB and in its own size; DocumentError as `open_picture`."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            check_size(picture, max_pixels)
            ImageOps.exif_transpose(picture, in_place=True)
            picture.load()
            return to_rgb(picture)
    except UnidentifiedImageError as exc:
        raise DocumentError(
            f"The content is not a picture that can be read; accepted are {', '.join(FORMATS)}."
        ) from exc
    except DAMAGED as exc:
        raise DocumentError(f"The picture is damaged: {exc}.") from exc


def check_size(picture: Image.Image, max_pixels: int) -> None:
    """DocumentError where the header of a picture tells of too many pixels."""
    size = f"The picture has {picture.width} x {picture.height} pixels"
    if picture.width * picture.height > max_pixels:
        raise DocumentError(f"{size}, more than the {max_pixels:,} accepted.")
    if max(picture.size) > MOST_SIDE:
        raise DocumentError(f"{size}; a side of {MOST_SIDE:,} is accepted.")


def to_jpeg(pixels: UInt8Array, quality: int = 90) -> bytes:
    """A JPEG file of uint8 RGB pixels (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB as it would be displayed: transparency on white, 16 bits scaled to 8, palettes resolved."""
    if picture.mode.startswith("I"):  # 16-bit grey, which `convert` would clip instead of scale
        return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")
