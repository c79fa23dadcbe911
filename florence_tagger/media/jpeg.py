"""A JPEG file -> Pillow's picture of it, whatever its application segments hold.

Pillow refuses a file for a short segment of these, which libjpeg, as browsers, passes over; and for a missing end. It
takes one that ends before its last pixels. Segments by ITU-T T.81, annex B.
"""

import os
import struct
from io import BytesIO
from typing import IO

from PIL import ImageChops
from PIL.JpegImagePlugin import JpegImageFile

APPLICATIONS = range(0xE0, 0xF0)
COMMENT, SCAN, APP2 = 0xFE, 0xDA, 0xE2
# Markers of frames (table B.1), which have the size, but for those of tables among them.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
END, SCAN_START = b"\xff\xd9", b"\xff\xda"
END_BYTES = 65_536  # of a file, in which its end is looked for at first
CODES = bytes(167 * index % 255 for index in range(1, 1000))  # what may be pixels: of all kinds, and no marker
MORE = CODES + b"".join(b"\xff" + bytes([restart]) + CODES for restart in range(0xD0, 0xD8))
NO_DATA = {127, 128}  # what libjpeg makes of pixels that are not there, in each mode
# How the segments begin that say how pixels are coded or shown, by their marker, and the bytes that they have at least.
KEPT = {0xE0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 6), 0xEE: (b"Adobe", 12)}


class CheckedJpeg(JpegImageFile):
    """A picture that is refused as truncated where its end stands before its last pixels: libjpeg makes them grey."""

    def load_end(self) -> None:
        """Look at the last pixel."""
        last = self.im.getpixel((self.width - 1, self.height - 1))
        values = last if isinstance(last, tuple) else (last,)
        if self.fp is not None and NO_DATA.issuperset(values):
            self.fp.seek(0)
            if not is_whole(self.fp.read()):
                raise OSError("truncated")


def read_jpeg(file: IO[bytes]) -> JpegImageFile:
    """The picture of a file, its header read; of several pictures (MPO) the first, without their index."""
    file = with_end(file)
    try:
        return CheckedJpeg(file)
    except SyntaxError:
        file.seek(0)
        return CheckedJpeg(BytesIO(without_applications(file.read())))


def with_end(file: IO[bytes]) -> IO[bytes]:
    """A file, with the end of its picture where it lacks nothing else."""
    file.seek(max(file.seek(0, os.SEEK_END) - END_BYTES, 0))
    ended = END in file.read()
    file.seek(0)
    if ended:
        return file
    content = file.read()
    file.seek(0)
    start, _ = jpeg_header(content, 0)
    # After one of several scans nothing tells how many are missing.
    whole = END not in content[start:] and SCAN_START not in content[start + 2 :] and is_whole(content + END)
    return BytesIO(content + END) if whole else file


def is_whole(content: bytes) -> bool:
    """Whether the pixels of a file are all before its end: more of them, there, would change nothing."""
    end = content.find(END, jpeg_header(content, 0)[0])
    more = content[:end].rstrip(b"\xff") + MORE + content[end:]
    with JpegImageFile(BytesIO(content)) as picture, JpegImageFile(BytesIO(more)) as other:
        for one in (picture, other):
            if "progressive" not in one.info:  # all of a block is in one place: small pixels tell as much
                one.draft(None, (1, 1))
            one.load()
        return ImageChops.difference(picture, other).getbbox(alpha_only=False) is None


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


def jpeg_header(content: bytes, place: int) -> tuple[int, bytes]:
    """Return where the first scan of a JPEG begins, and its size as it is stored; empty where it is one of several."""
    size = b""
    place += 2
    while content[place : place + 1] == b"\xff":
        marker = content[place + 1 : place + 2]
        if marker in (b"\xff", b"\x01", b""):  # padding, and one that has no length
            place += 1 if marker == b"\xff" else 2
            continue
        if marker[0] == APP2 and content[place + 4 : place + 8] == b"MPF\0":
            return place, b""
        if marker[0] == SCAN:
            return place, size
        if marker[0] in FRAMES:
            size = content[place + 5 : place + 9]
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return place, b""
