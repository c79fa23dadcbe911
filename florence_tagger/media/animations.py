"""Frames of animations that PyAV can't decode correctly and Pillow can: WebP, AVIF with alpha, some deep PNG.

It also distinguishes bare Motion JPEG, which PyAV reads, from a JPEG.
"""

import re
import struct
from collections.abc import Iterator
from itertools import accumulate
from typing import IO

from PIL import Image

from florence_tagger.errors import DocumentError
from florence_tagger.media.images import NO_PIXELS, frames_with_tiles
from florence_tagger.media.jpeg import jpeg_header
from florence_tagger.media.limits import DecodeOptions, check_pixels
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.timings import DURATIONS
from florence_tagger.schemas import Frame

# https://developers.google.com/speed/webp/docs/riff_container
CHUNKS_START = 12
MIN_DURATION_MS = 10  # browsers' duration of a frame that states none


def pillow_frames(picture: Image.Image, file: IO[bytes], options: DecodeOptions, sampling: Sampling) -> Iterator[Frame]:
    """Yield the sampled frames of an animation that Pillow decodes sequentially."""
    durations = [max(duration, MIN_DURATION_MS) / 1000 for duration in DURATIONS[str(picture.format)](file)]
    times = [0.0, *accumulate(durations)][: getattr(picture, "n_frames", 1)]
    sampled = sampling.choose(times)
    for number, index in enumerate(sampled.indices):
        picture.seek(index)
        picture.load()
        is_extra = sampled.last_is_extra and index == sampled.indices[-1]
        frame = Frame(NO_PIXELS, *picture.size, time_s=times[index], is_extra=is_extra)
        yield from frames_with_tiles(picture, frame, options, number)


def check_webp(file: IO[bytes], max_pixels: int) -> None:
    """Raise DocumentError if a WebP's header states too many pixels: its decoder allocates the memory at once."""
    file.seek(CHUNKS_START)
    header = file.read(18)
    file.seek(0)
    if len(header) < 18:
        raise DocumentError("The WebP picture is damaged: it ends in its header.")
    check_pixels(*webp_size(header), max_pixels)


def webp_size(header: bytes) -> tuple[int, int]:
    """Return the width and height in the first 18 bytes of a WebP's first chunk; 0 if its kind is unknown."""
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
MAX_PADDING = 4096  # bytes between two pictures


def is_motion_jpeg(file: IO[bytes]) -> bool:
    """Return True if a file is a stream of JPEGs of one size, end to end, as cameras send them.

    Files of several pictures with an index (CIPA DC-007) are none, nor are photos followed by pictures of another size,
    such as depth or gain maps.
    """
    content = file.read()
    file.seek(0)
    start, size = jpeg_header(content, 0)
    while size:
        start = content.find(b"\xff\xd8\xff", start)
        if start < 0:
            return False
        if PICTURE_END.search(content, max(start - MAX_PADDING, 0), start):
            return jpeg_header(content, start)[1] == size
        start += 3
    return False
