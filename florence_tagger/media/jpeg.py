"""A JPEG file -> Pillow's picture of it, whatever its application segments hold.

Pillow refuses a file for a short segment of these, which libjpeg, as browsers, passes over. Segments by ITU-T T.81,
annex B.
"""

import struct
from io import BytesIO
from typing import IO

from PIL.JpegImagePlugin import JpegImageFile

APPLICATIONS = range(0xE0, 0xF0)
COMMENT, SCAN = 0xFE, 0xDA
# How the segments begin that say how pixels are coded or shown, by their marker, and the bytes that they have at least.
KEPT = {0xE0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 6), 0xEE: (b"Adobe", 12)}


def read_jpeg(file: IO[bytes]) -> JpegImageFile:
    """The picture of a file, its header read; of several pictures (MPO) the first, without their index."""
    try:
        return JpegImageFile(file)
    except SyntaxError:
        file.seek(0)
        return JpegImageFile(BytesIO(without_applications(file.read())))


def without_applications(content: bytes) -> bytes:
    """A file without the segments before its pixels that say nothing of these."""
    kept, place = [content[:2]], 2
    while content[place : place + 1] == b"\xff" and place + 4 <= len(content):
        marker, size = struct.unpack_from(">BH", content, place + 1)
        if marker == SCAN:
            break
        segment = content[place : place + 2 + size]
        if is_kept(marker, segment[4:]):
            kept.append(segment)
        place += 2 + size
    return b"".join([*kept, content[place:]])


def is_kept(marker: int, data: bytes) -> bool:
    """Whether a segment may say how pixels are coded or shown."""
    start, least = KEPT.get(marker, (b"", 0))
    known = marker in KEPT and data.startswith(start) and len(data) >= least
    return known or marker not in (*APPLICATIONS, COMMENT)
