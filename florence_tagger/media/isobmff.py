"""Boxes of files in the ISO base media format and in JPEG 2000 (ISO/IEC 14496-12, 4.2)."""

import struct
from collections.abc import Iterator

Box = tuple[bytes, int, int]  # type, start and end of the payload


def boxes_in(content: bytes, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes between two offsets, up to the first invalid one."""
    while start + 8 <= end:
        size, box_type = struct.unpack_from(">I4s", content, start)
        payload = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", content, payload)
            payload += 8
        size = size or end - start
        if size < payload - start or start + size > end:
            return
        yield box_type, payload, start + size
        start += size
