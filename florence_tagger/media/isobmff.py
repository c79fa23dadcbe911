"""The boxes that files of the ISO base media format and of JPEG 2000 are made of (ISO/IEC 14496-12, 4.2)."""

import struct
from collections.abc import Iterator

Box = tuple[bytes, int, int]  # its name, and where what is in it begins and ends


def boxes_in(content: bytes, start: int, end: int) -> Iterator[Box]:
    """The boxes between two places, until they end or one is no box."""
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", content, start)
        inner = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", content, inner)
            inner += 8
        size = size or end - start
        if size < inner - start or start + size > end:
            return
        yield name, inner, start + size
        start += size
