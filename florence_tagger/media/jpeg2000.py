"""A JPEG 2000 file -> Pillow's picture of it, with the file's palette.

Pillow drops the second of two equal colors in a palette, which shifts all others, and ignores palettes of gray or of
more than 8 bits. Boxes by ISO/IEC 15444-1, annex I.
"""

import struct
from typing import IO

import numpy as np
from PIL import Image, ImagePalette
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from florence_tagger.media.directories import file_size
from florence_tagger.media.isobmff import boxes_in
from florence_tagger.schemas import UInt8Array

MAX_HEADER_BYTES = 1_000_000  # of a file; a palette in it has at most 5,000
MODES = {12: "CMYK", 18: "YCbCr"}  # enumerated color space -> mode of a palette's colors; any other is RGB or RGBA
PALETTE_MODES = {3: "RGB", 4: "RGBA"}
MAX_PALETTE = 256  # colors


def read_jpeg_2000(file: IO[bytes]) -> Jpeg2KImageFile:
    """Open a file and read its header.

    Raises:
        ValueError: its palette is damaged or of an unknown kind; Pillow raises other errors, too.
    """
    boxes = header_boxes(file)
    file.seek(0)
    picture = Jpeg2KImageFile(file)
    if b"pclr" in boxes and picture.mode in ("L", "P", "PA"):
        colors = read_palette(boxes)
        picture._mode = "PA" if picture.mode == "PA" else "P"
        picture.palette = ImagePalette.ImagePalette(PALETTE_MODES[colors.shape[1]], colors.tobytes())
        picture.palette.dirty = 1
    return picture


def header_boxes(file: IO[bytes]) -> dict[bytes, bytes]:
    """Return the boxes in the header of a file, wherever it is; none for a bare code stream."""
    offset, end = 0, file_size(file)
    while offset + 8 <= end:
        file.seek(offset)
        size, name = struct.unpack(">I4s", file.read(8))
        if name == b"jp2h":
            header = file.read(min(size, MAX_HEADER_BYTES))[: size - 8]
            return {inner: header[start:stop] for inner, start, stop in boxes_in(header, 0, len(header))}
        if size < 8 or (offset == 0 and name != b"jP  "):
            break
        offset += size
    return {}


def read_palette(boxes: dict[bytes, bytes]) -> UInt8Array:
    """Return the colors of a palette, uint8 (256, 3 or 4), indexed by the samples as Pillow scales them to 8 bits."""
    columns = palette_columns(boxes[b"pclr"])
    if b"cmap" in boxes:  # for each channel: component, mapping type (1: by the palette), and palette column
        mapped = [column for _, kind, column in struct.iter_unpack(">HBB", boxes[b"cmap"]) if kind == 1]
        columns = columns[:, mapped or range(columns.shape[1])]
    colors = to_rgb(np.repeat(columns, 3, 1) if columns.shape[1] == 1 else columns, boxes.get(b"colr", b""))
    bits = (boxes[b"ihdr"][10] & 0x7F) + 1
    if len(colors) > MAX_PALETTE or bits > 8 or colors.shape[1] not in PALETTE_MODES:
        raise ValueError("a palette that is not known")
    palette = np.zeros((MAX_PALETTE, colors.shape[1]), np.uint8)
    indices = np.arange(min(len(colors), 1 << bits)) << (8 - bits)
    palette[indices] = colors[: len(indices)]
    return palette


def palette_columns(box: bytes) -> UInt8Array:
    """Return the values of a palette in 8 bits: uint8 (colors, columns)."""
    num_colors, columns = struct.unpack_from(">HB", box)
    depths = [(depth & 0x7F) + 1 for depth in box[3 : 3 + columns]]
    row_format = ">" + "".join("B" if depth <= 8 else "H" for depth in depths)
    rows = struct.iter_unpack(row_format, box[3 + columns : 3 + columns + num_colors * struct.calcsize(row_format)])
    max_values = np.array([(1 << depth) - 1 for depth in depths])
    values = np.array(list(rows), np.int64).reshape(num_colors, columns)
    scaled: UInt8Array = (values * 255 // max_values).astype(np.uint8)
    return scaled


def to_rgb(colors: UInt8Array, box: bytes) -> UInt8Array:
    """Convert the colors of a palette to RGB, by the box of its color space."""
    color_space = struct.unpack_from(">I", box, 3)[0] if box[:1] == b"\1" and len(box) >= 7 else 0
    mode = MODES.get(color_space)
    if mode is None or Image.getmodebands(mode) != colors.shape[1]:
        return colors
    row = Image.frombytes(mode, (len(colors), 1), colors.tobytes())
    return np.asarray(row.convert("RGB")).reshape(-1, 3)
