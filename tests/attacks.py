"""Malicious files, which exhaust resources or refer to other files."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests import raws, tiffs
from tests.pictures import patched, png, tiff
from tests.raws import LONG, SHORT, Part, Values, Writer
from tests.variants import SIDE, picture, saved
from tests.videos import animation, billion_frames, huge_quicktime, video


def square_header(side: int, depth: int = 8, color_type: int = 2) -> bytes:
    """Return the content of a PNG's IHDR chunk."""
    return struct.pack(">IIBBBBB", side, side, depth, color_type, 0, 0, 0)


def png_bomb(side: int, depth: int = 8) -> bytes:
    """Return a valid PNG of black pixels, in RGB, or gray of 1 or 16 bits, compressed to a thousandth."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (3 * side if depth == 8 else (depth * side + 7) // 8))
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return png(square_header(side, depth, 2 if depth == 8 else 0), (b"IDAT", data))


def png_text_bomb(name: bytes, head: bytes) -> bytes:
    """Return a PNG of one pixel with 300 MB of compressed text or color profile."""
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1_000_000)) for _ in range(300)) + packer.flush()
    return png(square_header(1), (name, head + data), (b"IDAT", zlib.compress(bytes(4))))


def lying_tiff(side: int) -> bytes:
    """Return a TIFF that claims this size, with 100 bytes of data."""
    tags = {256: (4, 1, side), 257: (4, 1, side), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8)}
    return tiff(tags | {277: (3, 1, 1), 278: (4, 1, side), 279: (4, 1, side * side % 2**32)}, bytes(100))


def looped_tiff() -> bytes:
    """Return a TIFF whose page is followed by itself."""
    content = bytearray(saved(picture(), "TIFF"))
    start = struct.unpack("<I", content[4:8])[0]
    entries = struct.unpack("<H", content[start : start + 2])[0]
    content[start + 2 + 12 * entries : start + 6 + 12 * entries] = struct.pack("<I", start)
    return bytes(content)


def many_paged_tiff(pages: int) -> bytes:
    """Return a TIFF of many directories of one pixel."""
    body = b"II*\0" + struct.pack("<I", 16) + bytes(8)
    for index in range(pages):
        tags = ((256, 4, 1), (257, 4, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 1))
        size = 2 + 12 * len(tags) + 4
        following = 16 + size * (index + 1) if index + 1 < pages else 0
        body += struct.pack("<H", len(tags)) + b"".join(
            struct.pack("<HHII", tag, field_type, 1, value) for tag, field_type, value in tags
        )
        body += struct.pack("<I", following)
    return body


def nested_tiff() -> bytes:
    """Return a TIFF whose page has a thousand subdirectories, all of which are the page itself."""
    writer = Writer()
    content = bytearray(writer.file((tiffs.page(picture(), {330: (LONG, (1,) * 1000)}),)))
    first = struct.unpack("<I", content[4:8])[0]
    placeholders = struct.pack("<1000I", *[1] * 1000)
    return bytes(content).replace(placeholders, struct.pack("<1000I", *[first] * 1000))


def deflated_tiff(side: int, bits: int, samples: int) -> bytes:
    """Return a TIFF of one strip of zeros, compressed to a thousandth."""
    packer = zlib.compressobj(9)
    row = bytes(side * samples * bits // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    fields: dict[int, Values] = {256: (LONG, (side,)), 257: (LONG, (side,)), 258: (SHORT, (bits,) * samples)}
    fields |= {259: (SHORT, (8,)), 262: (SHORT, (2 if samples == 3 else 1,)), 277: (SHORT, (samples,))}
    return Writer().file((Part(fields | {278: (LONG, (side,))}, strip=data),))


def tile_bomb(side: int) -> bytes:
    """Return a TIFF of 16 x 16 pixels of 16 bits in a tile that is much larger."""
    data = zlib.compress(bytes(100_000))
    writer = Writer()
    fields: dict[int, Values] = {256: (LONG, (16,)), 257: (LONG, (16,)), 258: (SHORT, (16,)), 259: (SHORT, (8,))}
    fields |= {262: (SHORT, (1,)), 277: (SHORT, (1,)), 322: (LONG, (side,)), 323: (LONG, (side,))}
    fields |= {324: (LONG, (writer.put(data),)), 325: (LONG, (len(data),))}
    return writer.file((Part(fields),))


def many_entries() -> bytes:
    """Return a TIFF of directories with many large entries."""
    fields: dict[int, Values] = {tag: (SHORT, tuple(range(1000))) for tag in range(30_000, 30_990)}
    return Writer().file(tuple(tiffs.page(Image.new("RGB", (8, 8)), fields) for _ in range(3)))


def many_references() -> bytes:
    """Return a TIFF whose page has ten million subdirectories, and as many strips."""
    writer = Writer()
    offset = writer.put(bytes(40_000_000))
    fields = tiffs.page(picture()).fields | dict.fromkeys((273, 279, 330), (LONG, (1, 2)))
    content = writer.file((Part(fields),))
    for tag in (330, 273, 279):
        content = with_values_at(content, tag, offset)
    return content


def with_values_at(content: bytes, tag: int, offset: int) -> bytes:
    """Return the TIFF with ten million values of a tag at an offset."""
    start = content.rindex(struct.pack("<HHI", tag, LONG, 2))
    return content[: start + 4] + struct.pack("<2I", 10_000_000, offset) + content[start + 12 :]


def many_starts() -> bytes:
    """Return a raw photo with a million beginnings of JPEGs."""
    return raws.dng(b"\xff\xd8\xff\xe0\0\x10" * 1_000_000)


def a0_scan() -> bytes:
    """Return a TIFF of 250 megapixels in black and white, of some kB."""
    return saved(Image.new("1", (13_300, 18_800), 1), "TIFF", compression="group4")


def lying_webp(side: int) -> bytes:
    """Return a WebP that claims a canvas of this size."""
    content = bytearray(saved(Image.new("RGBA", (16, 16), (9, 9, 9, 9)), "WEBP", quality=50))
    assert content[12:16] == b"VP8X"
    content[24:30] = 2 * (side - 1).to_bytes(3, "little")
    return bytes(content)


def lying_lossless_webp() -> bytes:
    """Return a lossless WebP that claims the largest possible size."""
    content = bytearray(saved(Image.new("RGB", (16, 16)), "WEBP", lossless=True))
    assert content[12:16] == b"VP8L"
    content[21:25] = (0xFFFFFFF | content[24] >> 4 << 28).to_bytes(4, "little")
    return bytes(content)


def lying_lossy_webp() -> bytes:
    """Return a lossy WebP that claims the largest possible size."""
    content = bytearray(saved(Image.new("RGB", (16, 16)), "WEBP", quality=50))
    assert content[12:16] == b"VP8 "
    content[26:30] = b"\xff\x3f\xff\x3f"
    return bytes(content)


def lying_ico() -> bytes:
    """Return an ICO whose only entry is a PNG bomb."""
    bomb = png(square_header(30_000), (b"IDAT", zlib.compress(bytes(1000))))
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(bomb), 22) + bomb


def many_framed_gif(frames: int, side: int) -> bytes:
    """Return a GIF of many frames of one pixel on a canvas of `side` x `side`."""
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(3) + b"\xff\xff\xff"
    frame = b"\x21\xf9\x04\0\x0a\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\0"
    return head + frame * frames + b";"


def many_scans_jpeg() -> bytes:
    """Return a progressive JPEG whose last scan, which covers all pixels, is repeated two thousand times."""
    content = saved(Image.new("L", (8000, 8000), 9), "JPEG", progressive=True, quality=20)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 2000 + b"\xff\xd9"


def nested_zip(depth: int) -> bytes:
    """Return a zip archive in a zip archive, and so on."""
    content = b"nothing"
    for _ in range(depth):
        head = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(content), *[len(content)] * 2, 1, 0)
        content = head + b"a" + content
    return content


def random_bytes(head: bytes) -> bytes:
    """Return a header and 64 KiB of random bytes."""
    return head + np.random.default_rng(3).bytes(65_536)


def endless(head: bytes, packet: bytes) -> bytes:
    """Return a header and twenty megabytes of repeated packets."""
    return head + packet * (20_000_000 // len(packet))


def file_reference() -> bytes:
    """Return a QuickTime file whose media data are in another file."""
    return patched(video("mov", "mjpeg", "yuvj420p"), b"url \0\0\0\1", b"url \0\0\0\0")


JUST_WITHIN = 9_900  # pixels a side: 98 million
HEIF_SIZE = struct.pack(">II", SIDE, SIDE)

ANY = "…"

# By name: the file, and a part of the reason of its refusal; None if it is counted; ANY if it may be counted or
# refused, as long as it costs little.
ATTACKS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "PNG of 30,000 x 30,000 pixels": (lambda: png_bomb(30_000, 1), "30000 x 30000 pixels"),
    "PNG that unpacks to 300 MB of text": (lambda: png_text_bomb(b"zTXt", b"a\0\0"), None),
    "PNG that unpacks to 300 MB of profile": (lambda: png_text_bomb(b"iCCP", b"a\0\0"), None),
    "PNG that unpacks to 300 MB of EXIF": (lambda: png_text_bomb(b"zTXt", b"Raw profile type exif\0\0"), None),
    "PNG of 49 megapixels, each of 16 bits": (lambda: png_bomb(7_000, 16), None),
    "lossless WebP of 16,384 x 16,384": (lying_lossless_webp, "16384 x 16384 pixels"),
    "lossy WebP of 16,383 x 16,383": (lying_lossy_webp, "16383 x 16383 pixels"),
    "PNG of 98 megapixels without data": (
        lambda: png(square_header(JUST_WITHIN), (b"IDAT", zlib.compress(b""))),
        "damaged",
    ),
    "TIFF header of 30,000 x 30,000 pixels": (lambda: lying_tiff(30_000), "30000 x 30000 pixels"),
    "TIFF header of 98 megapixels": (lambda: lying_tiff(JUST_WITHIN), "damaged"),
    "TIFF that follows itself": (looped_tiff, None),
    "TIFF whose directory is its own, a thousand times": (nested_tiff, None),
    "TIFF that unpacks to 49 megapixels of 16 bits": (lambda: deflated_tiff(7_000, 16, 1), None),
    "TIFF that unpacks to 25 megapixels of RGB of 16 bits": (lambda: deflated_tiff(5_000, 16, 3), None),
    "TIFF that names 10 million directories": (many_references, ANY),
    "TIFF with a tile of 30,000 x 30,000 pixels": (lambda: tile_bomb(30_000), ANY),
    "TIFF of directories of 1,000 entries of 1,000 values": (many_entries, ANY),
    "raw photo of a million beginnings of JPEGs": (many_starts, "raw photo"),
    "A0 scan of 250 megapixels": (a0_scan, "FLORENCE_MAX_PIXELS"),
    "TIFF of 20,000 pages": (lambda: many_paged_tiff(20_000), "pages"),
    "WebP header of 16,384 x 16,384 pixels": (lambda: lying_webp(16_384), "16384 x 16384 pixels"),
    "WebP header of 98 megapixels": (lambda: lying_webp(JUST_WITHIN), "damaged"),
    "ICO with a PNG of 30,000 x 30,000 pixels": (lying_ico, "30000 x 30000 pixels"),
    "GIF of 60,000 x 60,000 pixels": (lambda: many_framed_gif(1, 60_000), "60000 x 60000 pixels"),
    "GIF of 50,000 frames": (lambda: many_framed_gif(50_000, 100), None),
    "GIF of 50,000 frames of 17 megapixels": (lambda: many_framed_gif(50_000, 4096), ANY),
    "JPEG header of 65,500 x 65,500 pixels": (
        lambda: patched(saved(picture(), "JPEG"), struct.pack(">HH", SIDE, SIDE), struct.pack(">HH", 65_500, 65_500)),
        "65500 x 65500 pixels",
    ),
    "JPEG of 2,000 scans of 64 megapixels": (many_scans_jpeg, "seconds"),
    "AVIF header of 30,000 x 30,000 pixels": (
        lambda: patched(
            saved(picture(), "AVIF", speed=10),
            b"ispe\0\0\0\0" + HEIF_SIZE,
            b"ispe\0\0\0\0" + struct.pack(">II", 30_000, 30_000),
        ),
        None,  # it has no more pixels than before
    ),
    "HEIC header of 30,000 x 30,000 pixels": (
        lambda: saved(picture(), "HEIF").replace(
            b"ispe\0\0\0\0" + HEIF_SIZE, b"ispe\0\0\0\0" + struct.pack(">II", 30_000, 30_000)
        ),
        "",
    ),
    "JPEG 2000 header of 30,000 x 30,000 pixels": (
        lambda: saved(picture(), "JPEG2000").replace(HEIF_SIZE, struct.pack(">II", 30_000, 30_000)),
        "",
    ),
    "PPM header of 30,000 x 30,000 pixels": (lambda: b"P6 30000 30000 255 ", "30000 x 30000 pixels"),
    "QuickTime header of 108 megapixels": (huge_quicktime, "12000 x 9000 pixels"),
    "MP4 that claims 10⁹ frames": (billion_frames, None),
    "QuickTime that refers to another file": (file_reference, ANY),
    "zip in zip in zip": (lambda: nested_zip(1000), "ZIP archive"),
    "PDF": (lambda: b"%PDF-1.7\n" + bytes(1000), "Portable Document"),
    "HTML": (lambda: b"<!DOCTYPE html><script src=x></script>", "HTML"),
    "SVG": (lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "XML"),
    "playlist (HLS)": (lambda: b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n", "playlist"),
    "playlist (concat)": (lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", "no known kind"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture"),
    "PNG that is a zip, too": (lambda: saved(picture(), "PNG") + nested_zip(3), None),
    "GIF that is a script, too": (lambda: b"GIF89a/*" + bytes(10) + b"*/=alert(1)//", "damaged"),
    "random bytes": (lambda: random_bytes(b""), "not a picture"),
    "zeros": (lambda: bytes(1_000_000), "not a picture"),
    "JPEG start, then random bytes": (lambda: random_bytes(b"\xff\xd8\xff\xe0"), "damaged"),
    "Matroska start, then random bytes": (lambda: random_bytes(b"\x1a\x45\xdf\xa3"), "damaged"),
    "endless MPEG": (lambda: endless(b"", b"\0\0\1\xba" + bytes(10) + b"\0\0\1\xe0\0\x08\x80\0\0abcde"), ""),
    "endless transport stream": (lambda: endless(b"", b"\x47\x41\0\x10" + bytes(184)), ""),
    "endless FLV": (
        lambda: endless(b"FLV\1\1\0\0\0\x09\0\0\0\0", b"\x09\0\0\x02" + bytes(7) + b"\x22\0\0\0\0\x0d"),
        "",
    ),
    "endless AVI": (lambda: endless(video("avi", "mpeg4"), b"00dc\x08\0\0\0" + bytes(8)), ANY),
    "animation without end": (lambda: animation("GIF")[:-1], None),
    "flood of 16-bit noise (TIFF)": (
        lambda: saved(Image.fromarray(np.random.default_rng(0).integers(0, 65_536, (3000, 3000), np.uint16)), "TIFF"),
        None,
    ),
}
