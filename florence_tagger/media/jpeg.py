"""A JPEG file -> Pillow's picture of it, even if its application segments are damaged.

Pillow refuses a file for a short application segment, which libjpeg and browsers ignore, and for a missing end marker.
It accepts a file that ends before its last pixels. Segments by ITU-T T.81, annex B.
"""

import os
import struct
from io import BytesIO
from typing import IO

from PIL import ImageChops
from PIL.JpegImagePlugin import JpegImageFile

APPLICATIONS = range(0xE0, 0xF0)
COMMENT, SCAN, APP2 = 0xFE, 0xDA, 0xE2
# Markers of frames (table B.1), which have the size, without the markers of tables among them.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
END, SCAN_START = b"\xff\xd9", b"\xff\xda"
END_BYTES = 65_536  # of a file, in which the end marker is searched first
PIXEL_CODES = bytes(167 * index % 255 for index in range(1, 1000))  # all values of pixel data, and no marker
EXTRA_PIXELS = PIXEL_CODES + b"".join(b"\xff" + bytes([restart]) + PIXEL_CODES for restart in range(0xD0, 0xD8))
MISSING_VALUES = {127, 128}  # that libjpeg fills in for missing pixels, in each mode
# Marker of a segment that affects pixels or their display -> its first bytes and minimum size.
KEPT_SEGMENTS = {0xE0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 6), 0xEE: (b"Adobe", 12)}


class CheckedJpeg(JpegImageFile):
    """A picture that is refused as truncated if it lacks its last pixels, which libjpeg would fill with gray."""

    def load_end(self) -> None:
        """Raise OSError if the last pixel is gray and the file is incomplete."""
        last = self.im.getpixel((self.width - 1, self.height - 1))
        values = last if isinstance(last, tuple) else (last,)
        if self.fp is not None and MISSING_VALUES.issuperset(values):
            self.fp.seek(0)
            if not is_complete(self.fp.read()):
                raise OSError("truncated")


def read_jpeg(file: IO[bytes]) -> JpegImageFile:
    """Open a file and read its header; of several pictures (MPO) only the first, without their index."""
    file = append_missing_end(file)
    try:
        return CheckedJpeg(file)
    except SyntaxError:
        file.seek(0)
        return CheckedJpeg(BytesIO(remove_applications(file.read())))


def append_missing_end(file: IO[bytes]) -> IO[bytes]:
    """Return a file with the end marker of its picture appended if it lacks nothing else."""
    file.seek(max(file.seek(0, os.SEEK_END) - END_BYTES, 0))
    ended = END in file.read()
    file.seek(0)
    if ended:
        return file
    content = file.read()
    file.seek(0)
    start, _ = jpeg_header(content, 0)
    # After one of several scans the number of missing ones is unknown.
    has_one_scan = END not in content[start:] and SCAN_START not in content[start + 2 :]
    return BytesIO(content + END) if has_one_scan and is_complete(content + END) else file


def is_complete(content: bytes) -> bool:
    """Return True if all pixels of a file precede its end marker: further pixel data there would change nothing."""
    end = content.find(END, jpeg_header(content, 0)[0])
    extended = content[:end].rstrip(b"\xff") + EXTRA_PIXELS + content[end:]
    with JpegImageFile(BytesIO(content)) as original, JpegImageFile(BytesIO(extended)) as changed:
        for picture in (original, changed):
            if "progressive" not in picture.info:  # a block's data are contiguous: the smallest scale suffices
                picture.draft(None, (1, 1))
            picture.load()
        return ImageChops.difference(original, changed).getbbox(alpha_only=False) is None


def remove_applications(content: bytes) -> bytes:
    """Return a file without the segments before its pixels that do not affect them."""
    kept, offset = [content[:2]], 2
    while content[offset : offset + 1] == b"\xff" and offset + 4 <= len(content):
        marker, size = struct.unpack_from(">BH", content, offset + 1)
        if marker == SCAN:
            break
        segment = content[offset : offset + 2 + size]
        if affects_pixels(marker, segment[4:]):
            kept.append(segment)
        offset += 2 + size
    return b"".join([*kept, content[offset:]])


def affects_pixels(marker: int, data: bytes) -> bool:
    """Return True if a segment may affect the decoding or display of pixels."""
    start, min_bytes = KEPT_SEGMENTS.get(marker, (b"", 0))
    known = marker in KEPT_SEGMENTS and data.startswith(start) and len(data) >= min_bytes
    return known or marker not in (*APPLICATIONS, COMMENT)


def jpeg_header(content: bytes, offset: int) -> tuple[int, bytes]:
    """Return the offset of a JPEG's first scan, and its size as stored; empty if it is one of several pictures."""
    size = b""
    offset += 2
    while content[offset : offset + 1] == b"\xff":
        marker = content[offset + 1 : offset + 2]
        if marker in (b"\xff", b"\x01", b""):  # padding, and markers without a length
            offset += 1 if marker == b"\xff" else 2
            continue
        if marker[0] == APP2 and content[offset + 4 : offset + 8] == b"MPF\0":
            return offset, b""
        if marker[0] == SCAN:
            return offset, size
        if marker[0] in FRAMES:
            size = content[offset + 5 : offset + 9]
        offset += 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
    return offset, b""
