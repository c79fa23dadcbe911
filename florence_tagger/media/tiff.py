"""A TIFF file -> its pages, each as a picture.

Directories that are a page's thumbnail, mask or lower resolution are left out. Each other one is decoded as a file of
its own that has what pixels need and nothing else, by Pillow where samples have 8 bits or fewer, as `samples` does it
where they have more.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from shutil import copyfileobj
from typing import IO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from florence_tagger.errors import DocumentError
from florence_tagger.media.directories import (
    CLASSIC,
    INTEGERS,
    ORIENTATION,
    SIZES,
    Directory,
    chain,
    layout_of,
    read_at,
    size_of,
    tree,
)
from florence_tagger.media.limits import DecodeOptions, check_pixels
from florence_tagger.media.orientation import turned
from florence_tagger.media.samples import JPEGS, PREMULTIPLIED, read_samples
from florence_tagger.schemas import UInt8Array

# Tags: NewSubfileType and SubfileType (TIFF 6.0, pages 36 and 40), and what of them says that this is no page.
SUBFILE_TYPE, OLD_SUBFILE_TYPE = 254, 255
REDUCED, MASK, OLD_REDUCED = 1, 4, 2
COMPRESSION, PHOTOMETRIC, BITS, PLANAR, SAMPLE_FORMAT, EXTRA_SAMPLES, SAMPLES = 259, 262, 258, 284, 339, 338, 277

ROWS, TILE_WIDTH, TILE_LENGTH = 278, 322, 323
SEGMENTS = ((273, 279), (324, 325), (513, 514))  # where strips, tiles and old JPEGs are, and how long
PLAIN, YCBCR = 1, 6  # of Compression and of PhotometricInterpretation

# All that tells how pixels are stored.
PIXEL_TAGS = {
    *(256, 257, BITS, COMPRESSION, PHOTOMETRIC, 266, 273, SAMPLES, 278, 279, PLANAR, 292, 293, 317, 320),
    *(322, 323, 324, 325, 332, EXTRA_SAMPLES, SAMPLE_FORMAT, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521),
    *(529, 530, 531, 532),
}
WIDE = {16: 4, 17: 9, 18: 4}  # types of BigTIFF's fields, and what they are in others

# What Pillow and libtiff read right: bits of a sample, and kinds of colour.
PILLOW_BITS, PILLOW_COLOURS = {1, 2, 4, 8}, (0, 1, 2, 3, 5, 6)
WEBP, UNSIGNED, UNDEFINED = 50001, 1, 4

# Of two pages of which one has half the other's sides: how alike they must be, as a correlation of grey, to be one. At
# this size levels made by any filter have 0.97 or more, two pages of the same book 0.8 or less (tests/test_tiff.py).
COMPARED_SIDE = 256
ALIKE = 0.9
LIKE_COLOUR = 10  # of 255, where all of both pages is of one colour
MAX_BESIDE = 20  # directories for each page that is accepted: thumbnails, masks and lower resolutions
COPIED_BYTES = 1_000_000  # at a time
TINY = 64  # pixels a side; what is smaller shows nothing that could be counted twice


def tiff_pages(file: IO[bytes], limits: DecodeOptions) -> Iterator[tuple[int | None, Image.Image]]:
    """The pages of a TIFF as they are displayed, and their numbers from 1; None where there can be no other.

    Raises:
        DocumentError: there is no page, there are too many, or one has too many pixels.
    """
    directories, pages = directories_and_pages(file, limits.pages)
    with opened_copy(file) as copy:
        for number, picture in enumerate(without_levels(copy, pages, limits), 1):
            yield number if len(directories) > 1 else None, picture


def directories_and_pages(file: IO[bytes], most: int) -> tuple[list[Directory], list[Directory]]:
    """The directories of a file in a row, and its pages; DocumentError where these are none, or too many."""
    layout = layout_of(read_at(file, 0, 16))
    directories: list[Directory] = []
    pages: list[Directory] = []
    for directory in chain(file, layout) if layout else ():
        directories.append(directory)
        if not is_reduced(directory):
            pages.append(directory)
        if len(pages) > most or len(directories) > MAX_BESIDE * most:
            raise DocumentError(f"The file has more than the {most} pages accepted.")
    pages = pages or full_sizes(directories)
    if not pages:
        raise DocumentError("The file has thumbnails and masks, but no page.")
    return directories, pages


def is_reduced(directory: Directory) -> bool:
    """Whether a directory is the thumbnail, the mask or a lower resolution of another."""
    said = directory.number(SUBFILE_TYPE) & (REDUCED | MASK)
    return bool(said) or directory.number(OLD_SUBFILE_TYPE) == OLD_REDUCED


def full_sizes(directories: list[Directory]) -> list[Directory]:
    """The pages of a file whose directories are all reduced: what these name as their own, or a sole one itself."""
    named = [one for one in tree(directories) if not is_reduced(one) and all(one.size)]
    return named or (directories if len(directories) == 1 else [])


def without_levels(copy: "PageCopy", pages: list[Directory], limits: DecodeOptions) -> Iterator[Image.Image]:
    """The pictures of pages, without those that are lower resolutions of the one before, as ImageMagick writes."""
    before: UInt8Array | None = None  # the page before, small, where this one may be its lower resolution
    for page, following in zip_longest(pages, pages[1:]):
        check_pixels(page.width, page.height, limits.pixels)
        picture = decode(copy, page)
        is_level = before is not None and (min(page.size) < TINY or alike(before, small_grey(picture)))
        before = small_grey(picture) if following and is_half(following.size, page.size) else None
        if not is_level:
            yield picture


def is_half(size: tuple[int, int], whole: tuple[int, int]) -> bool:
    """Whether both sides are half as long, rounded up or down."""
    return all(side in (long // 2, (long + 1) // 2) and side < long for side, long in zip(size, whole, strict=True))


def small_grey(picture: Image.Image) -> UInt8Array:
    """A picture in grey, uint8 (`COMPARED_SIDE`, `COMPARED_SIDE`)."""
    size = (min(picture.width, 2 * COMPARED_SIDE), min(picture.height, 2 * COMPARED_SIDE))
    smaller = picture.convert("L").resize(size, Image.Resampling.BOX)
    return np.asarray(smaller.resize((COMPARED_SIDE, COMPARED_SIDE), Image.Resampling.BILINEAR))


def alike(first: UInt8Array, second: UInt8Array) -> bool:
    """Whether two pictures in grey show the same."""
    one, other = (values.astype(np.float32) - values.mean() for values in (first, second))
    spread = float(np.sqrt((one**2).mean() * (other**2).mean()))
    if spread < 1:  # of 255: they are of one colour
        return abs(float(first.mean()) - float(second.mean())) < LIKE_COLOUR
    return float((one * other).mean()) / spread >= ALIKE


def decode(copy: "PageCopy", page: Directory) -> Image.Image:
    """The picture of a page as it is displayed, in 8 bits a channel."""
    check_complete(page)
    picture = decoded_by_pillow(copy.show(page)) if is_plain(page) else None
    picture = picture or read_samples(copy.show(page), page)
    return turned(picture, page.number(ORIENTATION))


def check_complete(page: Directory) -> None:
    """ValueError where a file ends before a page's pixels do: in its copy the directory would be taken for them."""
    size = size_of(page.file)
    for places, lengths in SEGMENTS:
        starts = page.numbers(places)
        counts = page.numbers(lengths) or (0,) * len(starts)
        if any(start + most_read(page, count) > size for start, count in zip(starts, counts, strict=False)):
            raise ValueError("truncated")


