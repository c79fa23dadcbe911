"""A TIFF file -> its pages, each as a picture.

Directories that are a page's thumbnail, mask or lower resolution are left out. Each other one is decoded as a file of
its own, which has only the fields that pixels need: by Pillow if samples have 8 bits or fewer, else by `samples`.
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
    INTEGER_FORMATS,
    ORIENTATION,
    SIZES,
    Directory,
    directory_chain,
    file_size,
    include_sub_directories,
    parse_layout,
    read_at,
)
from florence_tagger.media.limits import DecodeOptions, check_pixels
from florence_tagger.media.orientation import apply_orientation
from florence_tagger.media.samples import JPEGS, PREMULTIPLIED, read_samples
from florence_tagger.schemas import UInt8Array

# Tags NewSubfileType and SubfileType (TIFF 6.0, pages 36 and 40), and their values for directories that are no pages.
SUBFILE_TYPE, OLD_SUBFILE_TYPE = 254, 255
REDUCED, MASK, OLD_REDUCED = 1, 4, 2
COMPRESSION, PHOTOMETRIC, BITS, PLANAR, SAMPLE_FORMAT, EXTRA_SAMPLES, SAMPLES = 259, 262, 258, 284, 339, 338, 277

ROWS, TILE_WIDTH, TILE_LENGTH = 278, 322, 323
SEGMENTS = ((273, 279), (324, 325), (513, 514))  # offsets and sizes of strips, tiles and old JPEGs
UNCOMPRESSED, YCBCR = 1, 6  # values of Compression and of PhotometricInterpretation

# Tags that describe how pixels are stored.
PIXEL_TAGS = {
    *(256, 257, BITS, COMPRESSION, PHOTOMETRIC, 266, 273, SAMPLES, 278, 279, PLANAR, 292, 293, 317, 320),
    *(322, 323, 324, 325, 332, EXTRA_SAMPLES, SAMPLE_FORMAT, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521),
    *(529, 530, 531, 532),
}
CLASSIC_TYPES = {16: 4, 17: 9, 18: 4}  # field types of BigTIFF -> those of classic TIFF

# Bits of a sample and photometric interpretations that Pillow and libtiff decode correctly.
PILLOW_BITS, PILLOW_PHOTOMETRICS = {1, 2, 4, 8}, (0, 1, 2, 3, 5, 6)
WEBP, UNSIGNED, UNDEFINED = 50001, 1, 4

# Minimum correlation of gray values at which a page with half the sides of another is its lower resolution. At this
# size, levels made by any filter have at least 0.97, two pages of the same book at most 0.8 (tests/test_tiff.py).
COMPARED_SIDE = 256
MIN_CORRELATION = 0.9
MAX_COLOR_DIFFERENCE = 10  # of 255, for pages of one color
MAX_DIRECTORIES_PER_PAGE = 20  # directories for each accepted page: thumbnails, masks and lower resolutions
COPY_CHUNK_BYTES = 1_000_000
TINY = 64  # pixels a side; smaller pages show no objects that could be counted twice


def tiff_pages(file: IO[bytes], options: DecodeOptions) -> Iterator[tuple[int | None, Image.Image]]:
    """Yield the pages of a TIFF as they are displayed, with their numbers from 1; None if there can be only one.

    Raises:
        DocumentError: there is no page, there are too many, or one has too many pixels.
    """
    directories, pages = directories_and_pages(file, options.max_pages)
    with open_copy(file) as copy:
        for number, picture in enumerate(pictures_without_levels(copy, pages, options), 1):
            yield number if len(directories) > 1 else None, picture


def directories_and_pages(file: IO[bytes], max_pages: int) -> tuple[list[Directory], list[Directory]]:
    """Return the chained directories of a file, and those that are pages.

    Raises:
        DocumentError: there is no page, or there are too many.
    """
    layout = parse_layout(read_at(file, 0, 16))
    directories: list[Directory] = []
    pages: list[Directory] = []
    for directory in directory_chain(file, layout) if layout else ():
        directories.append(directory)
        if not is_reduced(directory):
            pages.append(directory)
        if len(pages) > max_pages or len(directories) > MAX_DIRECTORIES_PER_PAGE * max_pages:
            raise DocumentError(f"The file has more than the {max_pages} pages accepted.")
    pages = pages or full_size_pages(directories)
    if not pages:
        raise DocumentError("The file has thumbnails and masks, but no page.")
    return directories, pages


def is_reduced(directory: Directory) -> bool:
    """Return True if a directory is the thumbnail, the mask or a lower resolution of another one."""
    flags = directory.integer(SUBFILE_TYPE) & (REDUCED | MASK)
    return bool(flags) or directory.integer(OLD_SUBFILE_TYPE) == OLD_REDUCED


def full_size_pages(directories: list[Directory]) -> list[Directory]:
    """Return the pages of a file whose directories are all reduced: full-size subdirectories, or the only directory."""
    everything = include_sub_directories(directories)
    pages = [directory for directory in everything if not is_reduced(directory) and all(directory.size)]
    return pages or (directories if len(directories) == 1 else [])


def pictures_without_levels(copy: "PageCopy", pages: list[Directory], options: DecodeOptions) -> Iterator[Image.Image]:
    """Yield the pictures of pages, except lower resolutions of the page before, as ImageMagick writes them."""
    previous: UInt8Array | None = None  # thumbnail of the previous page, if this one may be its lower resolution
    for page, following in zip_longest(pages, pages[1:]):
        check_pixels(page.width, page.height, options.max_pixels)
        picture = decode_page(copy, page)
        is_level = previous is not None and (min(page.size) < TINY or show_the_same(previous, gray_thumbnail(picture)))
        previous = gray_thumbnail(picture) if following and is_half(following.size, page.size) else None
        if not is_level:
            yield picture


def is_half(size: tuple[int, int], full_size: tuple[int, int]) -> bool:
    """Return True if both sides are half as long, rounded up or down."""
    sides = zip(size, full_size, strict=True)
    return all(side in (full // 2, (full + 1) // 2) and side < full for side, full in sides)


def gray_thumbnail(picture: Image.Image) -> UInt8Array:
    """Return a picture in gray, uint8 (`COMPARED_SIDE`, `COMPARED_SIDE`)."""
    size = (min(picture.width, 2 * COMPARED_SIDE), min(picture.height, 2 * COMPARED_SIDE))
    smaller = picture.convert("L").resize(size, Image.Resampling.BOX)
    return np.asarray(smaller.resize((COMPARED_SIDE, COMPARED_SIDE), Image.Resampling.BILINEAR))


def show_the_same(first: UInt8Array, second: UInt8Array) -> bool:
    """Return True if two gray pictures show the same."""
    centered_first, centered_second = (values.astype(np.float32) - values.mean() for values in (first, second))
    deviation = float(np.sqrt((centered_first**2).mean() * (centered_second**2).mean()))
    if deviation < 1:  # of 255: each is of one color
        return abs(float(first.mean()) - float(second.mean())) < MAX_COLOR_DIFFERENCE
    return float((centered_first * centered_second).mean()) / deviation >= MIN_CORRELATION


def decode_page(copy: "PageCopy", page: Directory) -> Image.Image:
    """Decode a page to a picture as it is displayed, with 8 bits a channel."""
    check_complete(page)
    picture = decode_with_pillow(copy.select_page(page)) if pillow_supports(page) else None
    picture = picture or read_samples(copy.select_page(page), page)
    return apply_orientation(picture, page.integer(ORIENTATION))


def check_complete(page: Directory) -> None:
    """Raise ValueError if a file ends before a page's pixels: in its copy the directory would be read as pixels."""
    size = file_size(page.file)
    for offset_tag, byte_count_tag in SEGMENTS:
        offsets = page.integers(offset_tag)
        byte_counts = page.integers(byte_count_tag) or (0,) * len(offsets)
        segments = zip(offsets, byte_counts, strict=False)
        if any(offset + readable_bytes(page, byte_count) > size for offset, byte_count in segments):
            raise ValueError("truncated")


