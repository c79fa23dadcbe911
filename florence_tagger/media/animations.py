"""Animations to frames that PyAV can't read, or not right, and Pillow can: WebP, AVIF with alpha, some deep PNG.

And what tells bare Motion JPEG, which PyAV reads, from a JPEG.
"""

import re
import struct
from collections.abc import Iterator
from itertools import accumulate
from typing import IO

from PIL import Image

from florence_tagger.errors import DocumentError
from florence_tagger.media.images import NO_PIXELS, frames_of
from florence_tagger.media.jpeg import jpeg_header
from florence_tagger.media.limits import DecodeOptions, check_pixels
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.timings import DURATIONS
from florence_tagger.schemas import Frame

# https://developers.google.com/speed/webp/docs/riff_container
CHUNKS_START = 12
SHORTEST_MS = 10  # what browsers make of a frame that has no duration


def pillow_frames(picture: Image.Image, file: IO[bytes], limits: DecodeOptions, sampling: Sampling) -> Iterator[Frame]:
    """The sampled frames of an animation, which Pillow decodes one after the other."""
    durations = [max(duration, SHORTEST_MS) / 1000 for duration in DURATIONS[str(picture.format)](file)]
    times = [0.0, *accumulate(durations)][: getattr(picture, "n_frames", 1)]
    choice = sampling.choose(times)
    for number, place in enumerate(choice.places):
        picture.seek(place)
        picture.load()
        closing = choice.closing and place == choice.places[-1]
        frame = Frame(NO_PIXELS, *picture.size, time_s=times[place], closing=closing)
        yield from frames_of(picture, frame, limits, number)


def check_webp(file: IO[bytes], max_pixels: int) -> None:
    """DocumentError where the header of a WebP tells of too many pixels: its decoder takes the memory at once."""
    file.seek(CHUNKS_START)
    header = file.read(18)
    file.seek(0)
    if len(header) < 18:
        raise DocumentError("The WebP picture is damaged: it ends in its header.")
    check_pixels(*webp_size(header), max_pixels)


def webp_size(header: bytes) -> tuple[int, int]:
    """Width and height by the first chunk of a WebP, of which 18 bytes are there; 0 where it is of no known kind."""
    if header[:4] == b"VP8X":
        return int.from_bytes(header[12:15], "little") + 1, int.from_bytes(header[15:18], "little") + 1
    if header[:4] == b"VP8 ":  # 14 bits each, and 2 for scaling
        width, height = struct.unpack_from("<2H", header, 14)
        return width & 0x3FFF, height & 0x3FFF
    if header[:4] == b"VP8L":  # 14 bits each, less one
        both = int.from_bytes(header[9:13], "little")
        return (both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1
    return 0, 0


PICTURE_END = re.compile(rb"\xff\xd9[\0\xff\s]*\Z")
PADDING = 4096  # bytes that may be between two pictures


def is_motion_jpeg(file: IO[bytes]) -> bool:
    """Tell whether a file is a stream of JPEGs of one size, end to end, as cameras send them.

    Files of several pictures (CIPA DC-007) have a table of them and are none, nor are photos that others of another
    size follow, as maps of depth or light do.
    """
    content = file.read()
    file.seek(0)
    start, size = jpeg_header(content, 0)
    while size:
        start = content.find(b"\xff\xd8\xff", start)
        if start < 0:
            return False
        if PICTURE_END.search(content, max(start - PADDING, 0), start):
            return jpeg_header(content, start)[1] == size
        start += 3
    return False
