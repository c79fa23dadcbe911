"""Raw photos -> the JPEG preview that is processed instead.

Sensor data are not developed here. Cameras store a JPEG with them, often of the photo's own size, which is what viewers
show. A small one would lose objects, so a photo without a large preview is refused. The offset of the JPEG differs
between manufacturers, but its data are always contiguous: it is located by its first bytes. References are to TIFF/EP,
DNG 1.7 and, for what manufacturers do not document, to ExifTool's tables (https://exiftool.org/TagNames).
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
from florence_tagger.media.directories import (
    ORIENTATION,
    Directory,
    directory_chain,
    file_size,
    include_sub_directories,
    parse_layout,
    read_directory,
)
from florence_tagger.media.formats import CR3, TIFF, Format
from florence_tagger.media.orientation import UPRIGHT

# Tags, and values that only sensor data have.
COMPRESSION, PHOTOMETRIC, MAKE, EXIF = 259, 262, 271, 34665
SENSOR_TAGS = {33421, 33422, 34310, 50706, 50740, 50752}  # color filter arrays, and tags of Leaf, DNG, Sony and Canon
SENSOR_COLORS = (32803, 34892)  # behind a color filter array; with all colors
SENSOR_COMPRESSIONS = (32767, 32769, 32770, 34713, 34892, 65000, 65535)  # of Sony, Samsung, Nikon, Kodak, Pentax
DNG_VERSION, CANON_SLICES = 50706, 50752
SEGMENTS = ((273, 279), (324, 325))  # offsets and sizes of strips and tiles
EXIF_SIZE = (40962, 40963)  # PixelXDimension, PixelYDimension
PANASONIC_SIZE = (2, 3)  # SensorWidth, SensorHeight

# First word of a manufacturer's name -> kind.
MAKER_KINDS = {
    "NIKON": "Nikon NEF",
    "CANON": "Canon CR2",
    "SONY": "Sony ARW",
    "PENTAX": "Pentax PEF",
    "SAMSUNG": "Samsung SRW",
}

FUJIFILM_HEADER = 92  # of a RAF: offset of its directory's offset
FUJIFILM_SIZE = 0x100  # tag of height and width
PHASE_ONE = 8  # offset of its own header, after that of a TIFF
CANON_BOX, CANON_HEAD = b"CMT1", 1_000_000  # of a CR3: box of its first directory; bytes within which it is

START = re.compile(rb"\xff\xd8\xff")
DISPLAYABLE = (0xC0, 0xC1, 0xC2)  # markers of frames that all programs display; others hold sensor data
LOSSLESS = 0xC3
MAX_STARTS, MAX_SEGMENTS = 10_000, 100  # of JPEGs in a photo, and of segments before a JPEG's frame
MAX_DIRECTORIES = 100  # in the chain; raw photos have three or four
MAX_REDUCTION = 2  # of a preview's longer side, compared to the photo's

Size = tuple[int, int]


@dataclass(frozen=True)
class Photo:
    """Metadata of a raw photo.

    Attributes:
        kind: name for people.
        sizes: widths and heights of its sensor data, pixels.
        orientation: as in EXIF.
        sensor_ranges: offset and bytes of each segment of sensor data in the file.
    """

    kind: str
    sizes: list[Size]
    orientation: int = UPRIGHT
    sensor_ranges: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> Size:
        """Largest size; 0 if none is stated."""
        return max(self.sizes, key=lambda size: size[0] * size[1], default=(0, 0))


@dataclass(frozen=True)
class Preview:
    """A JPEG in a raw photo: its size in pixels and its offset."""

    size: Size
    offset: int


def is_raw(file: IO[bytes]) -> bool:
    """Return True if a TIFF has sensor data."""
    file.seek(PHASE_ONE)
    if file.read(4) in (b"IIII", b"MMMM"):
        return True
    return any(is_sensor(item) or SENSOR_TAGS & item.entries.keys() for item in read_directories(file))


def open_preview(file: IO[bytes], file_format: Format) -> tuple[BytesIO, int]:
    """Return the largest JPEG preview of a raw photo, and the orientation that applies if the JPEG states none.

    Raises:
        DocumentError: no preview is at least half as large as the photo.
    """
    photo = read_photo(file, file_format)
    file.seek(0)
    content = file.read()
    candidates = previews(content, photo.sensor_ranges)
    preview = max(candidates, key=lambda candidate: candidate.size[0] * candidate.size[1], default=None)
    if preview is None or not all(photo.size) or MAX_REDUCTION * max(preview.size) < max(photo.size):
        raise DocumentError(refusal(photo, preview))
    already_rotated = is_portrait(preview.size) != is_portrait(photo.size)
    return BytesIO(content[preview.offset :]), UPRIGHT if already_rotated else photo.orientation


def is_portrait(size: Size) -> bool:
    """Return True if a picture is higher than wide."""
    return size[1] > size[0]


def refusal(photo: Photo, preview: Preview | None) -> str:
    """Return the reason why a raw photo is refused."""
    available = "the largest in it has {} x {} pixels".format(*preview.size) if preview else "there is none in it"
    photo_size = ", the photo {} x {}".format(*photo.size) if all(photo.size) else ", and the photo's size is not known"
    return (
        f"The file is a raw photo ({photo.kind}). It would be counted by a JPEG preview of at least half its size, "
        f"but {available}{photo_size}. Save the photo as JPEG, PNG or TIFF."
    )


def read_photo(file: IO[bytes], file_format: Format) -> Photo:
    """Return the metadata of a raw photo."""
    if file_format.decoder == "RAF":
        return Photo(file_format.name, fujifilm_sizes(file))
    if file_format == CR3:
        return read_canon_photo(file)
    directories = read_directories(file)
    first = directories[:1]
    sensors = [directory for directory in directories if is_sensor(directory)]
    canon = [directory for directory in directories if CANON_SLICES in directory.entries]
    sizes = [sensor.size for sensor in sensors] + [tag_pair(directory, PANASONIC_SIZE) for directory in first]
    sizes += [lossless_size(file, directory.integer(SEGMENTS[0][0])) for directory in canon]
    if not any(map(all, sizes)):
        sizes = [exif_size(directory) for directory in first]
        sizes += [directory.size for directory in first if file_format != TIFF]
    ranges = [pair for item in sensors for tags in SEGMENTS for pair in zip(*map(item.integers, tags), strict=False)]
    orientation = first[0].integer(ORIENTATION, UPRIGHT) if first else UPRIGHT
    return Photo(kind_name(file_format, directories), sizes, orientation, tuple(ranges))


def read_directories(file: IO[bytes]) -> list[Directory]:
    """Return the directories of a file that is built like a TIFF, as far as they can be read."""
    file.seek(0)
    layout = parse_layout(file.read(16))
    directories: list[Directory] = []
    with suppress(EOFError):
        directories.extend(islice(directory_chain(file, layout), MAX_DIRECTORIES) if layout else ())
    return list(include_sub_directories(directories))


def is_sensor(directory: Directory) -> bool:
    """Return True if a directory describes sensor data."""
    return directory.integer(PHOTOMETRIC) in SENSOR_COLORS or directory.integer(COMPRESSION) in SENSOR_COMPRESSIONS


def kind_name(file_format: Format, directories: list[Directory]) -> str:
    """Return the name of a raw photo's kind: its format, or the manufacturer of the camera."""
    if file_format != TIFF:
        return file_format.name
    if any(DNG_VERSION in directory.entries for directory in directories):
        return "DNG"
    makers = (item.data(MAKE)[:40].strip(b"\0 ").decode("ascii", "replace") for item in directories)
    maker = next(filter(str.isprintable, filter(None, makers)), "of a camera")
    return MAKER_KINDS.get(maker.split()[0].upper(), maker)


