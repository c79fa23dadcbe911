"""Time limits of a client: for sending a request, and for receiving its answer."""

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import NoMoreData
from gunicorn.http.unreader import SocketUnreader

START_SECONDS = 5  # for the first bytes of a request, and more for what came:
SLOWEST = 4000  # bytes a second
PIECE = 65536  # bytes of an answer
PIECE_SECONDS = 5  # in which a client must have room for one
ANSWER_SECONDS = 60  # for all of them
SMALL_BODY = 1_000_000  # bytes


class TooLateError(NoMoreData, TimeoutError):  # type: ignore[misc]
    """A request did not arrive in time: the end of the data for gunicorn, a timeout for the application."""


class PunctualUnreader(SocketUnreader):  # type: ignore[misc]
    """Reader of a connection with a deadline and a minimum rate for each request."""

    _began = _deadline = 0.0
    _received = 0

    def expect(self, seconds: float) -> None:
        """Start the time in which the whole request must arrive."""
        self._began = time.monotonic()
        self._deadline = self._began + seconds
        self._received = 0

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return the next bytes; raise TooLateError if they do not arrive in time."""
        until = min(self._deadline, self._began + START_SECONDS + self._received / SLOWEST)
        own = self.sock.gettimeout()
        try:
            self.sock.settimeout(max(until - time.monotonic(), 0.0))  # 0: what is there, without waiting
            part = bytes(super().chunk(size_hint))
        except (TimeoutError, BlockingIOError) as exc:
            raise TooLateError from exc
        finally:
            self.sock.settimeout(own)
        self._received += len(part)
        return part


def call(
    application: Callable[..., Iterable[bytes]], environ: Mapping[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    """Call an application with time limits for sending its answer.

    A request that is refused before its body has arrived is the last one on its connection: to keep the connection,
    gunicorn would block a thread until the client has sent the rest.
    """
    connection = environ["gunicorn.socket"]
    connection.settimeout(PIECE_SECONDS)  # for the headers

    def start(*args: Any) -> Any:
        if not is_read(environ["wsgi.input"].reader):
            start_response.__self__.force_close()  # type: ignore[attr-defined]  # gunicorn's Response
        return start_response(*args)

    return in_time(application(environ, start), connection)


def in_time(answer: Iterable[bytes], connection: socket.socket) -> Iterator[bytes]:
    """Yield an answer in pieces, with a timeout on the socket for sending each of them."""
    until = time.monotonic() + ANSWER_SECONDS
    try:
        for part in answer:
            for start in range(0, len(part), PIECE):
                connection.settimeout(max(min(PIECE_SECONDS, until - time.monotonic()), 0.001))
                yield part[start : start + PIECE]
    finally:
        if hasattr(answer, "close"):
            answer.close()


def is_read(reader: Any) -> bool:
    """Return True if a body is read completely; the rest of a small one is read if it has already arrived."""
    if not isinstance(reader, LengthReader):
        return not (isinstance(reader, ChunkedReader) and reader.parser is not None)
    if 0 < reader.length <= SMALL_BODY and isinstance(reader.unreader, PunctualUnreader):
        reader.unreader.expect(0)
        with suppress(OSError):
            reader.read(reader.length)
    return bool(reader.length == 0)
