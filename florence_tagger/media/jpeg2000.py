"""A JPEG 2000 file -> Pillow's picture of it, with the palette that the file has.

Pillow keeps one of colours that a palette names twice, which shifts all others, and leaves out palettes of grey or of
more than 8 bits. Boxes by ISO/IEC 15444-1, annex I.
"""

import struct
from typing import IO

import numpy as np
from PIL import Image, ImagePalette
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from florence_tagger.media.directories import size_of
from florence_tagger.media.isobmff import boxes_in
from florence_tagger.schemas import UInt8Array

HEADER_BYTES = 1_000_000  # of the header of a file, of which a palette has 5,000 at most
MODES = {
    12: "CMYK",
    18: "YCbCr",
}  # of a palette's colours, by the enumerated colour space; RGB, with alpha or not, else
PALETTE_MODES = {3: "RGB", 4: "RGBA"}
LONGEST_PALETTE = 256


def read_jpeg_2000(file: IO[bytes]) -> Jpeg2KImageFile:
    """The picture of a file, its header read.

    Raises:
        ValueError: its palette is damaged, or of a kind that is not known; others as Pillow raises them.
    """
    boxes = header_boxes(file)
    file.seek(0)
    picture = Jpeg2KImageFile(file)
    if b"pclr" in boxes and picture.mode in ("L", "P", "PA"):
        colours = palette_of(boxes)
        picture._mode = "PA" if picture.mode == "PA" else "P"
        picture.palette = ImagePalette.ImagePalette(PALETTE_MODES[colours.shape[1]], colours.tobytes())
        picture.palette.dirty = 1
    return picture


def header_boxes(file: IO[bytes]) -> dict[bytes, bytes]:
    """What is in the boxes of the header of a file, wherever that is; nothing in a bare code stream."""
    place, end = 0, size_of(file)
    while place + 8 <= end:
        file.seek(place)
        size, name = struct.unpack(">I4s", file.read(8))
        if name == b"jp2h":
            header = file.read(min(size, HEADER_BYTES))[: size - 8]
            return {inner: header[start:stop] for inner, start, stop in boxes_in(header, 0, len(header))}
        if size < 8 or (place == 0 and name != b"jP  "):
            break
        place += size
    return {}


def palette_of(boxes: dict[bytes, bytes]) -> UInt8Array:
    """The colours of a palette, uint8 (256, 3 or 4), each where Pillow's 8 bits have the samples that stand for it."""
    columns = palette_columns(boxes[b"pclr"])
    if b"cmap" in boxes:  # of each channel: the component, whether it goes through the palette, and by which column
        mapped = [column for _, kind, column in struct.iter_unpack(">HBB", boxes[b"cmap"]) if kind == 1]
        columns = columns[:, mapped or range(columns.shape[1])]
    colours = in_rgb(np.repeat(columns, 3, 1) if columns.shape[1] == 1 else columns, boxes.get(b"colr", b""))
    bits = (boxes[b"ihdr"][10] & 0x7F) + 1
    if len(colours) > LONGEST_PALETTE or bits > 8 or colours.shape[1] not in PALETTE_MODES:
        raise ValueError("a palette that is not known")
    palette = np.zeros((LONGEST_PALETTE, colours.shape[1]), np.uint8)
    places = np.arange(min(len(colours), 1 << bits)) << (8 - bits)
    palette[places] = colours[: len(places)]
    return palette


def palette_columns(box: bytes) -> UInt8Array:
    """The numbers of a palette in 8 bits: uint8 (colours, columns)."""
    number, columns = struct.unpack_from(">HB", box)
    bits = [(one & 0x7F) + 1 for one in box[3 : 3 + columns]]
    form = ">" + "".join("B" if one <= 8 else "H" for one in bits)
    rows = struct.iter_unpack(form, box[3 + columns : 3 + columns + number * struct.calcsize(form)])
    largest = np.array([(1 << one) - 1 for one in bits])
    scaled: UInt8Array = (np.array(list(rows), np.int64).reshape(number, columns) * 255 // largest).astype(np.uint8)
    return scaled


def in_rgb(colours: UInt8Array, space: bytes) -> UInt8Array:
    """Colours of a palette in RGB, by the box of its colour space."""
    number = struct.unpack_from(">I", space, 3)[0] if space[:1] == b"\1" and len(space) >= 7 else 0
    mode = MODES.get(number)
    if mode is None or Image.getmodebands(mode) != colours.shape[1]:
        return colours
    row = Image.frombytes(mode, (len(colours), 1), colours.tobytes())
    return np.asarray(row.convert("RGB")).reshape(-1, 3)
