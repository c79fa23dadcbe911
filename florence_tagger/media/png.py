"""A PNG file -> the same without the chunks that its pixels do not need, as browsers read it.

Pillow refuses a picture for a damaged or large comment or color profile, FFmpeg for unknown EXIF data. Chunks by PNG's
third edition (https://www.w3.org/TR/png-3/).
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import IO

from florence_tagger.media.directories import file_size
from florence_tagger.media.orientation import UPRIGHT, XMP_ORIENTATION, exif_orientation, exif_with_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE = 3  # color type that needs PLTE
CRITICAL = (b"IHDR", b"PLTE", b"IDAT")
ANIMATION = (b"acTL", b"fcTL", b"fdAT")
ANIMATION_SIZES = (8, 26)  # of acTL and fcTL; a picture without both is not animated
TRANSPARENT_SIZES = {0: (2,), 2: (6,), PALETTE: range(1, 257)}  # of tRNS, by color type
MAX_PROFILE = 1_000_000  # bytes of EXIF data in a text
PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")  # ImageMagick's keywords for EXIF data
TEXTS = (b"tEXt", b"zTXt", b"iTXt")


@dataclass(frozen=True)
class Chunk:
    """A chunk of a file.

    Attributes:
        name: its type.
        data: its content.
        checksum: CRC that is stored with it.
        valid: the checksum matches.
    """

    name: bytes
    data: bytes
    checksum: bytes
    valid: bool = True

    def parts(self) -> tuple[bytes, ...]:
        """Return the parts that make up the chunk in a file."""
        return struct.pack(">I", len(self.data)), self.name, self.data, self.checksum


def keep_pixel_chunks(file: IO[bytes]) -> BytesIO:
    """Return a PNG file with only the chunks that its pixels need, and its orientation if it is not upright.

    Raises:
        ValueError: a chunk that the pixels need is damaged.
    """
    chunks = list(read_chunks(file))
    if not chunks or chunks[0].name != b"IHDR" or len(chunks[0].data) != 13:
        raise ValueError("no header")
    kept = list(needed_chunks(chunks, chunks[0].data[9]))
    if any(chunk.name in CRITICAL and not chunk.valid for chunk in kept):
        raise ValueError("a wrong checksum")
    orientation = chunks_orientation(chunks)
    if orientation != UPRIGHT and not any(chunk.name == b"acTL" for chunk in kept):
        kept.insert(1, make_chunk(b"eXIf", exif_with_orientation(orientation)))
    parts = (part for chunk in (*kept, make_chunk(b"IEND", b"")) for part in chunk.parts())
    return BytesIO(b"".join((SIGNATURE, *parts)))


def make_chunk(name: bytes, data: bytes) -> Chunk:
    """Return a chunk with a valid checksum."""
    return Chunk(name, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def read_chunks(file: IO[bytes]) -> Iterator[Chunk]:
    """Yield the chunks of a file, up to its end or invalid data; a truncated chunk is not valid."""
    max_bytes = file_size(file)
    file.seek(len(SIGNATURE))
    while (head := file.read(8)) and re.fullmatch(rb".{4}[A-Za-z]{4}", head, re.DOTALL) and head[4:] != b"IEND":
        size, name = struct.unpack(">I4s", head)
        data = file.read(min(size, max_bytes))
        checksum = file.read(4)
        yield Chunk(name, data, checksum, checksum == make_chunk(name, data).checksum)


def needed_chunks(chunks: list[Chunk], color_type: int) -> Iterator[Chunk]:
    """Yield the chunks that pixels of a color type need: critical ones, known or not, and some ancillary ones."""
    sizes = {chunk.name: len(chunk.data) for chunk in chunks if chunk.valid}
    animated = (sizes.get(b"acTL"), sizes.get(b"fcTL")) == ANIMATION_SIZES
    names = set[bytes]()
    for chunk in chunks:
        if chunk.name == b"tRNS":
            is_needed = is_valid_transparency(chunk, color_type, names)
        elif chunk.name == b"PLTE":
            is_needed = color_type == PALETTE and chunk.name not in names
        else:
            is_needed = animated if chunk.name in ANIMATION else chunk.name[:1].isupper()
        names.add(chunk.name)
        if is_needed:
            yield chunk


def is_valid_transparency(chunk: Chunk, color_type: int, before: set[bytes]) -> bool:
    """Return True if a tRNS chunk is valid for a color type, after chunks of the names `before`."""
    in_order = not before & {b"tRNS", b"IDAT"} and (color_type != PALETTE or b"PLTE" in before)
    return in_order and chunk.valid and len(chunk.data) in TRANSPARENT_SIZES.get(color_type, ())


def chunks_orientation(chunks: list[Chunk]) -> int:
    """Return the orientation that the valid chunks of a picture state: that of EXIF data before that of XMP."""
    valid = [chunk for chunk in chunks if chunk.valid]
    texts = [keyword_and_text(chunk) for chunk in valid if chunk.name in TEXTS]
    orientations = [exif_orientation(chunk.data) for chunk in valid if chunk.name == b"eXIf"]
    orientations += [profile_orientation(text) for keyword, text in texts if keyword in PROFILES]
    xmp_texts = (text for keyword, text in texts if keyword == b"XML:com.adobe.xmp")
    orientations += [int(match[1]) for text in xmp_texts if (match := XMP_ORIENTATION.search(text))]
    return next((value for value in orientations if value is not None), UPRIGHT)


def profile_orientation(text: bytes) -> int | None:
    """Return the orientation that EXIF data in hexadecimal digits state, as ImageMagick writes them."""
    lines = text.split(b"\n", 3)  # empty, name of the profile, number of its bytes
    try:
        return exif_orientation(bytes.fromhex(lines[3].decode("latin-1"))) if len(lines) == 4 else None
    except ValueError:
        return None


def keyword_and_text(chunk: Chunk) -> tuple[bytes, bytes]:
    """Return the keyword and the text, decompressed, of a text chunk."""
    keyword, _, rest = chunk.data.partition(b"\0")
    compressed = chunk.name == b"zTXt" or (chunk.name == b"iTXt" and rest[:1] == b"\1")
    if chunk.name == b"iTXt":
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif chunk.name == b"zTXt":
        rest = rest[1:]
    try:
        return keyword, zlib.decompressobj().decompress(rest, MAX_PROFILE) if compressed else rest
    except zlib.error:
        return keyword, b""
