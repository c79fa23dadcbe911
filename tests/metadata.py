"""Pictures with odd or damaged data beside their pixels, and what of these data is to be obeyed all the same."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pillow_heif
from PIL import Image

from florence_tagger.media.isobmff import boxes_in
from tests.raws import LONG, SHORT, TEXT, Part, Values, Writer, box
from tests.variants import PARK, SIDE, YARD, Scene, picture, saved

JUNK = b"junk that is no EXIF data"
LARGE = zlib.compress(bytes(3_000_000))


def odd_exif(orientation: int) -> bytes:
    """EXIF data with an orientation, a resolution that is a text, and values beyond their end."""
    odd: dict[int, Values] = {274: (SHORT, (orientation,)), 282: (TEXT, b"72 dpi, about\0"), 34665: (LONG, (2**31,))}
    return Writer().file((Part(odd | {700: (LONG, (9,))}),))


def turned_left() -> Image.Image:
    """The scene as it is stored where orientation 6 turns it upright."""
    return picture().transpose(Image.Transpose.ROTATE_90)


def jpeg_with(marker: int, data: bytes, image: Image.Image | None = None) -> bytes:
    """A JPEG with a further segment behind its first one."""
    content = saved(image or picture(), "JPEG", quality=90)
    first = 4 + struct.unpack(">H", content[4:6])[0]
    return content[:first] + b"\xff" + struct.pack(">BH", marker, len(data) + 2) + data + content[first:]


def jpeg_exif(exif: bytes, image: Image.Image | None = None) -> bytes:
    return jpeg_with(0xE1, b"Exif\0\0" + exif, image)


def chunk(name: bytes, data: bytes, damage: int = 0) -> bytes:
    """A chunk of a PNG; where there is damage its checksum is wrong."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ damage)


def png_with(*chunks: bytes, image: Image.Image | None = None, before: bytes = b"IDAT") -> bytes:
    """A PNG with further chunks before one of its own."""
    content = saved(image or picture(), "PNG")
    place = content.index(before) - 4
    return content[:place] + b"".join(chunks) + content[place:]


def raw_profile(exif: bytes) -> bytes:
    """EXIF data as ImageMagick writes them into a PNG."""
    return b"Raw profile type exif\0\nexif\n%8d\n" % len(exif) + exif.hex().encode() + b"\n"


def all_damaged() -> bytes:
    """A PNG with chunks before and behind the pixels that are not critical, their data and checksums wrong."""
    names = (b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"pHYs", b"tIME", b"eXIf", b"tEXt", b"zTXt", b"iTXt")
    chunks = [
        chunk(name, JUNK[:length], 1) for name in (*names, b"tRNS", b"acTL", b"fcTL", b"prIv") for length in (0, 3, 25)
    ]
    content = png_with(*chunks)
    end = content.index(b"IEND") - 4
    return content[:end] + b"".join(chunks) + content[end:]