def most_read(page: Directory, count: int) -> int:
    """Bytes that are read of a strip or tile of `count` (0: it is not said); plain ones may be too long."""
    if page.number(COMPRESSION, PLAIN) != PLAIN or page.number(PHOTOMETRIC) == YCBCR:
        return count
    tiled = page.number(TILE_WIDTH) > 0
    width = page.number(TILE_WIDTH) if tiled else page.width
    height = page.number(TILE_LENGTH) if tiled else min(page.number(ROWS, page.height), page.height)
    samples = 1 if page.number(PLANAR) == 2 else page.number(SAMPLES, 1)
    whole = (width * samples * page.number(BITS, 1) + 7) // 8 * height
    return min(count or whole, whole)


def decoded_by_pillow(file: IO[bytes]) -> Image.Image | None:
    """The picture of a file of one page; None where Pillow does not know how its samples are stored."""
    try:
        picture = TiffImageFile(file)
    except (SyntaxError, KeyError):
        return None
    picture.load()
    return picture


def is_plain(page: Directory) -> bool:
    """Whether Pillow and libtiff read a page right, if they read it at all."""
    colours, packed = page.number(PHOTOMETRIC), page.number(COMPRESSION)
    apart = page.number(PLANAR) == 2 and page.number(SAMPLES, 1) > 1 and packed not in JPEGS
    premultiplied_grey = colours in (0, 1) and PREMULTIPLIED in page.numbers(EXTRA_SAMPLES)
    plain = {*page.numbers(BITS)} <= PILLOW_BITS and {*page.numbers(SAMPLE_FORMAT)} <= {UNSIGNED, UNDEFINED}
    return plain and colours in PILLOW_COLOURS and packed != WEBP and not apart and not premultiplied_grey


