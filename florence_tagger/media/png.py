"""A PNG file -> the same without what its pixels don't need, as browsers read it.

Pillow refuses a picture for a damaged or large comment or colour profile, FFmpeg for EXIF data that it does not know.
Chunks by PNG's third edition (https://www.w3.org/TR/png-3/).
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import IO

from florence_tagger.media.directories import size_of
from florence_tagger.media.orientation import UPRIGHT, XMP, exif_of, exif_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE = 3  # the type of colour that needs PLTE
CRITICAL = (b"IHDR", b"PLTE", b"IDAT")
ANIMATION = (b"acTL", b"fcTL", b"fdAT")
ANIMATION_SIZES = (8, 26)  # of acTL and fcTL; a picture without either is a still one
TRANSPARENT_SIZES = {0: (2,), 2: (6,), PALETTE: range(1, 257)}  # of tRNS, by the type of colour
MAX_PROFILE = 1_000_000  # bytes of EXIF in a text
PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")  # as ImageMagick calls EXIF data in a text
TEXTS = (b"tEXt", b"zTXt", b"iTXt")


@dataclass(frozen=True)
class Chunk:
    """A chunk of a file: its name, its data and their checksum, and whether that is right."""

    name: bytes
    data: bytes
    checksum: bytes
    sound: bool = True

    def parts(self) -> tuple[bytes, ...]:
        """What it is made of in a file."""
        return struct.pack(">I", len(self.data)), self.name, self.data, self.checksum


def pixels_alone(file: IO[bytes]) -> BytesIO:
    """A PNG file with what its pixels need, and its orientation where it is not upright.

    Raises:
        ValueError: a chunk that the pixels need is damaged.
    """
    chunks = list(chunks_of(file))
    if not chunks or chunks[0].name != b"IHDR" or len(chunks[0].data) != 13:
        raise ValueError("no header")
    kept = [*needed(chunks, colour=chunks[0].data[9])]
    if any(chunk.name in CRITICAL and not chunk.sound for chunk in kept):
        raise ValueError("a wrong checksum")
    turn = orientation_of(chunks)
    if turn != UPRIGHT and not any(chunk.name == b"acTL" for chunk in kept):
        kept.insert(1, chunk_of(b"eXIf", exif_of(turn)))
    parts = (part for chunk in (*kept, chunk_of(b"IEND", b"")) for part in chunk.parts())
    return BytesIO(b"".join((SIGNATURE, *parts)))


def chunk_of(name: bytes, data: bytes) -> Chunk:
    """A chunk with its right checksum."""
    return Chunk(name, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def chunks_of(file: IO[bytes]) -> Iterator[Chunk]:
    """The chunks of a file, up to where they end or what follows is none; one that is cut off is not sound."""
    left = size_of(file)
    file.seek(len(SIGNATURE))
    while (head := file.read(8)) and re.fullmatch(rb".{4}[A-Za-z]{4}", head, re.DOTALL) and head[4:] != b"IEND":
        size, name = struct.unpack(">I4s", head)
        data = file.read(min(size, left))
        checksum = file.read(4)
        yield Chunk(name, data, checksum, checksum == chunk_of(name, data).checksum)


def needed(chunks: list[Chunk], colour: int) -> Iterator[Chunk]:
    """The chunks that the pixels of a picture of a type of colour need: critical ones, known or not, and some more."""
    sizes = {chunk.name: len(chunk.data) for chunk in chunks if chunk.sound}
    animated = (sizes.get(b"acTL"), sizes.get(b"fcTL")) == ANIMATION_SIZES
    names = set[bytes]()
    for chunk in chunks:
        if chunk.name == b"tRNS":
            wanted = is_transparency(chunk, colour, names)
        elif chunk.name == b"PLTE":
            wanted = colour == PALETTE and chunk.name not in names
        else:
            wanted = animated if chunk.name in ANIMATION else chunk.name[:1].isupper()
        names.add(chunk.name)
        if wanted:
            yield chunk


def is_transparency(chunk: Chunk, colour: int, before: set[bytes]) -> bool:
    """Whether a chunk tRNS is one for a picture of a type of colour, with chunks of these names before it."""
    placed = not before & {b"tRNS", b"IDAT"} and (colour != PALETTE or b"PLTE" in before)
    return placed and chunk.sound and len(chunk.data) in TRANSPARENT_SIZES.get(colour, ())


def orientation_of(chunks: list[Chunk]) -> int:
    """The orientation that the sound chunks of a picture give: that of EXIF data before that of XMP."""
    sound = [chunk for chunk in chunks if chunk.sound]
    texts = [text_of(chunk) for chunk in sound if chunk.name in TEXTS]
    found = [exif_orientation(chunk.data) for chunk in sound if chunk.name == b"eXIf"]
    found += [profile_orientation(text) for keyword, text in texts if keyword in PROFILES]
    found += [
        int(match[1]) for keyword, text in texts if keyword == b"XML:com.adobe.xmp" and (match := XMP.search(text))
    ]
    return next((one for one in found if one is not None), UPRIGHT)


def profile_orientation(text: bytes) -> int | None:
    """The orientation that EXIF data in hexadecimal digits give, as ImageMagick writes them."""
    lines = text.split(b"\n", 3)  # nothing, the profile's name, the number of its bytes
    try:
        return exif_orientation(bytes.fromhex(lines[3].decode("latin-1"))) if len(lines) == 4 else None
    except ValueError:
        return None


def text_of(chunk: Chunk) -> tuple[bytes, bytes]:
    """The keyword and the text of a chunk of text, which may be packed."""
    keyword, _, rest = chunk.data.partition(b"\0")
    packed = chunk.name == b"zTXt" or (chunk.name == b"iTXt" and rest[:1] == b"\1")
    if chunk.name == b"iTXt":
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif chunk.name == b"zTXt":
        rest = rest[1:]
    try:
        return keyword, zlib.decompressobj().decompress(rest, MAX_PROFILE) if packed else rest
    except zlib.error:
        return keyword, b""