def tag_pair(directory: Directory, tags: tuple[int, int]) -> Size:
    """Return the values of two tags."""
    return directory.integer(tags[0]), directory.integer(tags[1])


def exif_size(directory: Directory) -> Size:
    """Return the size that the EXIF data of a directory state."""
    try:
        return tag_pair(read_directory(directory.file, directory.layout, directory.integer(EXIF)), EXIF_SIZE)
    except EOFError:
        return 0, 0


def lossless_size(file: IO[bytes], offset: int) -> Size:
    """Return the size of sensor data in a lossless JPEG: 2 or 4 samples are adjacent pixels, 3 are colors (sRAW)."""
    file.seek(min(offset, file_size(file)))
    marker, width, height, samples = jpeg_frame(file.read(100_000), 0)
    return (width * (samples if samples % 2 == 0 else 1), height) if marker == LOSSLESS else (0, 0)


def fujifilm_sizes(file: IO[bytes]) -> list[Size]:
    """Return the sizes that the directory of a RAF states: big-endian values, each after a tag and a length."""
    file.seek(FUJIFILM_HEADER)
    try:
        file.seek(min(struct.unpack(">I", file.read(4))[0], file_size(file)))
        for _ in range(min(struct.unpack(">I", file.read(4))[0], 256)):
            tag, size = struct.unpack(">2H", file.read(4))
            data = file.read(size)
            if tag == FUJIFILM_SIZE:
                height, width = struct.unpack(">2H", data)
                return [(width, height)]
    except struct.error:
        pass
    return []


def read_canon_photo(file: IO[bytes]) -> Photo:
    """Return the metadata of a CR3, which are in a directory in a box."""
    file.seek(0)
    inner = BytesIO(file.read(CANON_HEAD).partition(CANON_BOX)[2])
    first = next(iter(read_directories(inner)), None)
    if first is None:
        return Photo(CR3.name, [])
    return Photo(CR3.name, [first.size], first.integer(ORIENTATION, UPRIGHT))


def previews(content: bytes, sensor_ranges: tuple[tuple[int, int], ...]) -> Iterator[Preview]:
    """Yield the JPEGs in a raw photo that are not sensor data."""
    for start in islice(START.finditer(content), MAX_STARTS):
        offset = start.start()
        marker, width, height, _ = jpeg_frame(content, offset)
        is_sensor_data = any(0 <= offset - first < size for first, size in sensor_ranges)
        if marker in DISPLAYABLE and width and height and not is_sensor_data:
            yield Preview((width, height), offset)


def jpeg_frame(content: bytes, offset: int) -> tuple[int, int, int, int]:
    """Return the marker, width, height and number of samples of a JPEG's frame; zeros if none is found."""
    offset += 2
    for _ in range(MAX_SEGMENTS):
        if content[offset : offset + 1] != b"\xff" or len(content) < offset + 10:
            break
        marker, size = struct.unpack_from(">BH", content, offset + 1)
        if marker in (*DISPLAYABLE, LOSSLESS):
            bits, height, width, samples = struct.unpack_from(">BHHB", content, offset + 4)
            return (marker, width, height, samples) if bits == 8 or marker == LOSSLESS else (0, 0, 0, 0)
        offset += 2 + size
    return 0, 0, 0, 0
