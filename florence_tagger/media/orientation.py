"""How a picture is to be turned, by its EXIF or XMP data -> the picture as it is displayed.

Nothing else of these data is looked at: a camera's odd entry, or what is no EXIF at all, is no reason against pixels.
"""

import re
import struct

from PIL import Image

from florence_tagger.media.directories import CLASSIC, ORIENTATION, layout_of

UPRIGHT = 1
TURNED = 5  # EXIF orientations from here on exchange width and height

# By the value of EXIF's tag Orientation.
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ENTRY = 12  # bytes of an entry of a directory
VALUES = {1: "B", 3: "H", 4: "I", 8: "h", 9: "i"}  # the types of field in which the value is found
XMP = re.compile(rb'tiff:Orientation(?:\s*=\s*["\']|>)\s*([1-8])\s*["\'<]')


def orientation_of(picture: Image.Image, otherwise: int = UPRIGHT) -> int:
    """The orientation that a picture's own data give, or else `otherwise`."""
    said = exif_orientation(bytes_of(picture.info.get("exif")))
    found = XMP.search(bytes_of(picture.info.get("xmp"))) if said is None else None
    return int(found[1]) if found else said or otherwise


def exif_orientation(exif: bytes) -> int | None:
    """The orientation in EXIF data, however odd the rest of them is; None where they give none."""
    data = re.sub(rb"^(?:Exif\0\0)+", b"", exif)
    layout = layout_of(data[:16])
    if layout is None or layout.magic != CLASSIC or len(data) < layout.first + 2:
        return None
    (number,) = struct.unpack_from(layout.order + "H", data, layout.first)
    start = layout.first + 2
    table = data[start : min(start + number * ENTRY, len(data) - (len(data) - start) % ENTRY)]
    for tag, kind, count, value in struct.iter_unpack(layout.order + "HHI4s", table):
        if tag == ORIENTATION and kind in VALUES and count:
            (said,) = struct.unpack_from(layout.order + VALUES[kind], value)
            return said if said in UNDO or said == UPRIGHT else None
    return None


def exif_of(orientation: int) -> bytes:
    """EXIF data that give an orientation and nothing else."""
    return struct.pack(">2sHIHHHIHHI", b"MM", CLASSIC, 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """A picture as its orientation wants it displayed."""
    return picture.transpose(UNDO[orientation]) if orientation in UNDO else picture


def bytes_of(data: object) -> bytes:
    """Data that a library has as bytes or a text."""
    return data if isinstance(data, bytes) else data.encode(errors="replace") if isinstance(data, str) else b""
