"""The bytes of a picture to a frame of the model's input size.

Pillow, because the reference implementation resizes with it: bit for bit the same bicubic filter is what makes the
counts the reference's.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from florence_tagger.errors import DocumentError
from florence_tagger.schemas import Frame

FORMATS = ("JPEG", "PNG")

# What Pillow's parsers raise on damaged files besides OSError.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)

# Pillow only warns of large pictures; the limit of `open_picture` is checked on the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


def open_picture(content: bytes, image_size: tuple[int, int], max_pixels: int) -> Frame:
    """Decodes a picture and resizes it to `image_size` (height, width).

    Raises:
        DocumentError: not a picture of a known format, damaged, or of more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                raise DocumentError(
                    f"The picture has {picture.width} x {picture.height} pixels, more than the {max_pixels:,} accepted."
                )
            rgb = to_rgb(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError as exc:
        raise DocumentError(
            f"The content is not a picture that can be read; accepted are {', '.join(FORMATS)}."
        ) from exc
    except DAMAGED as exc:
        raise DocumentError(f"The picture is damaged: {exc}.") from exc
    height, width = image_size
    pixels = np.asarray(rgb.resize((width, height), Image.Resampling.BICUBIC))
    return Frame(pixels, rgb.width, rgb.height)


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB as it would be displayed: transparency on white, 16 bits scaled to 8, palettes resolved."""
    if picture.mode.startswith("I"):  # 16-bit grey, which `convert` would clip instead of scale
        return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")
