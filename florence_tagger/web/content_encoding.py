"""Compressed bodies: the codings that `Content-Encoding` names, and a body's bytes -> what they were before, in pieces.

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

PIECE = 256 * 1024  # bytes that come out at a time
SLICE = 64 * 1024  # bytes that go in at a time: what is left of them is copied for each piece
MAX_CODINGS = 2  # one over the other; each takes as much work as the body itself
MAX_MEMBERS = 10_000  # of a gzip file; empty ones cost time and bring nothing

GZIP, ZLIB, RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS  # zlib's names of the formats


@dataclass(frozen=True)
class Coding:
    """A coding of HTTP.

    Attributes:
        format_of: zlib's name of the format, by a body's first two bytes.
        max_members: how many compressed streams may follow each other.
    """

    name: str
    format_of: Callable[[bytes], int]
    max_members: int = 1


def deflate_format(head: bytes) -> int:
    """Return zlib's format where the first two bytes are its header, else that of a bare stream.

    A bare stream never begins so: it would be a stored block with padding that is not zero.
    """
    framed = len(head) == 2 and head[0] & 15 == zlib.DEFLATED and int.from_bytes(head, "big") % 31 == 0
    return ZLIB if framed else RAW


GZIP_CODING = Coding("gzip", lambda head: GZIP, MAX_MEMBERS)
CODINGS = {"gzip": GZIP_CODING, "x-gzip": GZIP_CODING, "deflate": Coding("deflate", deflate_format)}
ACCEPTED = "gzip, deflate"


def codings_of(header: str) -> list[Coding]:
    """Return the codings that a header `Content-Encoding` names, in the order in which they were applied.

    Raises:
        UnsupportedMediaType: it names another one, or too many.
    """
    names = [name for one in header.split(",") if (name := one.strip().lower()) not in ("", "identity")]
    unknown = [name for name in names if name not in CODINGS]
    if unknown or len(names) > MAX_CODINGS:
        wrong = f"is {', '.join(unknown)[:50]}" if unknown else f"has {len(names)} codings, at most {MAX_CODINGS} do"
        raise UnsupportedMediaType(f"The body's Content-Encoding {wrong}; accepted are gzip, deflate and identity.")
    return [CODINGS[name] for name in names]


def decoded(
    parts: Iterable[bytes], codings: Iterable[Coding], bounded: Callable[[Iterable[bytes]], Iterator[bytes]]
) -> Iterator[bytes]:
    """Undo codings, the last one first; `bounded` watches the bytes that each of them gives.

    Raises:
        RequestError: the bytes are not what a coding makes.
    """
    return reduce(lambda inner, coding: bounded(inflate(inner, coding)), reversed([*codings]), iter(parts))


def inflate(parts: Iterable[bytes], coding: Coding) -> Iterator[bytes]:
    """Undo one coding, in pieces of at most PIECE bytes."""
    stream: Any = None
    members = 0
    try:
        for part in slices(parts):
            rest = part
            while rest:
                if stream is None or stream.eof:
                    members += 1
                    if members > coding.max_members:
                        raise damaged(coding, f"it goes on after its end, or has more than {coding.max_members} parts")
                    stream = zlib.decompressobj(coding.format_of(rest[:2]))
                yield stream.decompress(rest, PIECE)
                rest = stream.unconsumed_tail or stream.unused_data
        while stream is not None and (piece := stream.decompress(b"", PIECE)):  # what zlib still held back
            yield piece
    except zlib.error as exc:
        raise damaged(coding, "it is damaged, or something else") from exc
    if stream is None or not stream.eof:
        raise damaged(coding, "it ends too early")


def slices(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Cut parts into smaller ones; the first has two bytes, unless there are no more."""
    head = b""
    for part in parts:
        part = head + part
        head = part if len(part) < 2 else b""
        if not head:
            yield from (part[start : start + SLICE] for start in range(0, len(part), SLICE))
    if head:
        yield head


def damaged(coding: Coding, why: str) -> RequestError:
    """Return what is said of a body that is not what its header says."""
    return RequestError(f"The body is not {coding.name}, as its Content-Encoding says: {why}.")