def too_short() -> bytes:
    """A PNG whose chunks that are not critical are too short, their checksums right."""
    names = (b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs", b"eXIf", b"tRNS", b"acTL")
    return png_with(*(chunk(name, b"\0") for name in names))


def transparent_palette(damage: int) -> bytes:
    """A PNG of a palette whose colours would all be seen through, were it not for the damage."""
    image = picture().quantize(256)
    return png_with(chunk(b"tRNS", bytes(256), damage), image=image)


def heif_with(exif: bytes) -> bytes:
    """A HEIC with EXIF data that are not looked at: the picture itself is stored upright."""
    image = pillow_heif.from_bytes("RGB", (SIDE, SIDE), picture().tobytes())
    image.info["exif"] = b"Exif\0\0" + bytes(len(exif))
    buffer = io.BytesIO()
    image.save(buffer, quality=90)
    return replaced(buffer.getvalue(), bytes(len(exif)), exif)


def avif_with(exif: bytes) -> bytes:
    """An AVIF, likewise."""
    content = saved(picture(), "AVIF", quality=80, speed=10, exif=b"Exif\0\0" + empty_exif(len(exif)))
    return replaced(content, empty_exif(len(exif)), exif)


def empty_exif(size: int) -> bytes:
    """EXIF data that say nothing."""
    return (b"II*\0\x08\0\0\0\0\0" + bytes(4)).ljust(size, b"Q")


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    """A file with other bytes, as many, in one place of it."""
    assert content.count(old) == 1
    assert len(old) == len(new)
    return content.replace(old, new)


def avif_without_size(image: Image.Image) -> bytes:
    """An AVIF whose item of alpha has no size (`ispe`): it has the next property twice in its place."""
    content = saved(image, "AVIF", quality=80, speed=10)
    place = content.index(b"ipma")
    # version and flags, number of items, then of each: its number, how many properties it has, and these
    start = place + 12
    first = start + 3 + content[start + 2]
    alpha = first + 3
    changed = bytearray(content)
    assert content[first : first + 2] == b"\0\2"
    assert content[alpha] == 1, "the size is the first property of a file"
    changed[alpha] = content[alpha + 1]
    return bytes(changed)


def jp2_with_palette(indices: Image.Image, palette: bytes, columns: int = 3, bits: int = 8) -> bytes:
    """A JPEG 2000 file with a palette, which Pillow does not write."""
    number = len(palette) // (columns * bits // 8)
    colours = struct.pack(">HB", number, columns) + bytes([bits - 1] * columns) + palette
    mapped = b"".join(struct.pack(">HBB", 0, 1, column) for column in range(columns))
    content = saved(Image.fromarray(np.asarray(indices)), "JPEG2000")
    boxes = [(name, content[start:end]) for name, start, end in boxes_in(content, 0, len(content))]
    inner = [
        (name, data[start:end])
        for name, data in boxes
        if name == b"jp2h"
        for name, start, end in boxes_in(data, 0, len(data))
    ]
    header = [box(name, colour_space() if name == b"colr" else data) for name, data in inner]
    header += [box(b"pclr", colours), box(b"cmap", mapped)]
    return b"".join(box(name, b"".join(header) if name == b"jp2h" else data) for name, data in boxes)


def colour_space() -> bytes:
    """sRGB."""
    return struct.pack(">BBBI", 1, 0, 0, 16)


def doubled_colour() -> bytes:
    """A palette that names its first colour four times."""
    indices = picture().quantize(120)
    palette = bytes(indices.getpalette() or ())[: 3 * 120]
    return jp2_with_palette(Image.fromarray(np.asarray(indices) + 3), 3 * palette[:3] + palette)


def deep_palette() -> bytes:
    """A palette of 16 bits."""
    indices = picture().quantize(120)
    palette = np.array(indices.getpalette()[: 3 * 120], ">u2") * 257
    return jp2_with_palette(indices, palette.astype(">u2").tobytes(), bits=16)


def deep_animation(scenes: tuple[Scene, ...]) -> bytes:
    """An animated PNG of 16 bits with alpha, each frame blended over the one before, a second each."""
    chunks = [chunk(b"acTL", struct.pack(">2I", len(scenes), 0))]
    for index, scene in enumerate(scenes):
        pixels = np.asarray(picture("RGBA", scene)).astype(">u2") * 257
        data = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))
        chunks.append(chunk(b"fcTL", struct.pack(">5I2H2B", max(2 * index - 1, 0), SIDE, SIDE, 0, 0, 1, 1, 0, 1)))
        chunks.append(chunk(b"fdAT", struct.pack(">I", 2 * index) + data) if index else chunk(b"IDAT", data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def half_seen_animation() -> bytes:
    """An animated AVIF of two scenes, of which the second can't be seen, a second each."""
    images = [picture("RGBA", YARD), picture("RGBA", PARK)]
    images[1].putalpha(0)
    return saved(images[0], "AVIF", save_all=True, append_images=images[1:], duration=1000, quality=80, speed=10)


def icon(content: bytes) -> bytes:
    """An ICO of one PNG."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(content), 22) + content


def avif_without(name: bytes, alpha: bool = False) -> bytes:
    """An AVIF whose box of a name is of a kind that no program knows."""
    image = picture("RGBA") if alpha else picture()
    if alpha:
        image.putpixel((0, 0), (0, 0, 0, 0))
    content = saved(image, "AVIF", quality=80, speed=10)
    assert name in content
    return content.replace(name, b"none")


def avif_of_another_depth() -> bytes:
    """An AVIF that says 10 bits of its 8."""
    content = bytearray(saved(picture(), "AVIF", quality=80, speed=10))
    content[content.index(b"av1C") + 6] ^= 0x40
    return bytes(content)


Make = Callable[[], bytes]

JPEG: dict[str, Make] = {
    "odd EXIF entries, orientation 6": lambda: jpeg_exif(odd_exif(6), turned_left()),
    "EXIF that is no EXIF": partial(jpeg_exif, JUNK),
    "no end": lambda: saved(picture(), "JPEG", quality=90)[:-2],
    "segments that end too early": lambda: jpeg_with(0xE2, b"ICC_PROFILE\0\1"),
    "a damaged table of several pictures": lambda: jpeg_with(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff" + JUNK),
}
PNG: dict[str, Make] = {
    "odd EXIF entries, orientation 6": lambda: png_with(chunk(b"eXIf", odd_exif(6)), image=turned_left()),
    "EXIF that is no EXIF": lambda: png_with(chunk(b"eXIf", JUNK)),
    "EXIF as a text, orientation 6": lambda: png_with(chunk(b"tEXt", raw_profile(odd_exif(6))), image=turned_left()),
    "EXIF as a text that is no hexadecimal": lambda: png_with(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 20\nno hexadecimal"))
    ),
    "a colour profile of 3 MB": lambda: png_with(chunk(b"iCCP", b"profile\0\0" + LARGE)),
    "a packed text of 3 MB": lambda: png_with(chunk(b"zTXt", b"text\0\0" + LARGE)),
    "a packed international text of 3 MB": lambda: png_with(chunk(b"iTXt", b"text\0\1\0\0\0" + LARGE)),
    "damaged chunks beside its pixels'": all_damaged,
    "chunks that are too short beside its pixels'": too_short,
    "the header of an animation alone": lambda: png_with(chunk(b"acTL", struct.pack(">2I", 7, 0))),
    "EXIF as a text of another name, orientation 6": lambda: png_with(
        chunk(b"tEXt", raw_profile(odd_exif(6)).replace(b"exif\0", b"APP1\0")), image=turned_left()
    ),
    "a damaged transparency": partial(transparent_palette, 1),
}
WEBP: dict[str, Make] = {
    "odd EXIF entries, orientation 6": lambda: saved(turned_left(), "WEBP", quality=85, exif=odd_exif(6)),
    "EXIF that is no EXIF": lambda: saved(picture(), "WEBP", quality=85, exif=JUNK),
}
AVIF: dict[str, Make] = {
    "no brand of its own": lambda: saved(picture(), "AVIF", quality=80, speed=10).replace(b"avif", b"mif1"),
    "no size": partial(avif_without, b"ispe"),
    "no primary item": partial(avif_without, b"pitm"),
    "alpha, no primary item": partial(avif_without, b"pitm", alpha=True),
    "a wrong number of bits": avif_of_another_depth,
    "odd EXIF entries": lambda: avif_with(odd_exif(6)),
    "EXIF that is no EXIF": lambda: avif_with(JUNK),
}
HEIC: dict[str, Make] = {
    "odd EXIF entries": lambda: heif_with(odd_exif(6)),
    "EXIF that is no EXIF": lambda: heif_with(JUNK),
}
JPEG_2000: dict[str, Make] = {
    "a palette that names a colour twice": doubled_colour,
    "a palette of 16 bits": deep_palette,
}
