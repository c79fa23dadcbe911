"""Raw photos -> the JPEG preview that they are counted by.

No sensor's data are developed here. Cameras put a JPEG beside them, often of the photo's own size, which is what
viewers show. A small one would lose objects, so a photo without a large one is refused. Where the JPEG is differs from
maker to maker, but it is always in one piece: it is looked for by its first bytes. References are to TIFF/EP, DNG 1.7
and, for what makers do not tell, to ExifTool's tables (https://exiftool.org/TagNames).
"""

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import IO

from florence_tagger.errors import DocumentError
from florence_tagger.media.directories import ORIENTATION, Directory, chain, layout_of, read_directory, size_of, tree
from florence_tagger.media.formats import CR3, TIFF, Format
from florence_tagger.media.orientation import UPRIGHT

# Tags, and the values of them that only photos of a sensor have.
COMPRESSION, PHOTOMETRIC, MAKE, EXIF = 259, 262, 271, 34665
SENSOR_TAGS = {33421, 33422, 34310, 50706, 50740, 50752}  # filters of colours, Leaf's, DNG's, Sony's and Canon's own
SENSOR_COLOURS = (32803, 34892)  # samples behind a filter of colours; samples that have all colours
SENSOR_COMPRESSIONS = (32767, 32769, 32770, 34713, 34892, 65000, 65535)  # as of Sony, Samsung, Nikon, Kodak, Pentax
DNG_VERSION, CANON_SLICES = 50706, 50752
SEGMENTS = ((273, 279), (324, 325))  # where strips and tiles are, and how long
EXIF_SIZE = (40962, 40963)  # PixelXDimension, PixelYDimension
PANASONIC_SIZE = (2, 3)  # SensorWidth, SensorHeight

# By the first word of a maker.
KINDS = {
    "NIKON": "Nikon NEF",
    "CANON": "Canon CR2",
    "SONY": "Sony ARW",
    "PENTAX": "Pentax PEF",
    "SAMSUNG": "Samsung SRW",
}

FUJIFILM_HEADER = 92  # of a RAF: where it says where its directory is
FUJIFILM_SIZE = 0x100  # the tag of height and width
PHASE_ONE = 8  # where its own header begins, behind that of a TIFF
CANON_BOX, CANON_HEAD = b"CMT1", 1_000_000  # of a CR3: its first directory; bytes within which it is

START = re.compile(rb"\xff\xd8\xff")
SHOWN = (0xC0, 0xC1, 0xC2)  # frames of JPEGs that all programs show; others, as the lossless one, are a sensor's data
LOSSLESS = 0xC3
MAX_STARTS, MAX_SEGMENTS = 10_000, 100  # of JPEGs, and of one before its frame, that are looked at
MAX_DIRECTORIES = 100  # in a row; raw photos have three or four
PART = 2  # of the photo's longer side, that a preview must have

Size = tuple[int, int]


@dataclass(frozen=True)
class Photo:
    """What a raw photo says of itself.

    Attributes:
        kind: for people.
        sizes: widths and heights of its sensor's data, pixels.
        orientation: as EXIF has it.
        sensor: where in the file the sensor's data are, pairs of a place and a number of bytes.
    """

    kind: str
    sizes: list[Size]
    orientation: int = UPRIGHT
    sensor: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> Size:
        """The largest size; 0 where it says none."""
        return max(self.sizes, key=lambda size: size[0] * size[1], default=(0, 0))


@dataclass(frozen=True)
class Preview:
    """A JPEG in a raw photo: its size in pixels and where it begins."""

    size: Size
    place: int


def is_raw(file: IO[bytes]) -> bool:
    """Whether a TIFF has a sensor's data."""
    file.seek(PHASE_ONE)
    own = file.read(4) in (b"IIII", b"MMMM")
    return own or any(is_sensor(one) or SENSOR_TAGS & one.entries.keys() for one in directories_of(file))


def open_preview(file: IO[bytes], found: Format) -> tuple[BytesIO, int]:
    """The JPEG that a raw photo of a format is counted by, and its orientation where it does not give one itself.

    Raises:
        DocumentError: none is at least half as large as the photo.
    """
    photo = photo_of(file, found)
    file.seek(0)
    content = file.read()
    preview = max(previews(content, photo.sensor), key=lambda one: one.size[0] * one.size[1], default=None)
    if preview is None or not all(photo.size) or PART * max(preview.size) < max(photo.size):
        raise DocumentError(refusal(photo, preview))
    turned_already = is_upright(preview.size) != is_upright(photo.size)
    return BytesIO(content[preview.place :]), UPRIGHT if turned_already else photo.orientation


def is_upright(size: Size) -> bool:
    """Whether a picture is higher than wide."""
    return size[1] > size[0]


def refusal(photo: Photo, preview: Preview | None) -> str:
    """Why a raw photo is not counted."""
    has = "the largest in it has {} x {} pixels".format(*preview.size) if preview else "there is none in it"
    of = ", the photo {} x {}".format(*photo.size) if all(photo.size) else ", and the photo's size is not known"
    return (
        f"The file is a raw photo ({photo.kind}). It would be counted by a JPEG preview of at least half its size, "
        f"but {has}{of}. Save the photo as JPEG, PNG or TIFF."
    )


