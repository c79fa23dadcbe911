"""Raw photos as cameras lay them out, written by hand: a sensor's data, a thumbnail, and previews of any size."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image

from tests.variants import SIDE, picture, saved

BYTES, TEXT, SHORT, LONG, UNDEFINED = 1, 2, 3, 4, 7
WRITERS = {BYTES: "B", SHORT: "H", LONG: "I"}

Values = tuple[int, tuple[int, ...] | bytes]  # the type of a field and its values


@dataclass(frozen=True)
class Part:
    """A directory: its fields by tag, the data of its one strip, a JPEG that it names, and directories of its own."""

    fields: dict[int, Values] = field(default_factory=dict)
    strip: bytes = b""
    jpeg: bytes = b""
    children: tuple["Part", ...] = ()


class Writer:
    """A file that is built like a TIFF."""

    def __init__(self, order: str = "<", head: bytes = b"") -> None:
        self._order = order
        self.content = bytearray(8) + head

    def put(self, data: bytes) -> int:
        """Adds data; where they are."""
        self.content += bytes(len(self.content) % 2)
        self.content += data
        return len(self.content) - len(data)

    def put_part(self, part: Part, following: int = 0) -> int:
        """Adds a directory and what it names; where it is."""
        fields = dict(part.fields)
        for data, tags in ((part.strip, (273, 279)), (part.jpeg, (513, 514))):
            if data:
                fields |= {tags[0]: (LONG, (self.put(data),)), tags[1]: (LONG, (len(data),))}
        if part.children:
            fields[330] = (LONG, tuple(self.put_part(child) for child in part.children))
        table = struct.pack(self._order + "H", len(fields))
        for tag, (kind, values) in sorted(fields.items()):
            data = (
                values
                if isinstance(values, bytes)
                else struct.pack(f"{self._order}{len(values)}{WRITERS[kind]}", *values)
            )
            place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(self._order + "I", self.put(data))
            table += struct.pack(self._order + "HHI", tag, kind, len(values)) + place
        return self.put(table + struct.pack(self._order + "I", following))

    def file(self, parts: tuple[Part, ...], magic: int = 42) -> bytes:
        """The file, whose directories these are."""
        following = 0
        for part in reversed(parts):
            following = self.put_part(part, following)
        self.content[:8] = (b"II" if self._order == "<" else b"MM") + struct.pack(self._order + "HI", magic, following)
        return bytes(self.content)


def jpeg(side: int = SIDE, orientation: int = 1) -> bytes:
    """The scene as a JPEG of this size, stored so that turning it as `orientation` says makes it upright."""
    stored = picture().resize((side, side))
    return saved(stored.rotate(90) if orientation == 6 else stored, "JPEG", quality=92)


def sensor(compression: int = 1, colour: int = 32803) -> Part:
    """A mosaic of the scene's colours, 16 bits each."""
    mosaic = np.asarray(picture("L")).astype("<u2") * 64
    fields: dict[int, Values] = {254: (LONG, (0,)), 256: (LONG, (SIDE,)), 257: (LONG, (SIDE,)), 258: (SHORT, (16,))}
    fields |= {259: (SHORT, (compression,)), 262: (SHORT, (colour,)), 277: (SHORT, (1,))}
    fields |= {33421: (SHORT, (2, 2)), 33422: (BYTES, (0, 1, 1, 2))}
    return Part(fields, strip=mosaic.tobytes())


def thumbnail() -> Part:
    """A small picture in RGB, of another scene than the photo's: an empty one."""
    small = Image.new("RGB", (64, 48), "grey").tobytes()
    known: dict[int, Values] = {254: (LONG, (1,)), 256: (LONG, (64,)), 257: (LONG, (48,)), 258: (SHORT, (8, 8, 8))}
    known |= {259: (SHORT, (1,)), 262: (SHORT, (2,)), 277: (SHORT, (3,))}
    return Part(known, strip=small)


def preview_part(content: bytes) -> Part:
    """A preview in a strip."""
    return Part({254: (LONG, (1,)), 259: (SHORT, (7,)), 262: (SHORT, (6,))}, strip=content)


def with_fields(part: Part, fields: dict[int, Values], *children: Part) -> Part:
    return Part(part.fields | fields, part.strip, part.jpeg, part.children + children)


def maker(name: str) -> dict[int, Values]:
    return {271: (TEXT, name.encode() + b"\0")}


def dng(preview: bytes, colour: int = 32803) -> bytes:
    first = with_fields(thumbnail(), {50706: (BYTES, (1, 4, 0, 0))}, sensor(colour=colour), preview_part(preview))
    return Writer().file((first,))


def dng_without_preview() -> bytes:
    return Writer().file((with_fields(thumbnail(), {50706: (BYTES, (1, 4, 0, 0))}, sensor()),))


