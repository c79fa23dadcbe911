"""A video's file -> whether it ends in the middle of a packet, so that its last frame can't be trusted.

Decoders make a picture of half a frame, too, and most say nothing of it. Of some containers FFmpeg tells (AVI, Flash
Video, MP4), or gives no such packet (Matroska); here are those of which it does not. Of bare H.264 and HEVC nothing
does.
"""

import os
import re
import struct
from collections.abc import Callable
from typing import IO

SYNC = b"\x47"  # ISO/IEC 13818-1, 2.4.3.2: the first byte of a packet of a transport stream
# Bytes from packet to packet: plain, with a time before each (BDAV), with parity behind it; and where the last begins.
SPACINGS = {188: -188, 192: -188, 204: -204}
TRANSPORT_END = 188 * 192 * 204  # bytes, a multiple of all
PICTURES = re.compile(rb"\0\0\x01[\xe0-\xef\xfd]")  # a packet of a stream of pictures
PES_HEAD, MAX_PES = 6, 65_541  # 2.4.3.6: bytes up to its length, and the most of a packet
PES = re.compile(rb"\0\0\x01[\xbd\xc0-\xef]")  # of sound, pictures and private streams
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")  # the object with all packets, then its size
ASF_HEAD = 1_000_000  # bytes within which it begins
PICTURE_END, MAX_PADDING = re.compile(rb"\xff\xd9[\0\xff\s]*\Z"), 4096  # of a JPEG, and bytes behind it
GIF_HEADER, GIF_EXTENSION, GIF_PICTURE = 13, b"\x21", b"\x2c"  # https://www.w3.org/Graphics/GIF/spec-gif89a.txt


def ends_early(file: IO[bytes], container: str) -> bool:
    """Tell whether a file in a container by FFmpeg's name ends before its last packet does."""
    place = file.tell()
    try:
        return container in ENDINGS and ENDINGS[container](file)
    finally:
        file.seek(place)


def last_bytes(file: IO[bytes], number: int) -> bytes:
    """The end of a file."""
    file.seek(max(file.seek(0, os.SEEK_END) - number, 0))
    return file.read(number)


def transport_ends_early(file: IO[bytes]) -> bool:
    """Of a transport stream: its last packet is not whole, or the last one with pictures is full.

    The last packet of a frame is stuffed, unless the frame happens to fill it.
    """
    end = last_bytes(file, TRANSPORT_END)
    spacing = next((one for one, start in SPACINGS.items() if end[start - one :: one][:2] == SYNC * 2), 0)
    if not spacing:
        return True
    stuffed: dict[bytes, bool] = {}  # by the number of a stream, of its last packet
    pictures = set[bytes]()
    for start in range(len(end) + SPACINGS[spacing], -1, -spacing):
        stream = bytes((end[start + 1] & 0x1F, end[start + 2]))
        field = 1 + end[start + 4] if end[start + 3] & 0x20 else 0  # bytes before what the packet is for
        clocks = 6 * (end[start + 5] & 0x18).bit_count()
        stuffed.setdefault(stream, field == 1 or field > 2 + clocks)
        if PICTURES.match(end, start + 4 + field):
            pictures.add(stream)
    return any(not stuffed[stream] for stream in pictures)


def program_ends_early(file: IO[bytes]) -> bool:
    """Of a program stream: the last packet would go on behind its end."""
    end = last_bytes(file, MAX_PES)
    start = max((found.start() for found in PES.finditer(end)), default=len(end))
    if start + PES_HEAD > len(end):
        return start < len(end)
    (size,) = struct.unpack_from(">H", end, start + PES_HEAD - 2)
    return start + PES_HEAD + int(size) > len(end)


def asf_ends_early(file: IO[bytes]) -> bool:
    """Of Windows Media: all packets together would go on behind its end."""
    file.seek(0)
    head = file.read(ASF_HEAD)
    start = head.find(ASF_DATA)
    if start < 0 or len(head) < start + len(ASF_DATA) + 8:
        return False
    (size,) = struct.unpack_from("<Q", head, start + len(ASF_DATA))
    return start + int(size) > file.seek(0, os.SEEK_END)


def motion_jpeg_ends_early(file: IO[bytes]) -> bool:
    """Of JPEGs end to end: the last one has no end."""
    return PICTURE_END.search(last_bytes(file, MAX_PADDING)) is None


def gif_ends_early(file: IO[bytes]) -> bool:
    """Of a GIF: its last block has no end. What is behind the blocks does not matter."""
    file.seek(0)
    content = file.read()
    place = GIF_HEADER + colours_size(content[10:11])
    while content[place : place + 1] in (GIF_EXTENSION, GIF_PICTURE):
        is_picture = content[place : place + 1] == GIF_PICTURE
        place += 11 + colours_size(content[place + 9 : place + 10]) if is_picture else 2
        while place < len(content) and content[place]:
            place += 1 + content[place]
        place += 1
    return place > len(content)


def colours_size(flags: bytes) -> int:
    """Bytes of the table of colours that these flags tell of."""
    return 3 << 1 + (flags[0] & 7) if flags and flags[0] & 0x80 else 0


ENDINGS: dict[str, Callable[[IO[bytes]], bool]] = {
    "mpegts": transport_ends_early,
    "mpeg": program_ends_early,
    "asf": asf_ends_early,
    "mjpeg": motion_jpeg_ends_early,
    "gif": gif_ends_early,
}
