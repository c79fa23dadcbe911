"""Image file directories of TIFF, and of files built like it: EXIF data and most raw photos.

They are parsed here and not by a library, because a library that refuses a file for one invalid entry would also refuse
its pixels, and because they determine which library decodes a page. References are to TIFF 6.0 and to BigTIFF
(https://www.awaresystems.be/imaging/tiff/bigtiff.html).
"""

import struct
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from io import SEEK_END
from typing import IO

WIDTH, HEIGHT, ORIENTATION, SUB_DIRECTORIES = 256, 257, 274, 330  # tags

# Field type -> bytes of one value, and `struct` format of integers.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGER_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}

BYTE_ORDERS = {b"II": "<", b"MM": ">"}
CLASSIC, BIG = 42, 43
MAX_ENTRIES = 1000  # of a directory; real ones have some dozens
MAX_VALUES = 1_000_000  # of an entry: the strips of the largest pages
MAX_SUB_DIRECTORIES = 1000  # of all directories together


@dataclass(frozen=True)
class Layout:
    """Encoding of the directories of a file.

    Attributes:
        byte_order: "<" or ">", as for `struct`.
        is_big: the file is a BigTIFF, in which sizes and offsets have 8 bytes.
        first_offset: of the first directory.
        magic: number after the byte order; 42 and 43 are TIFF's.
    """

    byte_order: str
    is_big: bool
    first_offset: int
    magic: int

    @property
    def byte_order_mark(self) -> bytes:
        """First two bytes of the file."""
        return b"II" if self.byte_order == "<" else b"MM"


@dataclass(frozen=True)
class Entry:
    """Entry of a directory: field type and number of a tag's values, and their offset in the file."""

    field_type: int
    count: int
    offset: int

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return SIZES[self.field_type] * self.count


@dataclass(frozen=True)
class Directory:
    """A directory, whose values are read on request.

    Attributes:
        file: with the directory.
        layout: of the file.
        offset: of the directory in the file.
        entries: by tag; of a tag that occurs twice the first, as in libtiff.
        next_offset: of the next directory; 0 if there is none.
    """

    file: IO[bytes]
    layout: Layout
    offset: int
    entries: dict[int, Entry]
    next_offset: int

    def data(self, tag: int) -> bytes:
        """Return the bytes of a tag's values; empty if it is missing, too long, or not within the file."""
        entry = self.entries.get(tag)
        if entry is None or entry.count > MAX_VALUES or entry.offset + entry.size > file_size(self.file):
            return b""
        return read_at(self.file, entry.offset, entry.size)

    def integers(self, tag: int) -> tuple[int, ...]:
        """Return the values of a tag; empty if they are no integers."""
        entry = self.entries.get(tag)
        if entry is None or entry.field_type not in INTEGER_FORMATS:
            return ()
        data = self.data(tag)
        count = len(data) // SIZES[entry.field_type]
        return struct.unpack(f"{self.layout.byte_order}{count}{INTEGER_FORMATS[entry.field_type]}", data)

    def integer(self, tag: int, default: int = 0) -> int:
        """Return the first value of a tag."""
        return next(iter(self.integers(tag)), default)

    @property
    def width(self) -> int:
        """Width of its picture, pixels; 0 if it is missing."""
        return self.integer(WIDTH)

    @property
    def height(self) -> int:
        """Height of its picture, pixels; 0 if it is missing."""
        return self.integer(HEIGHT)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height


def parse_layout(head: bytes) -> Layout | None:
    """Return the layout of a file by its first 16 bytes; None if it is not built like a TIFF."""
    byte_order = BYTE_ORDERS.get(head[:2])
    if byte_order is None or len(head) < 8:
        return None
    magic, offset = struct.unpack_from(byte_order + "HI", head, 2)
    if magic != BIG:
        return Layout(byte_order, False, offset, magic)
    if len(head) < 16:
        return None
    return Layout(byte_order, True, struct.unpack_from(byte_order + "Q", head, 8)[0], magic)


def read_directory(file: IO[bytes], layout: Layout, offset: int) -> Directory:
    """Read the directory at an offset.

    Raises:
        EOFError: the file ends before the directory, or it has too many entries.
    """
    entry_format = layout.byte_order + ("HHQ8s" if layout.is_big else "HHI4s")
    count_format, offset_format = ("Q", "Q") if layout.is_big else ("H", "I")
    start = offset + struct.calcsize("=" + count_format)
    num_entries = unpack_at(file, layout.byte_order + count_format, offset)
    if num_entries > MAX_ENTRIES:
        raise EOFError("more entries than a directory has")
    size = struct.calcsize(entry_format)
    table = read_at(file, start, num_entries * size)
    entries: dict[int, Entry] = {}
    for index, (tag, field_type, count, value) in enumerate(struct.iter_unpack(entry_format, table)):
        entry = Entry(field_type, count, start + index * size + size - len(value))
        if field_type in SIZES and entry.size > len(value):
            entry = replace(entry, offset=struct.unpack(layout.byte_order + offset_format, value)[0])
        if field_type in SIZES:
            entries.setdefault(tag, entry)
    next_offset = unpack_at(file, layout.byte_order + offset_format, start + num_entries * size)
    return Directory(file, layout, offset, entries, next_offset)


def directory_chain(file: IO[bytes], layout: Layout) -> Iterator[Directory]:
    """Yield the linked directories of a file, up to the end or a loop.

    Raises:
        EOFError: as `read_directory`.
    """
    offset, visited = layout.first_offset, set[int]()
    while offset and offset not in visited:
        visited.add(offset)
        directory = read_directory(file, layout, offset)
        yield directory
        offset = directory.next_offset


def include_sub_directories(directories: Iterable[Directory]) -> Iterator[Directory]:
    """Yield directories and all their subdirectories, breadth first, each once."""
    waiting, visited = deque(directories), set[int]()
    while waiting and len(visited) < MAX_SUB_DIRECTORIES:
        directory = waiting.popleft()
        if directory.offset in visited:
            continue
        visited.add(directory.offset)
        yield directory
        for offset in directory.integers(SUB_DIRECTORIES)[:MAX_SUB_DIRECTORIES]:
            with suppress(EOFError):  # a subdirectory is not needed for its page
                waiting.append(read_directory(directory.file, directory.layout, offset))


def unpack_at(file: IO[bytes], integer_format: str, offset: int) -> int:
    """Return an integer at an offset of a file; raise EOFError if the file ends before."""
    return int(struct.unpack(integer_format, read_at(file, offset, struct.calcsize(integer_format)))[0])


def read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    """Return `size` bytes at an offset of a file; raise EOFError if the file ends before."""
    if offset + size > file_size(file):
        raise EOFError("the file ends before")
    file.seek(offset)
    return file.read(size)


def file_size(file: IO[bytes]) -> int:
    """Return the size of a file, bytes."""
    return file.seek(0, SEEK_END)
