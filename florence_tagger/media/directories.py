"""The directories of a TIFF file, and of what is built like one: EXIF data and most raw photos.

They are read here, not by a library, since a library that refuses a file for one odd entry would refuse its pixels with
it, and since they decide which library decodes a page. References are to TIFF 6.0 and to BigTIFF
(https://www.awaresystems.be/imaging/tiff/bigtiff.html).
"""

import struct
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from io import SEEK_END
from typing import IO

ORIENTATION, SUB_DIRECTORIES = 274, 330

# By the number of a field type: bytes of one value, and its form for `struct` where it is an integer.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}

ORDERS = {b"II": "<", b"MM": ">"}
CLASSIC, BIG = 42, 43
MAX_ENTRIES = 1000  # of a directory; real ones have some dozens
MAX_VALUES = 1_000_000  # of an entry: the strips of the largest pages
MAX_OWN = 1000  # directories in others that are looked at


@dataclass(frozen=True)
class Layout:
    """How a file writes its directories.

    Attributes:
        order: of bytes, as `struct` has it.
        big: it is a BigTIFF, whose sizes and offsets have 8 bytes.
        first: where the first directory is.
        magic: the number behind the order; 42 and 43 are TIFF's.
    """

    order: str
    big: bool
    first: int
    magic: int

    @property
    def prefix(self) -> bytes:
        """The first two bytes."""
        return b"II" if self.order == "<" else b"MM"


@dataclass(frozen=True)
class Entry:
    """What a directory says of a tag: the type and number of its values, and where in the file these are."""

    kind: int
    number: int
    place: int

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return SIZES[self.kind] * self.number


@dataclass(frozen=True)
class Directory:
    """A directory, its values read when they are asked for.

    Attributes:
        place: where in the file it is.
        entries: by tag; of a tag that is there twice the first, as in libtiff.
        next: where the next directory is; 0 where there is none.
    """

    file: IO[bytes]
    layout: Layout
    place: int
    entries: dict[int, Entry]
    next: int

    def data(self, tag: int) -> bytes:
        """The bytes of a tag's values; none where it is not there, too long, or not within the file."""
        entry = self.entries.get(tag)
        if entry is None or entry.number > MAX_VALUES or entry.place + entry.size > size_of(self.file):
            return b""
        return read_at(self.file, entry.place, entry.size)

    def numbers(self, tag: int) -> tuple[int, ...]:
        """The values of a tag; none where they are no integers."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in INTEGERS:
            return ()
        data = self.data(tag)
        return struct.unpack(f"{self.layout.order}{len(data) // SIZES[entry.kind]}{INTEGERS[entry.kind]}", data)

    def number(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return next(iter(self.numbers(tag)), default)

    @property
    def width(self) -> int:
        """Pixels of a row of its picture; 0 where it does not say."""
        return self.number(256)

    @property
    def height(self) -> int:
        """Rows of its picture; 0 where it does not say."""
        return self.number(257)

    @property
    def size(self) -> tuple[int, int]:
        """Both."""
        return self.width, self.height


def layout_of(head: bytes) -> Layout | None:
    """The layout of a file that begins with `head`, 16 bytes of it; None where it is not built like a TIFF."""
    order = ORDERS.get(head[:2])
    if order is None or len(head) < 8:
        return None
    magic, first = struct.unpack_from(order + "HI", head, 2)
    if magic != BIG:
        return Layout(order, False, first, magic)
    return Layout(order, True, struct.unpack_from(order + "Q", head, 8)[0], magic) if len(head) >= 16 else None


def read_directory(file: IO[bytes], layout: Layout, place: int) -> Directory:
    """The directory at `place`; EOFError where the file ends before it does."""
    form = layout.order + ("HHQ8s" if layout.big else "HHI4s")
    counter, offset = ("Q", "Q") if layout.big else ("H", "I")
    start = place + struct.calcsize("=" + counter)
    number = unpacked(file, layout.order + counter, place)
    if number > MAX_ENTRIES:
        raise EOFError("more entries than a directory has")
    size = struct.calcsize(form)
    table = read_at(file, start, number * size)
    entries: dict[int, Entry] = {}
    for index, (tag, kind, count, value) in enumerate(struct.iter_unpack(form, table)):
        entry = Entry(kind, count, start + index * size + size - len(value))
        if kind in SIZES and entry.size > len(value):
            entry = replace(entry, place=struct.unpack(layout.order + offset, value)[0])
        if kind in SIZES:
            entries.setdefault(tag, entry)
    return Directory(file, layout, place, entries, unpacked(file, layout.order + offset, start + number * size))


def chain(file: IO[bytes], layout: Layout, place: int | None = None) -> Iterator[Directory]:
    """The directories that follow one another; where one is named again they end."""
    place, seen = layout.first if place is None else place, set[int]()
    while place and place not in seen:
        seen.add(place)
        directory = read_directory(file, layout, place)
        yield directory
        place = directory.next


def tree(directories: Iterable[Directory]) -> Iterator[Directory]:
    """Directories, each before those that it names as its own, and theirs."""
    waiting, seen = deque(directories), set[int]()
    while waiting and len(seen) < MAX_OWN:
        directory = waiting.popleft()
        if directory.place in seen:
            continue
        seen.add(directory.place)
        yield directory
        for place in directory.numbers(SUB_DIRECTORIES)[:MAX_OWN]:
            with suppress(EOFError):  # they hold what a page has besides itself
                waiting.append(read_directory(directory.file, directory.layout, place))


def unpacked(file: IO[bytes], form: str, place: int) -> int:
    """A number in a file."""
    return int(struct.unpack(form, read_at(file, place, struct.calcsize(form)))[0])


def read_at(file: IO[bytes], place: int, size: int) -> bytes:
    """So many bytes from `place` on; EOFError where the file ends before."""
    if place + size > size_of(file):
        raise EOFError("the file ends before")
    file.seek(place)
    return file.read(size)


def size_of(file: IO[bytes]) -> int:
    """Bytes of a file."""
    return file.seek(0, SEEK_END)
