"""TIFF files like those of cameras, scanners and scientific programs, written with tifffile or by hand."""

import io
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageCms

from tests.raws import LONG, SHORT, Part, Values, Writer
from tests.variants import SIDE, Scene, picture

RGB, GRAY = 2, 1  # PhotometricInterpretation


def written(pixels: Any, **options: Any) -> bytes:
    """Return a TIFF that tifffile writes."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


def scene_in(dtype: Any, mode: str = "RGB", max_value: float = 1.0, min_value: float = 0.0) -> Any:
    """Return the scene in samples of a NumPy dtype that span the range from `min_value` to `max_value`."""
    return ranging(np.array(picture(mode)), dtype, max_value, min_value)


def ranging(pixels: Any, dtype: Any, max_value: float, min_value: float = 0.0) -> Any:
    """Scale 8-bit pixels to samples of a NumPy dtype that span the range from `min_value` to `max_value`."""
    pixels[0, 0], pixels[0, 1] = 0, 255
    return (min_value + pixels.astype(np.float64) * ((max_value - min_value) / 255)).astype(dtype)


def apart(pixels: Any) -> Any:
    """Return the pixels in planes: with the channels first."""
    return np.moveaxis(pixels, -1, 0)


def bits_of(samples: Any, bits: int) -> bytes:
    """Pack samples of `bits` bits without gaps; each row starts at a byte."""
    rows = samples.reshape(len(samples), -1).astype(np.uint32)
    single_bits = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single_bits.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def packed(
    pixels: Any, bits: int, order: str = "<", compression: int = 1, planar: int = 1, sample_format: int = 1
) -> bytes:
    """Return a TIFF of samples of any number of bits, which few programs write."""
    samples = ranging(np.array(pixels), np.uint32, (1 << bits) - 1)
    height, width, channels = (*samples.shape, 1)[:3]
    writer = Writer(order)
    planes = [bits_of(plane, bits) for plane in (apart(samples) if planar == 2 and channels > 1 else [samples])]
    strips = [zlib.compress(plane) if compression == 8 else plane for plane in planes]
    offsets = tuple(map(writer.put, strips))
    fields: dict[int, Values] = {256: (LONG, (width,)), 257: (LONG, (height,)), 258: (SHORT, (bits,) * channels)}
    fields |= {259: (SHORT, (compression,)), 262: (SHORT, (RGB if channels == 3 else GRAY,)), 273: (LONG, offsets)}
    fields |= {277: (SHORT, (channels,)), 278: (LONG, (height,)), 279: (LONG, tuple(map(len, strips)))}
    return writer.file((Part(fields | {284: (SHORT, (planar,)), 339: (SHORT, (sample_format,) * channels)}),))


def page(image: Image.Image, fields: dict[int, Values] | None = None, *children: Part) -> Part:
    """Return a page in RGB, with further fields and subdirectories."""
    required: dict[int, Values] = {256: (LONG, (image.width,)), 257: (LONG, (image.height,)), 258: (SHORT, (8, 8, 8))}
    required |= {259: (SHORT, (1,)), 262: (SHORT, (RGB,)), 277: (SHORT, (3,)), 278: (LONG, (image.height,))}
    return Part(required | (fields or {}), image.tobytes(), children=children)


def levels(fields: dict[int, Values], sampling: Image.Resampling = Image.Resampling.BOX) -> bytes:
    """Return a TIFF of a page and its lower resolutions, each half as large as the previous one, with `fields`."""
    image = picture()
    sizes = [SIDE >> level for level in range(1, 6)]
    lower = [page(image.resize((side, side), sampling), fields) for side in sizes]
    return Writer().file((page(image), *lower))


def half_sized_pages(first: Scene, second: Scene) -> bytes:
    """Return a TIFF of two pages; the second has half the sides of the first, but shows another scene."""
    half = picture(scene=second).resize((SIDE // 2, SIDE // 2), Image.Resampling.BICUBIC)
    return Writer().file((page(picture(scene=first)), page(half)))


def page_in_a_thumbnail() -> bytes:
    """Return a TIFF of a thumbnail whose subdirectory is the page."""
    small = picture().resize((48, 48))
    return Writer().file((page(small, {254: (LONG, (1,))}, page(picture(), {254: (LONG, (0,))})),))


def odd_entries() -> bytes:
    """Return a TIFF with entries of unusual types, entries beyond the end of the file, and invalid EXIF data."""
    odd: dict[int, Values] = {270: (LONG, (7,)), 282: (2, b"72 dpi\0"), 305: (SHORT, (1,)), 700: (LONG, (9,))}
    return Writer().file((page(picture(), odd | {34665: (LONG, (3,)), 34853: (LONG, (2**31,))}),))


def in_alpha(dtype: Any, max_value: int, extra: str, mode: str = "RGB") -> bytes:
    """Return a TIFF of a scene with partly transparent rows, with premultiplied or separate alpha."""
    colors = scene_in(np.float64, mode).reshape(SIDE, SIDE, -1)
    alpha = np.ones((SIDE, SIDE, 1))
    alpha[: SIDE // 8] = 0.6
    samples = np.dstack([colors * alpha if extra == "assocalpha" else colors, alpha])
    photometric = "rgb" if mode == "RGB" else "minisblack"
    return written((samples * max_value).astype(dtype), photometric=photometric, extrasamples=[extra])


def lab() -> Any:
    """Return the scene in CIELAB of 8 bits, with signed a and b."""
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    return np.asarray(ImageCms.applyTransform(picture(), transform))


def palette_of_16_bits() -> bytes:
    """Return a TIFF with a palette and indices of 16 bits."""
    image = picture().quantize(200)
    colormap = np.zeros((3, 65_536), np.uint16)
    palette = np.array(image.getpalette()).reshape(-1, 3).T
    colormap[:, : palette.shape[1]] = palette * 257
    return written(np.asarray(image).astype(np.uint16), photometric="palette", colormap=colormap)


Make = Callable[[], bytes]
BIG = 65_535

DEEP: dict[str, Make] = {
    "12-bit grey": lambda: packed(picture("L"), 12),
    "12-bit grey, deflate, big-endian": lambda: packed(picture("L"), 12, ">", 8),
    "10-bit RGB": lambda: packed(picture(), 10),
    "14-bit RGB, colours apart": lambda: packed(picture(), 14, planar=2),
    "16-bit RGB, colours apart": lambda: written(
        apart(scene_in("u2", max_value=BIG)), photometric="rgb", planarconfig="separate"
    ),
    "16-bit RGB, colours apart, LZW with predictor, tiled": lambda: written(
        apart(scene_in("u2", max_value=BIG)),
        photometric="rgb",
        planarconfig="separate",
        compression="lzw",
        predictor=2,
        tile=(128, 112),
    ),
    "16-bit grey, white is 0": lambda: written(BIG - scene_in("u2", "L", BIG), photometric="miniswhite"),
    "16-bit CMYK": lambda: written(scene_in("u2", "CMYK", BIG), photometric="separated"),
    "16-bit palette": palette_of_16_bits,
    "unsigned 32-bit grey": lambda: written(scene_in("u4", "L", 2**32 - 1), photometric="minisblack"),
    "signed 16-bit grey": lambda: written(scene_in("i2", "L", 32_767, -32_768), photometric="minisblack"),
    "signed 8-bit grey": lambda: written(scene_in("i1", "L", 127, -128), photometric="minisblack"),
    "floats in RGB": lambda: written(scene_in("f4"), photometric="rgb"),
    "floats in RGB, big-endian, deflate with predictor": lambda: written(
        scene_in("f4"), photometric="rgb", byteorder=">", compression="zlib", predictor=3
    ),
    "half floats in RGB, colours apart": lambda: written(
        apart(scene_in("f2")), photometric="rgb", planarconfig="separate"
    ),
    "double floats": lambda: written(scene_in("f8", "L", 3000, 1000), photometric="minisblack"),
    "BigTIFF, big-endian": lambda: written(
        scene_in("u1", max_value=255), photometric="rgb", bigtiff=True, byteorder=">"
    ),
    "grey with premultiplied alpha": partial(in_alpha, "u1", 255, "assocalpha", "L"),
    "16-bit RGB with premultiplied alpha": partial(in_alpha, "u2", BIG, "assocalpha"),
    "16-bit RGB with alpha": partial(in_alpha, "u2", BIG, "unassalpha"),
    "CIELAB": lambda: written(lab(), photometric="cielab"),
    "WebP": lambda: written(scene_in("u1", max_value=255), photometric="rgb", compression="webp"),
    "JPEG 2000": lambda: written(scene_in("u1", max_value=255), photometric="rgb", compression="jpeg2000"),
    "12-bit JPEG": lambda: written(
        scene_in("u2", "L", 4095), photometric="minisblack", compression="jpeg", bitspersample=12
    ),
    "odd entries and EXIF data": odd_entries,
}

LEVELS: dict[str, Make] = {
    "lower resolutions (NewSubfileType)": partial(levels, {254: (LONG, (1,))}),
    "lower resolutions (the old SubfileType)": partial(levels, {255: (SHORT, (2,))}),
    "lower resolutions that only their sizes tell": partial(levels, {}),
    "lower resolutions, single pixels of the page": partial(levels, {}, Image.Resampling.NEAREST),
    "a page that its thumbnail names": page_in_a_thumbnail,
}
