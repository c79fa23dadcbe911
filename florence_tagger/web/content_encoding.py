"""Decoding of compressed bodies: the codings of a header `Content-Encoding`; compressed parts -> decoded pieces.

HTTP's codings are in RFC 9110, 8.4.1; gzip is RFC 1952, and `deflate` is zlib's format (RFC 1950), although some
clients send it without zlib's frame (RFC 1951).
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

from werkzeug.exceptions import UnsupportedMediaType

from florence_tagger.errors import RequestError

PIECE = 256 * 1024  # maximum bytes of a decoded piece
SLICE = 64 * 1024  # maximum bytes of a compressed input: zlib copies the unconsumed ones for each piece
MAX_CODINGS = 2  # nested; each costs as much time as the body itself
MAX_MEMBERS = 10_000  # of a gzip file; empty ones cost time without any output

GZIP, ZLIB, RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS  # zlib's names of the formats


@dataclass(frozen=True)
class Coding:
    """A content coding of HTTP.

    Attributes:
        name: in the header.
        format_of: returns zlib's `wbits` of the format from a body's first two bytes.
        max_members: maximum number of concatenated compressed streams.
    """

    name: str
    format_of: Callable[[bytes], int]
    max_members: int = 1


def deflate_format(head: bytes) -> int:
    """Return the format with zlib's frame if the first two bytes are its header, else that of a raw stream.

    A raw stream never begins like this: it would be a stored block whose padding is not zero.
    """
    framed = len(head) == 2 and head[0] & 15 == zlib.DEFLATED and int.from_bytes(head, "big") % 31 == 0
    return ZLIB if framed else RAW


GZIP_CODING = Coding("gzip", lambda head: GZIP, MAX_MEMBERS)
CODINGS = {"gzip": GZIP_CODING, "x-gzip": GZIP_CODING, "deflate": Coding("deflate", deflate_format)}
ACCEPTED = "gzip, deflate"


def parse_codings(header: str) -> list[Coding]:
    """Return the codings in a header `Content-Encoding`, in the order in which they were applied.

    Raises:
        UnsupportedMediaType: a coding is not supported, or there are too many.
    """
    names = [name for item in header.split(",") if (name := item.strip().lower()) not in ("", "identity")]
    unknown = [name for name in names if name not in CODINGS]
    if unknown or len(names) > MAX_CODINGS:
        wrong = f"is {', '.join(unknown)[:50]}" if unknown else f"has {len(names)} codings, at most {MAX_CODINGS} do"
        raise UnsupportedMediaType(f"The body's Content-Encoding {wrong}; accepted are gzip, deflate and identity.")
    return [CODINGS[name] for name in names]


def decode(
    parts: Iterable[bytes], codings: Iterable[Coding], limit: Callable[[Iterable[bytes]], Iterator[bytes]]
) -> Iterator[bytes]:
    """Return the decoded pieces, undoing the last coding first; `limit` wraps the output of each coding.

    Raises:
        RequestError: the bytes are not in one of the codings, raised while iterating.
    """
    return reduce(lambda inner, coding: limit(inflate(inner, coding)), reversed([*codings]), iter(parts))


def inflate(parts: Iterable[bytes], coding: Coding) -> Iterator[bytes]:
    """Undo one coding; yield pieces of at most PIECE bytes."""
    stream: Any = None
    members = 0
    try:
        for part in split_parts(parts):
            rest = part
            while rest:
                if stream is None or stream.eof:
                    members += 1
                    if members > coding.max_members:
                        reason = f"it goes on after its end, or has more than {coding.max_members} parts"
                        raise coding_error(coding, reason)
                    stream = zlib.decompressobj(coding.format_of(rest[:2]))
                yield stream.decompress(rest, PIECE)
                rest = stream.unconsumed_tail or stream.unused_data
        while stream is not None and (piece := stream.decompress(b"", PIECE)):  # bytes still buffered in zlib
            yield piece
    except zlib.error as exc:
        raise coding_error(coding, "it is damaged, or something else") from exc
    if stream is None or not stream.eof:
        raise coding_error(coding, "it ends too early")


def split_parts(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield slices of at most SLICE bytes; the first has at least two bytes unless there are fewer in all."""
    head = b""
    for part in parts:
        part = head + part
        head = part if len(part) < 2 else b""
        if not head:
            yield from (part[start : start + SLICE] for start in range(0, len(part), SLICE))
    if head:
        yield head


def coding_error(coding: Coding, reason: str) -> RequestError:
    """Return the error of a body that is not in the coding of its header."""
    return RequestError(f"The body is not {coding.name}, as its Content-Encoding says: {reason}.")