def nef(preview: bytes, orientation: int = 1) -> bytes:
    first = maker("NIKON CORPORATION") | {274: (SHORT, (orientation,))}
    parts = Part({254: (LONG, (1,)), 259: (SHORT, (6,))}, jpeg=preview), sensor(34713)
    return Writer(">").file((with_fields(thumbnail(), first, *parts),))


def cr2(preview: bytes) -> bytes:
    """Its sensor's data are a lossless JPEG of two samples, each half as wide."""
    frame = struct.pack(">BHHB", 14, SIDE, SIDE // 2, 2) + bytes(6)
    lossless = b"\xff\xd8\xff\xc3" + struct.pack(">H", len(frame) + 2) + frame + bytes(1000)
    first = Part(maker("Canon") | {259: (SHORT, (6,))}, strip=preview)
    second = Part(jpeg=saved(Image.new("RGB", (64, 48), "grey"), "JPEG"))
    fourth = Part({259: (SHORT, (6,)), 50752: (SHORT, (1, SIDE // 2, SIDE // 2))}, strip=lossless)
    return Writer(head=b"CR\2\0" + bytes(4)).file((first, second, fourth))


def arw(preview: bytes) -> bytes:
    return Writer().file((Part(maker("SONY") | {259: (SHORT, (6,))}, jpeg=preview, children=(sensor(32767),)),))


def pef(preview: bytes) -> bytes:
    return Writer(">").file((with_fields(sensor(65535), maker("PENTAX")), thumbnail(), Part(jpeg=preview)))


def srw(preview: bytes) -> bytes:
    return Writer().file((Part(maker("SAMSUNG"), jpeg=preview, children=(sensor(32770),)),))


def orf(preview: bytes) -> bytes:
    """Its preview is among the maker's own notes."""
    first = Part({256: (LONG, (SIDE,)), 257: (LONG, (SIDE,)), 37500: (UNDEFINED, preview)}, strip=bytes(1000))
    return Writer().file((first,), magic=0x4F52)


def rw2(preview: bytes) -> bytes:
    first = Part({2: (SHORT, (SIDE,)), 3: (SHORT, (SIDE,)), 0x2E: (UNDEFINED, preview)})
    return Writer().file((first,), magic=0x55)


def raf(preview: bytes) -> bytes:
    head = (b"FUJIFILMCCD-RAW 0201" + b"FF389501X-A1").ljust(84, b"\0")
    size = struct.pack(">I2H2H", 1, 0x100, 4, SIDE, SIDE)
    start = 160 + len(preview)
    places = struct.pack(">6I", 160, len(preview), start, len(size), start + len(size), 1000)
    return (head + places).ljust(160, b"\0") + preview + size + bytes(1000)


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def cr3(preview: bytes) -> bytes:
    first = Writer().file((Part({256: (SHORT, (SIDE,)), 257: (SHORT, (SIDE,))}),))
    inner = box(b"moov", box(b"uuid", bytes(16) + box(b"CMT1", first)))
    return box(b"ftyp", b"crx \0\0\0\1crx isom") + inner + box(b"mdat", bytes(100) + preview)


def jpeg_xl_dng(preview: bytes) -> bytes:
    """Its pixels, of all colours, are JPEG XL, which nothing of the file has to be decoded for."""
    pixels = Part(sensor(52546, 34892).fields, strip=b"\xff\x0a" + bytes(1000))
    return Writer(">").file((with_fields(thumbnail(), {50706: (BYTES, (1, 7, 1, 0))}, pixels, preview_part(preview)),))


def phone_dng(preview: bytes) -> bytes:
    """The sensor's data are in the first directory."""
    return Writer().file((with_fields(sensor(), {50706: (BYTES, (1, 4, 0, 0))}, preview_part(preview)),))


def lossy_dng() -> bytes:
    """Its pixels are a JPEG, which is no preview: nothing is developed in it."""
    pixels = Part(sensor(34892, 34892).fields, strip=jpeg())
    return Writer().file((with_fields(thumbnail(), {50706: (BYTES, (1, 4, 0, 0))}, pixels),))


def nef_of_notes(preview: bytes) -> bytes:
    """Its preview is among the maker's notes, in a directory of EXIF data."""
    writer = Writer(">")
    notes = writer.put_part(Part({37500: (UNDEFINED, b"Nikon\0\2\x10\0\0" + preview)}))
    return writer.file((Part(maker("NIKON") | {34665: (LONG, (notes,))}, children=(sensor(34713),)),))


LAYOUTS: dict[str, Callable[[bytes], bytes]] = {
    "DNG": dng,
    "DNG, developed (LinearRaw)": partial(dng, colour=34892),
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
