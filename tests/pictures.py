"""Variants of picture files that the service must count, or refuse with a reason."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pillow_heif
from PIL import ExifTags, Image

from tests import metadata, raws, tiffs
from tests.variants import PARK, QUEUE, SIDE, STREET, YARD, Scene, Variant, added, picture, saved

pillow_heif.register_heif_opener()


def rotated(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """Return a picture that its EXIF orientation makes upright, and its EXIF data."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return picture().transpose(inverse[orientation]), exif


def with_exif(kind: str, orientation: int, **options: Any) -> bytes:
    """Return a file with an EXIF orientation."""
    image, exif = rotated(orientation)
    return saved(image, kind, exif=exif, **options)


def see_through(scene: Scene = STREET) -> Image.Image:
    """Return a picture whose objects are opaque and whose ground is partly transparent."""
    image = picture("RGBA", scene)
    alpha = np.full((SIDE, SIDE), 160, np.uint8)
    for item in scene.objects:
        x1, y1, x2, y2 = item.box
        alpha[y1:y2, x1:x2] = 255
    image.putalpha(Image.fromarray(alpha))
    return image


def with_subfiles(subfile_type: int) -> bytes:
    """Return a TIFF of a page and a second directory that is no page, according to its NewSubfileType."""
    first, second = picture(), picture(scene=QUEUE)
    second.encoderinfo = {"tiffinfo": {254: subfile_type}}
    return saved(first, "TIFF", save_all=True, append_images=[second])


def opencv(extension: str, pixels: Any, *parameters: int) -> bytes:
    """Return the file that OpenCV writes for RGB, RGBA or gray pixels."""
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, codes[pixels.shape[2]])
    success, buffer = cv2.imencode(extension, pixels, list(parameters))
    assert success
    return bytes(buffer)


def deep(mode: str = "RGB") -> Any:
    """Return pixels of 16 bits per channel."""
    return np.asarray(picture(mode)).astype(np.uint16) * 257


def gray_tiff(values: Any) -> bytes:
    """Return a TIFF of one channel."""
    return saved(Image.fromarray(values), "TIFF")


def gray() -> Any:
    """Return gray pixels with at least one black and one white, so that stretching to the full range has no effect."""
    values = np.array(picture("L"))
    values[0, :2] = 0, 255
    return values


def interlaced_png() -> bytes:
    """Return a PNG in the seven passes of Adam7, written by hand because Pillow and OpenCV only read such files."""
    pixels = np.asarray(picture())
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [row for x, y, dx, dy in passes for row in pixels[y::dy, x::dx]]
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return png(struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 1), (b"IDAT", data))


