"""Reading of a request's body within three limits: bytes of one body, bytes of all bodies, and time."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from flask import Request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import RequestEntityTooLarge

from florence_tagger.errors import BodyTimeoutError, BusyError, ClientDisconnectedError, RequestError
from florence_tagger.web.content_encoding import decode, parse_codings

READ_BYTES = 1024 * 1024  # per read of the stream


class Reservation:
    """The bytes that one request holds."""

    def __init__(self, budget: "ByteBudget") -> None:
        self._budget = budget
        self.held = 0

    def acquire(self, num_bytes: int) -> None:
        """Hold more bytes; raise BusyError if they exceed the budget together with those of other requests."""
        self._budget.adjust(num_bytes, self.held)
        self.held += num_bytes

    def release(self, num_bytes: int) -> None:
        """Hold fewer bytes."""
        self._budget.adjust(-num_bytes, self.held)
        self.held -= num_bytes


class ByteBudget:
    """Upper bound of the bytes that all requests hold; thread-safe. A single request alone may exceed it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.held = 0

    def check(self, num_bytes: int, already_held: int = 0) -> None:
        """Raise BusyError if a request that holds `already_held` bytes can't have `num_bytes` more."""
        held_by_others = self.held - already_held
        if held_by_others and self.held + num_bytes > self._max_bytes:
            raise BusyError("As many bytes wait as are accepted.")

    def adjust(self, num_bytes: int, already_held: int) -> None:
        """Acquire bytes for a request that holds `already_held`, or release some if `num_bytes` is negative.

        Raises:
            BusyError: the budget does not allow them.
        """
        with self._lock:
            if num_bytes > 0:
                self.check(num_bytes, already_held)
            self.held += num_bytes

    @contextmanager
    def reserve(self) -> Iterator[Reservation]:
        """Yield the reservation of a request, empty at first; release it at the end."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.adjust(-reservation.held, reservation.held)


def read_body(request: Request, max_bytes: int, budget: ByteBudget, reservation: Reservation) -> bytes | bytearray:
    """Return the body of a request, decoded from its Content-Encoding; its bytes are held in `reservation`.

    A body that is too long by its header is refused before anything is read. Bytes are reserved as they arrive, so that
    a client that announces many and sends few takes none from others.

    Args:
        request: its stream is read to the end.
        max_bytes: of the body, before and after decoding.
        budget: of all requests.
        reservation: of this request.

    Raises:
        UnsupportedMediaType: its Content-Encoding is unknown.
        RequestEntityTooLarge: it is too long, which is known of a chunked or compressed one only while it is read.
        BusyError: the budget does not allow it.
        BodyTimeoutError: it did not arrive in time.
        ClientDisconnectedError: the client closed the connection.
        RequestError: its chunks are damaged, or it is not in the named Content-Encoding.
    """
    codings = parse_codings(request.headers.get("Content-Encoding", ""))
    if (request.content_length or 0) > max_bytes:
        raise_too_large(max_bytes)
    budget.check(request.content_length or 0)
    parts: list[bytes] = []
    stored = store(limit_size(read_parts(request), max_bytes), parts, reservation)
    if not codings:
        return b"".join(stored)

    def decode_body(compressed: Iterable[bytes]) -> Iterator[bytes]:
        return decode(compressed, codings, lambda pieces: limit_size(pieces, max_bytes))

    length = sum(map(len, decode_body(stored)))  # nothing decoded is kept: a body that is too long takes no memory
    return join_decoded(parts, length, decode_body, reservation)


def join_decoded(
    parts: list[bytes], length: int, decode_body: Callable[[Iterable[bytes]], Iterator[bytes]], reservation: Reservation
) -> bytearray:
    """Return the `length` decoded bytes of compressed parts; they replace the parts in the reservation."""
    reservation.acquire(length)
    body = bytearray(length)
    position = 0
    for piece in decode_body(parts):
        body[position : position + len(piece)] = piece
        position += len(piece)
    reservation.release(sum(map(len, parts)))
    return body


def read_parts(request: Request) -> Iterator[bytes]:
    """Yield the parts of a body as they arrive; raise ClientDisconnectedError if it is shorter than announced."""
    length = 0
    while part := read_part(request):
        length += len(part)
        yield part
    if length < (request.content_length or 0):
        raise ClientDisconnectedError("The client broke off.")


def limit_size(parts: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
    """Yield the parts; raise RequestEntityTooLarge once they have more than `max_bytes` together."""
    length = 0
    for part in parts:
        length += len(part)
        if length > max_bytes:
            raise_too_large(max_bytes)
        yield part


def store(parts: Iterable[bytes], storage: list[bytes], reservation: Reservation) -> Iterator[bytes]:
    """Yield the parts, each after it is added to the reservation and to `storage`."""
    for part in parts:
        reservation.acquire(len(part))
        storage.append(part)
        yield part


def read_part(request: Request) -> bytes:
    """Return the next bytes of a body, none at its end.

    Raises:
        BodyTimeoutError: they did not arrive in time.
        ClientDisconnectedError: the client closed the connection.
        RequestError: a chunk is damaged.
    """
    try:
        return request.stream.read(READ_BYTES)
    except TimeoutError as exc:
        raise BodyTimeoutError("The request did not arrive in time.") from exc
    except OSError as exc:
        raise ClientDisconnectedError("The client broke off.") from exc
    except ParseException as exc:
        raise RequestError("The body's chunks are damaged.") from exc


def raise_too_large(max_bytes: int) -> NoReturn:
    """Raise RequestEntityTooLarge."""
    raise RequestEntityTooLarge(f"The body is larger than {max_bytes / 1e6:g} MB, the most for one request.")