def readable_bytes(page: Directory, byte_count: int) -> int:
    """Return the bytes that are read of a strip or tile.

    Args:
        page: with the strip or tile.
        byte_count: as stated; 0 if it is not. That of uncompressed ones may be too large.
    """
    if page.integer(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED or page.integer(PHOTOMETRIC) == YCBCR:
        return byte_count
    tiled = page.integer(TILE_WIDTH) > 0
    width = page.integer(TILE_WIDTH) if tiled else page.width
    height = page.integer(TILE_LENGTH) if tiled else min(page.integer(ROWS, page.height), page.height)
    samples = 1 if page.integer(PLANAR) == 2 else page.integer(SAMPLES, 1)
    full_size = (width * samples * page.integer(BITS, 1) + 7) // 8 * height
    return min(byte_count or full_size, full_size)


def decode_with_pillow(file: IO[bytes]) -> Image.Image | None:
    """Decode the picture of a file with one page; None if Pillow does not support its sample format."""
    try:
        picture = TiffImageFile(file)
    except (SyntaxError, KeyError):
        return None
    picture.load()
    return picture


def pillow_supports(page: Directory) -> bool:
    """Return True if Pillow and libtiff decode a page correctly, provided that they decode it at all."""
    photometric, compression = page.integer(PHOTOMETRIC), page.integer(COMPRESSION)
    is_planar = page.integer(PLANAR) == 2 and page.integer(SAMPLES, 1) > 1 and compression not in JPEGS
    premultiplied_gray = photometric in (0, 1) and PREMULTIPLIED in page.integers(EXTRA_SAMPLES)
    unsigned = {*page.integers(BITS)} <= PILLOW_BITS and {*page.integers(SAMPLE_FORMAT)} <= {UNSIGNED, UNDEFINED}
    supported = unsigned and photometric in PILLOW_PHOTOMETRICS and compression != WEBP
    return supported and not is_planar and not premultiplied_gray


class PageCopy:
    """In-memory copy of a TIFF that is rewritten as a file of one page, for one page after another."""

    def __init__(self, file: IO[bytes], copy: IO[bytes]) -> None:
        file.seek(0)
        copyfileobj(file, copy, COPY_CHUNK_BYTES)
        self._copy = copy
        self._end = copy.tell() + copy.tell() % 2

    def select_page(self, page: Directory) -> IO[bytes]:
        """Return the file of a page; the file of the previous page becomes invalid."""
        byte_order = page.layout.byte_order
        self._copy.seek(0)
        self._copy.write(page.layout.byte_order_mark + struct.pack(byte_order + "HI", CLASSIC, self._end))
        self._copy.truncate(self._end)
        self._copy.seek(self._end)
        self._copy.write(pack_directory(pixel_fields(page), byte_order, self._end))
        self._copy.flush()
        self._copy.seek(0)
        return self._copy


@contextmanager
def open_copy(file: IO[bytes]) -> Iterator[PageCopy]:
    """Open a copy of a file in memory, released after the block."""
    with os.fdopen(os.memfd_create("pages"), "w+b") as copy:
        yield PageCopy(file, copy)


def pixel_fields(page: Directory) -> Iterator[tuple[int, int, bytes]]:
    """Yield the tag, type and values of all fields that describe a page's pixels, in the format of a classic TIFF."""
    tags = PIXEL_TAGS & page.entries.keys()
    if page.integer(SAMPLES, 1) == 1:
        tags -= {PLANAR}  # meaningless for one sample, and Pillow misreads it
    if {*page.integers(SAMPLE_FORMAT)} == {UNDEFINED}:
        tags -= {SAMPLE_FORMAT}
    for tag in sorted(tags):
        field_type, data = page.entries[tag].field_type, page.data(tag)
        if field_type in CLASSIC_TYPES:
            field_type = CLASSIC_TYPES[field_type]
            values = page.integers(tag)
            data = struct.pack(f"{page.layout.byte_order}{len(data) // 8}{INTEGER_FORMATS[field_type]}", *values)
        if data:
            yield tag, field_type, data


def pack_directory(fields: Iterable[tuple[int, int, bytes]], byte_order: str, offset: int) -> bytes:
    """Return the directory of a classic TIFF with these fields, for an offset in a file."""
    entries = list(fields)
    table, values = struct.pack(byte_order + "H", len(entries)), bytearray()
    values_offset = offset + len(table) + 12 * len(entries) + 4
    for tag, field_type, data in entries:
        table += struct.pack(byte_order + "HHI", tag, field_type, len(data) // SIZES[field_type])
        if len(data) <= 4:
            table += data.ljust(4, b"\0")
        else:
            table += struct.pack(byte_order + "I", values_offset + len(values))
            values += data + bytes(len(data) % 2)
    return table + bytes(4) + values