def png(header: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of these chunks."""
    all_chunks = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in all_chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(entries: dict[int, tuple[int, int, int]], body: bytes, order: str = "<") -> bytes:
    """Return a TIFF file of one page, written by hand.

    Args:
        entries: type, number of values, and value or offset of each tag.
        body: the data, at offset 8.
        order: byte order.
    """
    start = 8 + len(body) + len(body) % 2
    directory = struct.pack(order + "H", len(entries))
    for tag, (field_type, count, value) in sorted(entries.items()):
        shift = 16 if order == ">" and field_type == 3 and count == 1 else 0  # a SHORT is at the start of the field
        directory += struct.pack(order + "HHII", tag, field_type, count, value << shift)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", start) + body + bytes(len(body) % 2) + directory + bytes(4)


def tiled_tiff() -> bytes:
    """Return a TIFF in tiles of 128 x 128 pixels."""
    pixels, tile = np.asarray(picture()), 128
    tiles = [pixels[y : y + tile, x : x + tile].tobytes() for y in range(0, SIDE, tile) for x in range(0, SIDE, tile)]
    count, size = len(tiles), len(tiles[0])
    offsets = struct.pack(f"<{count}I", *(8 + index * size for index in range(count)))
    sizes = struct.pack(f"<{count}I", *([size] * count))
    bits = struct.pack("<3H", 8, 8, 8)
    body = b"".join(tiles) + offsets + sizes + bits
    offset = 8 + count * size
    return tiff(
        {
            256: (4, 1, SIDE),
            257: (4, 1, SIDE),
            258: (3, 3, offset + len(offsets) + len(sizes)),
            259: (3, 1, 1),
            262: (3, 1, 2),
            277: (3, 1, 3),
            322: (4, 1, tile),
            323: (4, 1, tile),
            324: (4, count, offset),
            325: (4, count, offset + len(offsets)),
        },
        body,
    )


def planar_tiff(order: str = "<") -> bytes:
    """Return a TIFF whose channels are stored one after the other."""
    planes = np.asarray(picture()).transpose(2, 0, 1)
    size = SIDE * SIDE
    body = planes.tobytes() + struct.pack(order + "3I", 8, 8 + size, 8 + 2 * size)
    body += struct.pack(order + "3I", size, size, size) + struct.pack(order + "3H", 8, 8, 8)
    offset = 8 + 3 * size
    return tiff(
        {
            256: (4, 1, SIDE),
            257: (4, 1, SIDE),
            258: (3, 3, offset + 24),
            259: (3, 1, 1),
            262: (3, 1, 2),
            273: (4, 3, offset),
            277: (3, 1, 3),
            278: (4, 1, SIDE),
            279: (4, 3, offset + 12),
            284: (3, 1, 2),
        },
        body,
        order,
    )


def big_endian_tiff() -> bytes:
    """Return a gray TIFF in big-endian byte order."""
    values = gray()
    size = struct.unpack("<I", struct.pack("<I", values.size))[0]
    return tiff(
        {
            256: (4, 1, SIDE),
            257: (4, 1, SIDE),
            258: (3, 1, 8),
            259: (3, 1, 1),
            262: (3, 1, 1),
            273: (4, 1, 8),
            277: (3, 1, 1),
            278: (4, 1, SIDE),
            279: (4, 1, size),
        },
        values.tobytes(),
        ">",
    )


def pages(num_pages: int = 3, **options: Any) -> bytes:
    """Return a TIFF whose pages are three scenes in turn."""
    images = [picture(scene=scene) for scene in (STREET, QUEUE, YARD)]
    rest = [images[index % 3] for index in range(1, num_pages)]
    return saved(images[0], "TIFF", save_all=True, append_images=rest, **options)


def rle_bmp() -> bytes:
    """Return a BMP of 256 colors, run-length coded in runs of one pixel, written by hand."""
    image = picture().quantize(256)
    rows = np.asarray(image.transpose(Image.Transpose.FLIP_TOP_BOTTOM))
    pairs = np.stack([np.ones_like(rows), rows], axis=2)
    data = b"".join(row.tobytes() + b"\0\0" for row in pairs) + b"\0\1"
    color_table = np.zeros((256, 4), np.uint8)
    palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    color_table[: len(palette), :3] = palette[:, ::-1]
    offset = 14 + 40 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, len(data), 2835, 2835, 256, 0)
    return struct.pack("<2sIHHI", b"BM", offset + len(data), 0, 0, offset) + header + color_table.tobytes() + data


def text_ppm(mode: str, magic: str, max_value: int) -> bytes:
    """Return a file of the PPM family in plain text."""
    values = np.asarray(picture(mode, enlarged=2 if mode == "1" else 1)).astype(int)
    if mode == "1":
        values = 1 - values
    height, width = values.shape[:2]
    head = f"{magic}\n# a comment\n{width} {height}\n" + (f"{max_value}\n" if max_value else "")
    return (head + "\n".join(" ".join(map(str, row)) for row in values.reshape(height, -1))).encode()


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    """Replace the first occurrence of some bytes."""
    assert old in content
    return content.replace(old, new, 1)


def twelve_bits() -> bytes:
    """Return a JPEG whose header claims 12 bits."""
    return patched(saved(picture(), "JPEG"), b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c")


def heif(**options: Any) -> bytes:
    """Return a HEIC."""
    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture()).save(buffer, quality=90, **options)
    return buffer.getvalue()


def turned_heif() -> bytes:
    """Return a HEIC like those of phones, with the rotation as a property of the picture and in its EXIF data."""
    image, exif = rotated(6)
    stored = pillow_heif.from_bytes("RGB", image.size, image.tobytes())
    stored.info["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    stored.save(buffer, quality=90)
    assert b"irot" in buffer.getvalue()
    return buffer.getvalue()


def deep_heif() -> bytes:
    """Return a HEIC of 10 bits per channel."""
    buffer = io.BytesIO()
    pixels = deep()
    pillow_heif.from_bytes("RGB;16", (SIDE, SIDE), pixels.tobytes()).save(buffer, quality=90)
    return buffer.getvalue()


Make = Callable[[], bytes]
COUNTS = STREET.counts
PAGES = added(STREET, QUEUE, YARD)


def counted_variants(file_format: str, makers: dict[str, Make], counts: dict[str, int] = COUNTS) -> list[Variant]:
    """Return variants of a format that are counted."""
    return [Variant(file_format, name, make, counts) for name, make in makers.items()]


def refused_variant(file_format: str, name: str, make: Make, reason: str) -> Variant:
    """Return a variant of a format that is refused."""
    return Variant(file_format, name, make, reason=reason)


JPEG = {
    "4:2:0": lambda: saved(picture(), "JPEG", quality=90),
    "4:2:2": lambda: saved(picture(), "JPEG", quality=90, subsampling=1),
    "4:4:4": lambda: saved(picture(), "JPEG", quality=90, subsampling=0),
    "quality 40": lambda: saved(picture(), "JPEG", quality=40),
    "progressive": lambda: saved(picture(), "JPEG", progressive=True, quality=90),
    "restart markers (OpenCV)": lambda: opencv(".jpg", np.asarray(picture()), cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    "optimised tables": lambda: saved(picture(), "JPEG", optimize=True, quality=90),
    "grey": lambda: saved(picture("L"), "JPEG", quality=90),
    "CMYK": lambda: saved(picture("CMYK"), "JPEG", quality=90),
    "RGB, not YCbCr": lambda: saved(picture(), "JPEG", quality=90, keep_rgb=True),
    "multi-picture (MPO), the first": lambda: saved(
        picture(), "MPO", save_all=True, append_images=[picture(scene=QUEUE)], quality=90
    ),
    "12 megapixels, decoded at reduced scale": lambda: saved(
        picture().resize((4000, 3000)).resize((4032, 3024)), "JPEG", quality=90
    ),
    "bytes after its end": lambda: saved(picture(), "JPEG", quality=90) + bytes(1000),
} | {
    f"EXIF orientation {orientation}": lambda orientation=orientation: with_exif("JPEG", orientation, quality=90)
    for orientation in range(2, 9)
}

PNG = {
    "RGB": lambda: saved(picture(), "PNG"),
    "RGBA, transparent ground": lambda: saved(see_through(), "PNG"),
    "palette": lambda: saved(picture().quantize(256), "PNG"),
    "palette of 64 colours": lambda: saved(picture().quantize(64), "PNG"),
    "palette with a transparent colour": lambda: saved(picture().quantize(256), "PNG", transparency=0),
    "grey": lambda: saved(picture("L"), "PNG"),
    "grey with alpha": lambda: saved(picture("LA"), "PNG"),
    "1 bit": lambda: saved(picture("1", enlarged=2), "PNG"),
    "16-bit grey": lambda: saved(Image.fromarray(deep("L")), "PNG"),
    "16-bit RGB (OpenCV)": lambda: opencv(".png", deep()),
    "16-bit RGBA (OpenCV)": lambda: opencv(".png", deep("RGBA")),
    "interlaced": interlaced_png,
    "a transparent colour": lambda: saved(picture(), "PNG", transparency=(1, 2, 3)),
    "EXIF orientation 6": lambda: with_exif("PNG", 6),
}

BMP = {
    "24 bits": lambda: saved(picture(), "BMP"),
    "32 bits": lambda: saved(picture("RGBA"), "BMP"),
    "256 colours": lambda: saved(picture().quantize(256), "BMP"),
    "256 colours, run lengths": rle_bmp,
    "grey": lambda: saved(picture("L"), "BMP"),
    "1 bit": lambda: saved(picture("1", enlarged=2), "BMP"),
    "reserved bytes that are used": lambda: b"BM\0\0\0\0used" + saved(picture(), "BMP")[10:],
}

GIF = {
    "256 colours": lambda: saved(picture().quantize(256), "GIF"),
    "transparent": lambda: saved(see_through().quantize(255), "GIF"),
    "grey": lambda: saved(picture("L"), "GIF"),
    "not interlaced": lambda: saved(picture().quantize(256), "GIF", interlace=0),
}

TIFF = {
    "uncompressed": lambda: saved(picture(), "TIFF"),
    "LZW": lambda: saved(picture(), "TIFF", compression="tiff_lzw"),
    "deflate": lambda: saved(picture(), "TIFF", compression="tiff_adobe_deflate"),
    "PackBits": lambda: saved(picture(), "TIFF", compression="packbits"),
    "Zstandard": lambda: saved(picture(), "TIFF", compression="zstd"),
    "JPEG": lambda: saved(picture(), "TIFF", compression="jpeg", quality=90),
    "CCITT group 3": lambda: saved(picture("1", enlarged=2), "TIFF", compression="group3"),
    "CCITT group 4": lambda: saved(picture("1", enlarged=2), "TIFF", compression="group4"),
    "1 bit": lambda: saved(picture("1", enlarged=2), "TIFF"),
    "grey": lambda: saved(picture("L"), "TIFF"),
    "palette": lambda: saved(picture().quantize(256), "TIFF"),
    "RGBA": lambda: saved(see_through(), "TIFF"),
    "CMYK": lambda: saved(picture("CMYK"), "TIFF"),
    "YCbCr": lambda: saved(picture("YCbCr"), "TIFF"),
    "16-bit grey": lambda: gray_tiff(deep("L")),
    "16-bit RGB (OpenCV)": lambda: opencv(".tiff", deep()),
    "32-bit integers": lambda: gray_tiff(gray().astype(np.int32) * 70_000),
    "floats from 0 to 1": lambda: gray_tiff(gray().astype(np.float32) / 255),
    "floats from -50 to 50": lambda: gray_tiff(gray().astype(np.float32) * (100 / 255) - 50),
    "tiled": tiled_tiff,
    "colours apart": planar_tiff,
    "big-endian": big_endian_tiff,
    "BigTIFF": lambda: saved(picture(), "TIFF", big_tiff=True),
    "orientation 6": lambda: saved(rotated(6)[0], "TIFF", exif=rotated(6)[1]),
    "a thumbnail beside the page": lambda: with_subfiles(1),
    "a mask beside the page": lambda: with_subfiles(4),
}

OTHERS = {
    "WebP": {
        "lossy": lambda: saved(picture(), "WEBP", quality=85),
        "lossless": lambda: saved(picture(), "WEBP", lossless=True),
        "alpha": lambda: saved(see_through(), "WEBP", quality=85),
        "EXIF orientation 8": lambda: with_exif("WEBP", 8, quality=85),
        **metadata.WEBP,
    },
    "AVIF": {
        "4:2:0": lambda: saved(picture(), "AVIF", quality=80, speed=10),
        "4:4:4": lambda: saved(picture(), "AVIF", quality=80, speed=10, subsampling="4:4:4"),
        "another major brand": lambda: patched(
            saved(picture(), "AVIF", quality=80, speed=10), b"ftypavif", b"ftypmif1"
        ),
        "alpha": lambda: saved(see_through(), "AVIF", quality=80, speed=10),
        "EXIF orientation 6": lambda: with_exif("AVIF", 6, quality=80, speed=10),
        "alpha without a size of its own": lambda: metadata.avif_without_size(see_through()),
        **metadata.AVIF,
    },
    "HEIC": {
        "8 bits": heif,
        "10 bits": deep_heif,
        "4:4:4": lambda: heif(chroma=444),
        "alpha": lambda: saved(see_through(), "HEIF", quality=90),
        "rotated": turned_heif,
        "two pictures, the first": lambda: saved(
            picture(), "HEIF", save_all=True, append_images=[picture(scene=QUEUE)], quality=90
        ),
        **metadata.HEIC,
    },
    "JPEG 2000": {
        "lossless": lambda: saved(picture(), "JPEG2000"),
        "lossy": lambda: saved(picture(), "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[20]),
        "bare code stream": lambda: saved(picture(), "JPEG2000", no_jp2=True),
        "grey": lambda: saved(picture("L"), "JPEG2000"),
        "tiled": lambda: saved(picture(), "JPEG2000", tile_size=(128, 128)),
        **metadata.JPEG_2000,
    },
    "ICO": {
        "PNG, the largest of several": lambda: saved(picture(), "ICO", sizes=[(16, 16), (64, 64), (256, 256)]),
        "BMP": lambda: saved(picture(), "ICO", sizes=[(256, 256)], bitmap_format="bmp"),
        "PNG, damaged chunks beside its pixels'": lambda: metadata.icon(metadata.all_damaged()),
        "PNG, a colour profile of 3 MB": lambda: metadata.icon(metadata.PNG["a colour profile of 3 MB"]()),
    },
    "PPM": {
        "P6, colour": lambda: saved(picture(), "PPM"),
        "P5, grey": lambda: saved(picture("L"), "PPM"),
        "P5, 16-bit grey (OpenCV)": lambda: opencv(".pgm", deep("L")),
        "P4, 1 bit": lambda: saved(picture("1", enlarged=2), "PPM"),
        "P3, text": lambda: text_ppm("RGB", "P3", 255),
        "P2, text": lambda: text_ppm("L", "P2", 255),
        "P1, text": lambda: text_ppm("1", "P1", 0),
    },
}

RAWS = {f"{name}, a large preview": lambda make=make: make(raws.jpeg()) for name, make in raws.LAYOUTS.items()}
RAWS["Nikon NEF, orientation 6"] = lambda: raws.nef(raws.jpeg(orientation=6), 6)

PICTURES = [
    *counted_variants("JPEG", JPEG | metadata.JPEG),
    refused_variant("JPEG", "12 bits a channel", twelve_bits, "12-bit"),
    refused_variant("JPEG", "truncated", lambda: saved(picture(), "JPEG")[:-2000], "truncated"),
    refused_variant(
        "JPEG", "truncated, and ended there", lambda: saved(picture(), "JPEG")[:-2000] + b"\xff\xd9", "truncated"
    ),
    *counted_variants("PNG", PNG | metadata.PNG),
    refused_variant("PNG", "truncated", lambda: saved(picture(), "PNG")[:-2000], "damaged"),
    refused_variant("PNG", "a wrong checksum", lambda: patched(saved(picture(), "PNG"), b"IDAT", b"IDAU"), "damaged"),
    refused_variant("PNG", "a wrong checksum of pixels", lambda: saved(picture(), "PNG")[:-14] + bytes(14), "damaged"),
    *counted_variants("BMP", BMP),
    *counted_variants("GIF", GIF),
    *counted_variants("TIFF", TIFF | tiffs.DEEP | tiffs.LEVELS),
    *counted_variants(
        "TIFF", {"two pages, one half as large": lambda: tiffs.half_sized_pages(STREET, PARK)}, added(STREET, PARK)
    ),
    *counted_variants("TIFF", {"three pages": pages, "three pages, LZW": lambda: pages(compression="tiff_lzw")}, PAGES),
    refused_variant(
        "TIFF", "101 pages", lambda: pages(101, compression="tiff_lzw"), "more than the 100 pages accepted"
    ),
    refused_variant("TIFF", "truncated", lambda: saved(picture(), "TIFF")[:-2000], "damaged"),
    *(variant for file_format, makers in OTHERS.items() for variant in counted_variants(file_format, makers)),
    *counted_variants("Raw photo", RAWS),
    refused_variant("Raw photo", "DNG, a thumbnail alone", raws.dng_without_preview, "raw photo (DNG)"),
    refused_variant(
        "Raw photo", "Nikon NEF, a preview of a quarter", lambda: raws.nef(raws.jpeg(SIDE // 4)), "(Nikon NEF)"
    ),
    refused_variant(
        "Raw photo", "Sony ARW, a preview of a quarter", lambda: raws.arw(raws.jpeg(SIDE // 4)), "(Sony ARW)"
    ),
    refused_variant("Raw photo", "DNG, lossy, without a preview", raws.lossy_dng, "raw photo (DNG)"),
    refused_variant("Raw photo", "Sigma X3F", lambda: b"FOVb" + bytes(1000), "raw photo (Sigma X3F)"),
    refused_variant("Raw photo", "Canon CRW", lambda: b"II\x1a\0\0\0HEAPCCDR" + raws.jpeg(), "raw photo (Canon CRW)"),
    refused_variant("Raw photo", "Minolta MRW", lambda: b"\0MRM" + bytes(1000), "raw photo (Minolta MRW)"),
]