class PageCopy:
    """A copy of a TIFF in memory that is made a file of one of its pages after the other."""

    def __init__(self, file: IO[bytes], copy: IO[bytes]) -> None:
        file.seek(0)
        copyfileobj(file, copy, COPIED_BYTES)
        self._copy = copy
        self._end = copy.tell() + copy.tell() % 2

    def show(self, page: Directory) -> IO[bytes]:
        """The file of a page; of the one before it is none any more."""
        order = page.layout.order
        self._copy.seek(0)
        self._copy.write(page.layout.prefix + struct.pack(order + "HI", CLASSIC, self._end))
        self._copy.truncate(self._end)
        self._copy.seek(self._end)
        self._copy.write(packed(pixel_fields(page), order, self._end))
        self._copy.flush()
        self._copy.seek(0)
        return self._copy


@contextmanager
def opened_copy(file: IO[bytes]) -> Iterator[PageCopy]:
    """A copy of a file, which is gone after the block."""
    with os.fdopen(os.memfd_create("pages"), "w+b") as copy:
        yield PageCopy(file, copy)


def pixel_fields(page: Directory) -> Iterator[tuple[int, int, bytes]]:
    """Tag, type and values of all that tells how the pixels of a page are stored, in the form of a classic TIFF."""
    tags = PIXEL_TAGS & page.entries.keys()
    if page.number(SAMPLES, 1) == 1:
        tags -= {PLANAR}  # it means nothing then, and Pillow misreads it
    if {*page.numbers(SAMPLE_FORMAT)} == {UNDEFINED}:
        tags -= {SAMPLE_FORMAT}
    for tag in sorted(tags):
        kind, data = page.entries[tag].kind, page.data(tag)
        if kind in WIDE:
            kind = WIDE[kind]
            data = struct.pack(f"{page.layout.order}{len(data) // 8}{INTEGERS[kind]}", *page.numbers(tag))
        if data:
            yield tag, kind, data


def packed(fields: Iterable[tuple[int, int, bytes]], order: str, place: int) -> bytes:
    """A classic TIFF's directory of these fields, for this place in a file."""
    known = list(fields)
    table, rest = struct.pack(order + "H", len(known)), bytearray()
    behind = place + len(table) + 12 * len(known) + 4
    for tag, kind, data in known:
        table += struct.pack(order + "HHI", tag, kind, len(data) // SIZES[kind])
        if len(data) <= 4:
            table += data.ljust(4, b"\0")
        else:
            table += struct.pack(order + "I", behind + len(rest))
            rest += data + bytes(len(data) % 2)
    return table + bytes(4) + rest
