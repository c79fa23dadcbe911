"""Raw photos with the layouts of cameras, written by hand: a sensor's data, a thumbnail, and previews of any size."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image

from tests.variants import SIDE, picture, saved

BYTES, TEXT, SHORT, LONG, UNDEFINED = 1, 2, 3, 4, 7
STRUCT_CODES = {BYTES: "B", SHORT: "H", LONG: "I"}

Values = tuple[int, tuple[int, ...] | bytes]  # the type of a field, and its values


@dataclass(frozen=True)
class Part:
    """A TIFF directory: its fields by tag, the data of its only strip, an embedded JPEG, and its subdirectories."""

    fields: dict[int, Values] = field(default_factory=dict)
    strip: bytes = b""
    jpeg: bytes = b""
    children: tuple["Part", ...] = ()


class Writer:
    """Writer of a file with the structure of a TIFF."""

    def __init__(self, order: str = "<", head: bytes = b"") -> None:
        self._order = order
        self.content = bytearray(8) + head

    def put(self, data: bytes) -> int:
        """Append data and return their offset."""
        self.content += bytes(len(self.content) % 2)
        self.content += data
        return len(self.content) - len(data)

    def put_part(self, part: Part, following: int = 0) -> int:
        """Append a directory and its data, and return its offset; `following` is the offset of the next directory."""
        fields = dict(part.fields)
        for data, tags in ((part.strip, (273, 279)), (part.jpeg, (513, 514))):
            if data:
                fields |= {tags[0]: (LONG, (self.put(data),)), tags[1]: (LONG, (len(data),))}
        if part.children:
            fields[330] = (LONG, tuple(self.put_part(child) for child in part.children))
        table = struct.pack(self._order + "H", len(fields))
        for tag, (field_type, values) in sorted(fields.items()):
            data = (
                values
                if isinstance(values, bytes)
                else struct.pack(f"{self._order}{len(values)}{STRUCT_CODES[field_type]}", *values)
            )
            entry = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(self._order + "I", self.put(data))
            table += struct.pack(self._order + "HHI", tag, field_type, len(values)) + entry
        return self.put(table + struct.pack(self._order + "I", following))

    def file(self, parts: tuple[Part, ...], magic: int = 42) -> bytes:
        """Return the file with these directories."""
        following = 0
        for part in reversed(parts):
            following = self.put_part(part, following)
        self.content[:8] = (b"II" if self._order == "<" else b"MM") + struct.pack(self._order + "HI", magic, following)
        return bytes(self.content)


def jpeg(side: int = SIDE, orientation: int = 1) -> bytes:
    """Return the scene as a square JPEG, stored in such a way that the EXIF orientation makes it upright."""
    stored = picture().resize((side, side))
    return saved(stored.rotate(90) if orientation == 6 else stored, "JPEG", quality=92)


def sensor(compression: int = 1, photometric: int = 32803) -> Part:
    """Return a directory with the sensor's mosaic of the scene, of 16-bit samples."""
    mosaic = np.asarray(picture("L")).astype("<u2") * 64
    fields: dict[int, Values] = {254: (LONG, (0,)), 256: (LONG, (SIDE,)), 257: (LONG, (SIDE,)), 258: (SHORT, (16,))}
    fields |= {259: (SHORT, (compression,)), 262: (SHORT, (photometric,)), 277: (SHORT, (1,))}
    fields |= {33421: (SHORT, (2, 2)), 33422: (BYTES, (0, 1, 1, 2))}
    return Part(fields, strip=mosaic.tobytes())


def thumbnail() -> Part:
    """Return a directory with a small, empty picture in RGB, unlike the photo's scene."""
    small = Image.new("RGB", (64, 48), "grey").tobytes()
    fields: dict[int, Values] = {254: (LONG, (1,)), 256: (LONG, (64,)), 257: (LONG, (48,)), 258: (SHORT, (8, 8, 8))}
    fields |= {259: (SHORT, (1,)), 262: (SHORT, (2,)), 277: (SHORT, (3,))}
    return Part(fields, strip=small)


def preview_part(content: bytes) -> Part:
    """Return a directory with a preview in a strip."""
    return Part({254: (LONG, (1,)), 259: (SHORT, (7,)), 262: (SHORT, (6,))}, strip=content)


def with_fields(part: Part, fields: dict[int, Values], *children: Part) -> Part:
    """Return a directory with further fields and subdirectories."""
    return Part(part.fields | fields, part.strip, part.jpeg, part.children + children)


def maker(name: str) -> dict[int, Values]:
    """Return the field of the camera's maker."""
    return {271: (TEXT, name.encode() + b"\0")}


def dng(preview: bytes, photometric: int = 32803) -> bytes:
    """Return a DNG with a thumbnail, the sensor's data and a preview."""
    children = sensor(photometric=photometric), preview_part(preview)
    first = with_fields(thumbnail(), {50706: (BYTES, (1, 4, 0, 0))}, *children)
    return Writer().file((first,))


def dng_without_preview() -> bytes:
    """Return a DNG with a thumbnail and the sensor's data."""
    return Writer().file((with_fields(thumbnail(), {50706: (BYTES, (1, 4, 0, 0))}, sensor()),))


def nef(preview: bytes, orientation: int = 1) -> bytes:
    """Return a Nikon NEF."""
    first = maker("NIKON CORPORATION") | {274: (SHORT, (orientation,))}
    parts = Part({254: (LONG, (1,)), 259: (SHORT, (6,))}, jpeg=preview), sensor(34713)
    return Writer(">").file((with_fields(thumbnail(), first, *parts),))


