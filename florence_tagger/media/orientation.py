"""Orientation of a picture by its EXIF or XMP data -> the picture as it is displayed.

Nothing else of these data is read: an odd entry of a camera, or invalid EXIF data, is no reason to refuse the pixels.
"""

import re
import struct

from PIL import Image

from florence_tagger.media.directories import CLASSIC, ORIENTATION, parse_layout

UPRIGHT = 1
MIN_SWAPPED = 5  # EXIF orientations from here on exchange width and height

# EXIF orientation -> the operation that makes it upright.
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ENTRY_BYTES = 12  # of an entry of a directory
VALUE_FORMATS = {1: "B", 3: "H", 4: "I", 8: "h", 9: "i"}  # field type -> format of the value for `struct`
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:\s*=\s*["\']|>)\s*([1-8])\s*["\'<]')


def stated_orientation(picture: Image.Image, default: int = UPRIGHT) -> int:
    """Return the orientation that a picture's EXIF or XMP data state, else `default`."""
    from_exif = exif_orientation(to_bytes(picture.info.get("exif")))
    match = XMP_ORIENTATION.search(to_bytes(picture.info.get("xmp"))) if from_exif is None else None
    return int(match[1]) if match else from_exif or default


def exif_orientation(exif: bytes) -> int | None:
    """Return the orientation that EXIF data state, even if the rest of them is invalid; None if they state none."""
    data = re.sub(rb"^(?:Exif\0\0)+", b"", exif)
    layout = parse_layout(data[:16])
    if layout is None or layout.magic != CLASSIC or len(data) < layout.first_offset + 2:
        return None
    (num_entries,) = struct.unpack_from(layout.byte_order + "H", data, layout.first_offset)
    start = layout.first_offset + 2
    table = data[start : min(start + num_entries * ENTRY_BYTES, len(data) - (len(data) - start) % ENTRY_BYTES)]
    for tag, field_type, count, value in struct.iter_unpack(layout.byte_order + "HHI4s", table):
        if tag == ORIENTATION and field_type in VALUE_FORMATS and count:
            (orientation,) = struct.unpack_from(layout.byte_order + VALUE_FORMATS[field_type], value)
            return orientation if orientation in TRANSPOSITIONS or orientation == UPRIGHT else None
    return None


def exif_with_orientation(orientation: int) -> bytes:
    """Return EXIF data that state an orientation and nothing else."""
    return struct.pack(">2sHIHHHIHHI", b"MM", CLASSIC, 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


def apply_orientation(picture: Image.Image, orientation: int) -> Image.Image:
    """Return a picture transposed from its orientation to the displayed one."""
    return picture.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else picture


def to_bytes(data: object) -> bytes:
    """Return data that a library has as bytes or text, as bytes."""
    return data if isinstance(data, bytes) else data.encode(errors="replace") if isinstance(data, str) else b""
