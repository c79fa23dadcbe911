"""How long each frame of an animation is shown, where Pillow decodes it, which does not tell before it has decoded."""

import struct
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import IO

from florence_tagger.media.isobmff import boxes_in
from florence_tagger.media.png import chunks_of

WEBP_CHUNKS = 12  # https://developers.google.com/speed/webp/docs/riff_container
ANMF_DURATION = 12  # bytes after a frame's start; 24 bits, milliseconds

MAX_FRAMES = 250_000  # as of videos

Milliseconds = Iterator[float]


def webp_durations(file: IO[bytes]) -> Milliseconds:
    """Those of an animated WebP."""
    place = WEBP_CHUNKS
    while True:
        file.seek(place)
        header = file.read(8 + ANMF_DURATION + 3)
        if len(header) < 8:
            return
        name, size = struct.unpack("<4sI", header[:8])
        if name == b"ANMF":
            yield int.from_bytes(header[8 + ANMF_DURATION :], "little")
        place += 8 + size + size % 2


def png_durations(file: IO[bytes]) -> Milliseconds:
    """Those of an animated PNG, in which a frame's control chunk (fcTL) has them as a fraction of seconds."""
    for chunk in chunks_of(file):
        if chunk.name == b"fcTL" and len(chunk.data) == 26:
            delay, parts = struct.unpack_from(">2H", chunk.data, 20)
            yield 1000 * delay / (parts or 100)


def avif_durations(file: IO[bytes]) -> Milliseconds:
    """Those of an animated AVIF: its first track's."""
    file.seek(0)
    content = file.read()
    header = box_at(content, b"moov", b"trak", b"mdia", b"mdhd")
    table = box_at(content, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts")
    (ticks_a_second,) = struct.unpack_from(">I", header, 20 if header[:1] == b"\1" else 12)
    for number, ticks in struct.iter_unpack(">2I", table[8:]):
        yield from repeat(1000 * ticks / max(ticks_a_second, 1), min(number, MAX_FRAMES))


def box_at(content: bytes, *names: bytes) -> bytes:
    """What is in the first box of these names, each in the one before; ValueError where there is none."""
    for name in names:
        found = next((box for box in boxes_in(content, 0, len(content)) if box[0] == name), None)
        if found is None:
            raise ValueError("a box is missing")
        content = content[found[1] : found[2]]
    return content


# By Pillow's name of the format.
DURATIONS: dict[str, Callable[[IO[bytes]], Milliseconds]] = {
    "AVIF": avif_durations,
    "PNG": png_durations,
    "WEBP": webp_durations,
}
