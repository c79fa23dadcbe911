"""Durations of an animation's frames, for formats whose durations Pillow knows only after decoding."""

import struct
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import IO

from florence_tagger.media.isobmff import boxes_in
from florence_tagger.media.png import read_chunks

WEBP_CHUNKS = 12  # https://developers.google.com/speed/webp/docs/riff_container
ANMF_DURATION = 12  # offset in a frame's chunk; 24 bits, milliseconds

MAX_FRAMES = 250_000  # as for videos

Milliseconds = Iterator[float]


def webp_durations(file: IO[bytes]) -> Milliseconds:
    """Yield the durations of the frames of an animated WebP."""
    offset = WEBP_CHUNKS
    while True:
        file.seek(offset)
        header = file.read(8 + ANMF_DURATION + 3)
        if len(header) < 8:
            return
        name, size = struct.unpack("<4sI", header[:8])
        if name == b"ANMF":
            yield int.from_bytes(header[8 + ANMF_DURATION :], "little")
        offset += 8 + size + size % 2


def png_durations(file: IO[bytes]) -> Milliseconds:
    """Yield the durations of the frames of an animated PNG, which fcTL chunks state as fractions of a second."""
    for chunk in read_chunks(file):
        if chunk.name == b"fcTL" and len(chunk.data) == 26:
            delay, parts = struct.unpack_from(">2H", chunk.data, 20)
            yield 1000 * delay / (parts or 100)


def avif_durations(file: IO[bytes]) -> Milliseconds:
    """Yield the durations of the frames of an animated AVIF, which are those of its first track."""
    file.seek(0)
    content = file.read()
    header = box_at(content, b"moov", b"trak", b"mdia", b"mdhd")
    table = box_at(content, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts")
    (timescale,) = struct.unpack_from(">I", header, 20 if header[:1] == b"\1" else 12)
    for count, ticks in struct.iter_unpack(">2I", table[8:]):
        yield from repeat(1000 * ticks / max(timescale, 1), min(count, MAX_FRAMES))


def box_at(content: bytes, *names: bytes) -> bytes:
    """Return the payload of the first box of these names, each in the one before; raise ValueError if it is missing."""
    for name in names:
        box = next((box for box in boxes_in(content, 0, len(content)) if box[0] == name), None)
        if box is None:
            raise ValueError("a box is missing")
        content = content[box[1] : box[2]]
    return content


# Pillow's name of a format -> reader of its durations.
DURATIONS: dict[str, Callable[[IO[bytes]], Milliseconds]] = {
    "AVIF": avif_durations,
    "PNG": png_durations,
    "WEBP": webp_durations,
}