def cr2(preview: bytes) -> bytes:
    """Return a Canon CR2, whose sensor's data are a lossless JPEG of two samples, each half as wide."""
    frame = struct.pack(">BHHB", 14, SIDE, SIDE // 2, 2) + bytes(6)
    lossless = b"\xff\xd8\xff\xc3" + struct.pack(">H", len(frame) + 2) + frame + bytes(1000)
    first = Part(maker("Canon") | {259: (SHORT, (6,))}, strip=preview)
    second = Part(jpeg=saved(Image.new("RGB", (64, 48), "grey"), "JPEG"))
    fourth = Part({259: (SHORT, (6,)), 50752: (SHORT, (1, SIDE // 2, SIDE // 2))}, strip=lossless)
    return Writer(head=b"CR\2\0" + bytes(4)).file((first, second, fourth))


def arw(preview: bytes) -> bytes:
    """Return a Sony ARW."""
    return Writer().file((Part(maker("SONY") | {259: (SHORT, (6,))}, jpeg=preview, children=(sensor(32767),)),))


def pef(preview: bytes) -> bytes:
    """Return a Pentax PEF."""
    return Writer(">").file((with_fields(sensor(65535), maker("PENTAX")), thumbnail(), Part(jpeg=preview)))


def srw(preview: bytes) -> bytes:
    """Return a Samsung SRW."""
    return Writer().file((Part(maker("SAMSUNG"), jpeg=preview, children=(sensor(32770),)),))


def orf(preview: bytes) -> bytes:
    """Return an Olympus ORF, whose preview is in the maker notes."""
    first = Part({256: (LONG, (SIDE,)), 257: (LONG, (SIDE,)), 37500: (UNDEFINED, preview)}, strip=bytes(1000))
    return Writer().file((first,), magic=0x4F52)


def rw2(preview: bytes) -> bytes:
    """Return a Panasonic RW2."""
    first = Part({2: (SHORT, (SIDE,)), 3: (SHORT, (SIDE,)), 0x2E: (UNDEFINED, preview)})
    return Writer().file((first,), magic=0x55)


def raf(preview: bytes) -> bytes:
    """Return a Fujifilm RAF."""
    head = (b"FUJIFILMCCD-RAW 0201" + b"FF389501X-A1").ljust(84, b"\0")
    size = struct.pack(">I2H2H", 1, 0x100, 4, SIDE, SIDE)
    start = 160 + len(preview)
    offsets = struct.pack(">6I", 160, len(preview), start, len(size), start + len(size), 1000)
    return (head + offsets).ljust(160, b"\0") + preview + size + bytes(1000)


def box(name: bytes, content: bytes) -> bytes:
    """Return an ISO BMFF box."""
    return struct.pack(">I4s", 8 + len(content), name) + content


def cr3(preview: bytes) -> bytes:
    """Return a Canon CR3."""
    first = Writer().file((Part({256: (SHORT, (SIDE,)), 257: (SHORT, (SIDE,))}),))
    inner = box(b"moov", box(b"uuid", bytes(16) + box(b"CMT1", first)))
    return box(b"ftyp", b"crx \0\0\0\1crx isom") + inner + box(b"mdat", bytes(100) + preview)


def jpeg_xl_dng(preview: bytes) -> bytes:
    """Return a DNG whose developed pixels are JPEG XL, which need not be decoded to find the preview."""
    pixels = Part(sensor(52546, 34892).fields, strip=b"\xff\x0a" + bytes(1000))
    return Writer(">").file((with_fields(thumbnail(), {50706: (BYTES, (1, 7, 1, 0))}, pixels, preview_part(preview)),))


def phone_dng(preview: bytes) -> bytes:
    """Return a DNG whose first directory has the sensor's data."""
    return Writer().file((with_fields(sensor(), {50706: (BYTES, (1, 4, 0, 0))}, preview_part(preview)),))


def lossy_dng() -> bytes:
    """Return a DNG whose pixels are an undeveloped JPEG, which is not a preview."""
    pixels = Part(sensor(34892, 34892).fields, strip=jpeg())
    return Writer().file((with_fields(thumbnail(), {50706: (BYTES, (1, 4, 0, 0))}, pixels),))


def nef_of_notes(preview: bytes) -> bytes:
    """Return a Nikon NEF whose preview is in the maker notes, in a directory of EXIF data."""
    writer = Writer(">")
    notes = writer.put_part(Part({37500: (UNDEFINED, b"Nikon\0\2\x10\0\0" + preview)}))
    return writer.file((Part(maker("NIKON") | {34665: (LONG, (notes,))}, children=(sensor(34713),)),))


LAYOUTS: dict[str, Callable[[bytes], bytes]] = {
    "DNG": dng,
    "DNG, developed (LinearRaw)": partial(dng, photometric=34892),
    "DNG, JPEG XL": jpeg_xl_dng,
    "DNG of a phone": phone_dng,
    "Nikon NEF": nef,
    "Nikon NEF, among the maker's notes": nef_of_notes,
    "Canon CR2": cr2,
    "Canon CR3": cr3,
    "Sony ARW": arw,
    "Pentax PEF": pef,
    "Samsung SRW": srw,
    "Olympus ORF": orf,
    "Panasonic RW2": rw2,
    "Fujifilm RAF": raf,
}