def photo_of(file: IO[bytes], found: Format) -> Photo:
    """What a raw photo of a format says of itself."""
    if found.decoder == "RAF":
        return Photo(found.name, fujifilm_sizes(file))
    if found == CR3:
        return canon_photo(file)
    directories = directories_of(file)
    first = directories[:1]
    sensors = [one for one in directories if is_sensor(one)]
    sizes = [one.size for one in sensors] + [pair_of(one, PANASONIC_SIZE) for one in first]
    sizes += [lossless_size(file, one.number(SEGMENTS[0][0])) for one in directories if CANON_SLICES in one.entries]
    if not any(map(all, sizes)):
        sizes = [exif_size(one) for one in first] + [one.size for one in first if found != TIFF]
    data = [pair for one in sensors for tags in SEGMENTS for pair in zip(*map(one.numbers, tags), strict=False)]
    turn = first[0].number(ORIENTATION, UPRIGHT) if first else UPRIGHT
    return Photo(named(found, directories), sizes, turn, tuple(data))


def directories_of(file: IO[bytes]) -> list[Directory]:
    """The directories of a file that is built like a TIFF, as far as they can be read."""
    file.seek(0)
    layout = layout_of(file.read(16))
    found: list[Directory] = []
    with suppress(EOFError):
        found.extend(islice(chain(file, layout), MAX_DIRECTORIES) if layout else ())
    return list(tree(found))


def is_sensor(directory: Directory) -> bool:
    """Whether a directory describes a sensor's data."""
    return directory.number(PHOTOMETRIC) in SENSOR_COLOURS or directory.number(COMPRESSION) in SENSOR_COMPRESSIONS


def named(found: Format, directories: list[Directory]) -> str:
    """The kind of a raw photo in words: its format, or who made the camera."""
    if found != TIFF:
        return found.name
    if any(DNG_VERSION in one.entries for one in directories):
        return "DNG"
    makers = (one.data(MAKE)[:40].strip(b"\0 ").decode("ascii", "replace") for one in directories)
    maker = next(filter(str.isprintable, filter(None, makers)), "of a camera")
    return KINDS.get(maker.split()[0].upper(), maker)


def pair_of(directory: Directory, tags: tuple[int, int]) -> Size:
    """The values of two tags."""
    return directory.number(tags[0]), directory.number(tags[1])


def exif_size(directory: Directory) -> Size:
    """The size that the EXIF data of a directory give."""
    try:
        return pair_of(read_directory(directory.file, directory.layout, directory.number(EXIF)), EXIF_SIZE)
    except EOFError:
        return 0, 0


def lossless_size(file: IO[bytes], place: int) -> Size:
    """The size of a sensor's data in a lossless JPEG: 2 or 4 samples lie side by side, 3 are colours (sRAW)."""
    file.seek(min(place, size_of(file)))
    marker, width, height, samples = frame_in(file.read(100_000), 0)
    return (width * (samples if samples % 2 == 0 else 1), height) if marker == LOSSLESS else (0, 0)


def fujifilm_sizes(file: IO[bytes]) -> list[Size]:
    """The sizes that the directory of a RAF gives: numbers of big-endian, each with a tag and a length before it."""
    file.seek(FUJIFILM_HEADER)
    try:
        file.seek(min(struct.unpack(">I", file.read(4))[0], size_of(file)))
        for _ in range(min(struct.unpack(">I", file.read(4))[0], 256)):
            tag, size = struct.unpack(">2H", file.read(4))
            data = file.read(size)
            if tag == FUJIFILM_SIZE:
                height, width = struct.unpack(">2H", data)
                return [(width, height)]
    except struct.error:
        pass
    return []


def canon_photo(file: IO[bytes]) -> Photo:
    """What a CR3 says of itself, in a directory in a box."""
    file.seek(0)
    inner = BytesIO(file.read(CANON_HEAD).partition(CANON_BOX)[2])
    sizes = [(one.size, one.number(ORIENTATION, UPRIGHT)) for one in directories_of(inner)[:1]]
    return Photo(CR3.name, [size for size, _ in sizes], next((turn for _, turn in sizes), UPRIGHT))


def previews(content: bytes, sensor: tuple[tuple[int, int], ...]) -> Iterator[Preview]:
    """The JPEGs in a raw photo that are no sensor's data."""
    for start in islice(START.finditer(content), MAX_STARTS):
        place = start.start()
        marker, width, height, _ = frame_in(content, place)
        if marker in SHOWN and width and height and not any(0 <= place - first < size for first, size in sensor):
            yield Preview((width, height), place)


def frame_in(content: bytes, place: int) -> tuple[int, int, int, int]:
    """Marker, width, height and number of samples of the frame of a JPEG; zeros where none is found."""
    place += 2
    for _ in range(MAX_SEGMENTS):
        if content[place : place + 1] != b"\xff" or len(content) < place + 10:
            break
        marker, size = struct.unpack_from(">BH", content, place + 1)
        if marker in (*SHOWN, LOSSLESS):
            bits, height, width, samples = struct.unpack_from(">BHHB", content, place + 4)
            return (marker, width, height, samples) if bits == 8 or marker == LOSSLESS else (0, 0, 0, 0)
        place += 2 + size
    return 0, 0, 0, 0
