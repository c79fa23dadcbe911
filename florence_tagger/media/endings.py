"""Detection of videos that end within a packet, so that their last frame can't be trusted.

Decoders return a picture even of half a frame, and most do not report it. FFmpeg detects a truncated packet of some
containers (AVI, Flash Video, MP4) or does not return it (Matroska); this module checks other containers. In bare H.264
and HEVC truncation can't be detected.
"""

import os
import re
import struct
from collections.abc import Callable
from typing import IO

SYNC = b"\x47"  # ISO/IEC 13818-1, 2.4.3.2: first byte of a transport stream packet
# Bytes between packets -> offset of the last one from the end: plain, after a timestamp (BDAV), and before parity.
SPACINGS = {188: -188, 192: -188, 204: -204}
TRANSPORT_TAIL = 188 * 192 * 204  # bytes, a multiple of all spacings
VIDEO_PES = re.compile(rb"\0\0\x01[\xe0-\xef\xfd]")  # start of a packet of a video stream
PES_HEADER, MAX_PES = 6, 65_541  # 2.4.3.6: bytes up to and including the length, and maximum bytes of a packet
PES = re.compile(rb"\0\0\x01[\xbd\xc0-\xef]")  # of audio, video and private streams
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")  # GUID of the object with all packets, before its size
ASF_HEAD = 1_000_000  # bytes within which it starts
PICTURE_END, MAX_PADDING = re.compile(rb"\xff\xd9[\0\xff\s]*\Z"), 4096  # of a JPEG, and bytes after it
GIF_HEADER, GIF_EXTENSION, GIF_PICTURE = 13, b"\x21", b"\x2c"  # https://www.w3.org/Graphics/GIF/spec-gif89a.txt


def ends_early(file: IO[bytes], container: str) -> bool:
    """Return True if a file ends within its last packet; `container` is FFmpeg's name of its format."""
    position = file.tell()
    try:
        return container in ENDINGS and ENDINGS[container](file)
    finally:
        file.seek(position)


def last_bytes(file: IO[bytes], num_bytes: int) -> bytes:
    """Return the end of a file."""
    file.seek(max(file.seek(0, os.SEEK_END) - num_bytes, 0))
    return file.read(num_bytes)


def transport_ends_early(file: IO[bytes]) -> bool:
    """Return True if the last packet of a transport stream is incomplete, or a video's last one has no stuffing.

    The last packet of a frame has stuffing, unless the frame happens to fill it.
    """
    tail = last_bytes(file, TRANSPORT_TAIL)
    spacing = next((size for size, start in SPACINGS.items() if tail[start - size :: size][:2] == SYNC * 2), 0)
    if not spacing:
        return True
    has_stuffing: dict[bytes, bool] = {}  # by stream id, of its last packet
    video_streams = set[bytes]()
    for start in range(len(tail) + SPACINGS[spacing], -1, -spacing):
        stream = bytes((tail[start + 1] & 0x1F, tail[start + 2]))
        adaptation = 1 + tail[start + 4] if tail[start + 3] & 0x20 else 0  # bytes of the adaptation field
        clocks = 6 * (tail[start + 5] & 0x18).bit_count()
        has_stuffing.setdefault(stream, adaptation == 1 or adaptation > 2 + clocks)
        if VIDEO_PES.match(tail, start + 4 + adaptation):
            video_streams.add(stream)
    return any(not has_stuffing[stream] for stream in video_streams)


def program_ends_early(file: IO[bytes]) -> bool:
    """Return True if the last packet of a program stream extends past the end of the file."""
    tail = last_bytes(file, MAX_PES)
    start = max((match.start() for match in PES.finditer(tail)), default=len(tail))
    if start + PES_HEADER > len(tail):
        return start < len(tail)
    (size,) = struct.unpack_from(">H", tail, start + PES_HEADER - 2)
    return start + PES_HEADER + int(size) > len(tail)


def asf_ends_early(file: IO[bytes]) -> bool:
    """Return True if the packets of a Windows Media file extend past its end."""
    file.seek(0)
    head = file.read(ASF_HEAD)
    start = head.find(ASF_DATA)
    if start < 0 or len(head) < start + len(ASF_DATA) + 8:
        return False
    (size,) = struct.unpack_from("<Q", head, start + len(ASF_DATA))
    return start + int(size) > file.seek(0, os.SEEK_END)


def motion_jpeg_ends_early(file: IO[bytes]) -> bool:
    """Return True if the last one of concatenated JPEGs has no end marker."""
    return PICTURE_END.search(last_bytes(file, MAX_PADDING)) is None


def gif_ends_early(file: IO[bytes]) -> bool:
    """Return True if the last block of a GIF is incomplete; bytes after the blocks are ignored."""
    file.seek(0)
    content = file.read()
    offset = GIF_HEADER + color_table_size(content[10:11])
    while content[offset : offset + 1] in (GIF_EXTENSION, GIF_PICTURE):
        is_picture = content[offset : offset + 1] == GIF_PICTURE
        offset += 11 + color_table_size(content[offset + 9 : offset + 10]) if is_picture else 2
        while offset < len(content) and content[offset]:
            offset += 1 + content[offset]
        offset += 1
    return offset > len(content)


def color_table_size(flags: bytes) -> int:
    """Return the bytes of the color table that these flags describe."""
    return 3 << 1 + (flags[0] & 7) if flags and flags[0] & 0x80 else 0


ENDINGS: dict[str, Callable[[IO[bytes]], bool]] = {
    "mpegts": transport_ends_early,
    "mpeg": program_ends_early,
    "asf": asf_ends_early,
    "mjpeg": motion_jpeg_ends_early,
    "gif": gif_ends_early,
}
