"""An AVIF file -> the same as libavif reads it.

Two things for which libavif, or Pillow with it, refuses a file are not needed for its pixels: the size of an item of
alpha (`ispe`), which many files leave out, since it is the picture's; and EXIF data, by which no AVIF is displayed.
Items by ISO/IEC 14496-12 (8.11) and 23008-12.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from florence_tagger.media.isobmff import Box, boxes_in

FULL = 4  # bytes of version and flags at the start of some boxes
MARKS = {"B": 0x80, "H": 0x8000}  # of a property that is essential, by the form of its number
SIZE = b"ispe"


@dataclass(frozen=True)
class Association:
    """The properties of an item: numbers from 1, each with whether it is essential."""

    item: int
    properties: list[tuple[int, bool]]


def readable_avif(content: bytes) -> bytes:
    """A file with the sizes that its items of alpha lack, and without EXIF data."""
    readable = bytearray(content)
    for _, start, end in metas(content, 0, len(content)):
        readable[start:end] = without_exif(content[start:end])
    meta = next((box for box in boxes_in(content, 0, len(content)) if box[0] == b"meta"), None)
    if meta is None:
        return bytes(readable)
    sized = with_sizes(bytes(readable[meta[1] : meta[2]]))
    if sized is None:
        return bytes(readable)
    place = content.rindex(b"meta", 0, meta[1])
    readable[place : place + 4] = b"free"  # it stays as long as it was, so that nothing moves
    _, start, end = list(boxes_in(content, 0, len(content)))[-1]
    if content[start - 8 : start - 4] == bytes(4):  # the last box, which would go on to the end of the file
        readable[start - 8 : start - 4] = struct.pack(">I", end - start + 8)
    return bytes(readable) + boxed(b"meta", sized)


def metas(content: bytes, start: int, end: int) -> Iterator[Box]:
    """The boxes of metadata of a file and of its tracks."""
    for box in boxes_in(content, start, end):
        if box[0] == b"meta":
            yield box
        elif box[0] in (b"moov", b"trak"):
            yield from metas(content, *box[1:])


def without_exif(meta: bytes) -> bytes:
    """Metadata whose EXIF data are of a kind that no program knows."""
    hidden = bytearray(meta)
    for name, start, end in boxes_in(meta, FULL, len(meta)):
        number = 2 if name == b"iinf" and meta[start : start + 1] == b"\0" else 4
        for kind, place, _ in boxes_in(meta, start + FULL + number, end) if name == b"iinf" else ():
            at = place + FULL + (2 if meta[place] < 3 else 4) + 2  # behind the item's number and protection
            if kind == b"infe" and meta[at : at + 4] == b"Exif":
                hidden[at : at + 4] = b"none"
    return bytes(hidden)


def with_sizes(meta: bytes) -> bytes | None:
    """Metadata with the sizes that items of alpha lack, which are their pictures'; None where none lacks one."""
    boxes = {name: (start, end) for name, start, end in boxes_in(meta, FULL, len(meta))}
    if not {b"iref", b"iprp"} <= boxes.keys():
        return None
    inner = {name: (start, end) for name, start, end in boxes_in(meta, *boxes[b"iprp"])}
    if not {b"ipco", b"ipma"} <= inner.keys():
        return None
    sizes = {number for number, box in enumerate(boxes_in(meta, *inner[b"ipco"]), 1) if box[0] == SIZE}
    head, known = associations(meta[slice(*inner[b"ipma"])])
    completed = list(completed_with(known, sizes, auxiliaries(meta[slice(*boxes[b"iref"])])))
    if completed == known:
        return None
    rest = meta[slice(*inner[b"ipco"])]
    properties = boxed(b"ipco", rest) + boxed(b"ipma", head + packed(completed, head))
    others = b"".join(boxed(name, meta[start:end]) for name, (start, end) in boxes.items() if name != b"iprp")
    return meta[:FULL] + others + boxed(b"iprp", properties)


def completed_with(known: list[Association], sizes: set[int], pictures: dict[int, int]) -> Iterator[Association]:
    """Associations, those of alpha with the size of the picture that they are of (`pictures`) where they have none."""
    for one in known:
        picture = next((other for other in known if other.item == pictures.get(one.item)), one)
        theirs = [size for size in picture.properties if size[0] in sizes]
        has = any(number in sizes for number, _ in one.properties)
        yield one if has else Association(one.item, theirs + one.properties)


def auxiliaries(references: bytes) -> dict[int, int]:
    """Which item is of which picture, by the box of references."""
    form = ">HHH" if references[:1] == b"\0" else ">IHI"
    boxes = boxes_in(references, FULL, len(references))
    starts = [start for name, start, end in boxes if name == b"auxl" and end - start >= struct.calcsize(form)]
    found = (struct.unpack_from(form, references, start) for start in starts)
    return {item: picture for item, _, picture in found}


def associations(box: bytes) -> tuple[bytes, list[Association]]:
    """The start of a box of associations, and these."""
    known, place = [], FULL + 4
    item_form, form = forms(box)
    for _ in range(struct.unpack_from(">I", box, FULL)[0]):
        item, number = struct.unpack_from(item_form, box, place)
        place += struct.calcsize(item_form)
        numbers = struct.unpack_from(f">{number}{form}", box, place)
        known.append(Association(item, [(one & ~MARKS[form], bool(one & MARKS[form])) for one in numbers]))
        place += number * struct.calcsize(form)
    return box[: FULL + 4], known


def forms(box: bytes) -> tuple[str, str]:
    """How a box of associations writes an item with the number of its properties, and a property."""
    return ">HB" if box[:1] == b"\0" else ">IB", "H" if box[3] & 1 else "B"


def packed(known: list[Association], head: bytes) -> bytes:
    """Associations as a box that starts with `head` has them."""
    item_form, form = forms(head)
    return b"".join(
        struct.pack(
            f"{item_form}{len(one.properties)}{form}",
            *(one.item, len(one.properties)),
            *(number | MARKS[form] * essential for number, essential in one.properties),
        )
        for one in known
    )


def boxed(name: bytes, content: bytes) -> bytes:
    """A box."""
    return struct.pack(">I4s", 8 + len(content), name) + content
