"""An AVIF file -> the same file in a form that libavif reads.

libavif, or Pillow with it, refuses a file for two properties that its pixels do not need: the size (`ispe`) of an alpha
item, which many files leave out, since it equals the picture's; and EXIF data, which do not affect the display of an
AVIF. Items by ISO/IEC 14496-12 (8.11) and 23008-12.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from florence_tagger.media.isobmff import Box, boxes_in

FULL_BOX = 4  # bytes of version and flags at the start of some boxes
ESSENTIAL = {"B": 0x80, "H": 0x8000}  # flag of an essential property, by the format of its number
SIZE = b"ispe"


@dataclass(frozen=True)
class Association:
    """Properties of an item: numbers from 1, each with a flag that is True if the property is essential."""

    item: int
    properties: list[tuple[int, bool]]


def make_readable(content: bytes) -> bytes:
    """Return a file with the missing sizes of its alpha items added, and without EXIF data."""
    readable = bytearray(content)
    for _, start, end in meta_boxes(content, 0, len(content)):
        readable[start:end] = hide_exif(content[start:end])
    meta = next((box for box in boxes_in(content, 0, len(content)) if box[0] == b"meta"), None)
    if meta is None:
        return bytes(readable)
    sized = add_missing_sizes(bytes(readable[meta[1] : meta[2]]))
    if sized is None:
        return bytes(readable)
    offset = content.rindex(b"meta", 0, meta[1])
    readable[offset : offset + 4] = b"free"  # keeps its size, so that no other offset changes
    _, start, end = list(boxes_in(content, 0, len(content)))[-1]
    if content[start - 8 : start - 4] == bytes(4):  # the last box, which extends to the end of the file
        readable[start - 8 : start - 4] = struct.pack(">I", end - start + 8)
    return bytes(readable) + make_box(b"meta", sized)


def meta_boxes(content: bytes, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes of metadata of a file and of its tracks."""
    for box in boxes_in(content, start, end):
        if box[0] == b"meta":
            yield box
        elif box[0] in (b"moov", b"trak"):
            yield from meta_boxes(content, *box[1:])


def hide_exif(meta: bytes) -> bytes:
    """Return metadata whose EXIF items have an unknown type instead."""
    hidden = bytearray(meta)
    for name, start, end in boxes_in(meta, FULL_BOX, len(meta)):
        count_bytes = 2 if name == b"iinf" and meta[start : start + 1] == b"\0" else 4
        for entry_name, entry, _ in boxes_in(meta, start + FULL_BOX + count_bytes, end) if name == b"iinf" else ():
            offset = entry + FULL_BOX + (2 if meta[entry] < 3 else 4) + 2  # after the item's number and protection
            if entry_name == b"infe" and meta[offset : offset + 4] == b"Exif":
                hidden[offset : offset + 4] = b"none"
    return bytes(hidden)


def add_missing_sizes(meta: bytes) -> bytes | None:
    """Return metadata with the missing sizes of alpha items, which are their pictures'; None if none is missing."""
    boxes = {name: (start, end) for name, start, end in boxes_in(meta, FULL_BOX, len(meta))}
    if not {b"iref", b"iprp"} <= boxes.keys():
        return None
    inner = {name: (start, end) for name, start, end in boxes_in(meta, *boxes[b"iprp"])}
    if not {b"ipco", b"ipma"} <= inner.keys():
        return None
    sizes = {number for number, box in enumerate(boxes_in(meta, *inner[b"ipco"]), 1) if box[0] == SIZE}
    header, associations = parse_associations(meta[slice(*inner[b"ipma"])])
    completed = list(add_sizes(associations, sizes, auxiliaries(meta[slice(*boxes[b"iref"])])))
    if completed == associations:
        return None
    definitions = meta[slice(*inner[b"ipco"])]
    properties = make_box(b"ipco", definitions) + make_box(b"ipma", header + pack_associations(completed, header))
    others = b"".join(make_box(name, meta[start:end]) for name, (start, end) in boxes.items() if name != b"iprp")
    return meta[:FULL_BOX] + others + make_box(b"iprp", properties)


def add_sizes(associations: list[Association], sizes: set[int], pictures: dict[int, int]) -> Iterator[Association]:
    """Yield associations, those of alpha items with the size of their picture if they have none.

    Args:
        associations: of all items.
        sizes: numbers of the properties that are sizes.
        pictures: alpha item -> its picture.
    """
    by_item = {association.item: association for association in reversed(associations)}
    for association in associations:
        picture_item = pictures.get(association.item)
        picture = association if picture_item is None else by_item.get(picture_item, association)
        picture_sizes = [size for size in picture.properties if size[0] in sizes]
        has_size = any(number in sizes for number, _ in association.properties)
        yield association if has_size else Association(association.item, picture_sizes + association.properties)


def auxiliaries(references: bytes) -> dict[int, int]:
    """Return a mapping from auxiliary items to their pictures, by the box of references."""
    reference_format = ">HHH" if references[:1] == b"\0" else ">IHI"
    size = struct.calcsize(reference_format)
    boxes = boxes_in(references, FULL_BOX, len(references))
    starts = [start for name, start, end in boxes if name == b"auxl" and end - start >= size]
    unpacked = (struct.unpack_from(reference_format, references, start) for start in starts)
    return {item: picture for item, _, picture in unpacked}


def parse_associations(box: bytes) -> tuple[bytes, list[Association]]:
    """Parse a box of associations: return its header, and the associations."""
    associations, offset = [], FULL_BOX + 4
    item_format, property_format = association_formats(box)
    essential = ESSENTIAL[property_format]
    for _ in range(struct.unpack_from(">I", box, FULL_BOX)[0]):
        item, count = struct.unpack_from(item_format, box, offset)
        offset += struct.calcsize(item_format)
        numbers = struct.unpack_from(f">{count}{property_format}", box, offset)
        properties = [(number & ~essential, bool(number & essential)) for number in numbers]
        associations.append(Association(item, properties))
        offset += count * struct.calcsize(property_format)
    return box[: FULL_BOX + 4], associations


def association_formats(box: bytes) -> tuple[str, str]:
    """Return the `struct` formats of an item with the number of its properties, and of a property, in a box."""
    return ">HB" if box[:1] == b"\0" else ">IB", "H" if box[3] & 1 else "B"


def pack_associations(associations: list[Association], header: bytes) -> bytes:
    """Encode associations as in a box that starts with `header`."""
    item_format, property_format = association_formats(header)
    return b"".join(
        struct.pack(
            f"{item_format}{len(association.properties)}{property_format}",
            *(association.item, len(association.properties)),
            *(number | ESSENTIAL[property_format] * essential for number, essential in association.properties),
        )
        for association in associations
    )


def make_box(name: bytes, content: bytes) -> bytes:
    """Return a box with this content."""
    return struct.pack(">I4s", 8 + len(content), name) + content
