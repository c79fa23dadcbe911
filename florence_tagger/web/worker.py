"""gunicorn's threaded worker, made safe from clients that send slowly, and watchful of the model.

As it comes, a thread waits for a client's first byte, for its body without end, and up to five seconds more for a body
that nobody reads; and the one thread that accepts connections waits up to two seconds to close one. A few hundred slow
clients stop it from answering anything, health checks included.
"""

import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from itertools import islice
from selectors import EVENT_READ
from traceback import format_tb
from typing import Any

from gunicorn.http import errors
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import NoMoreData
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from florence_tagger.web.envelope import failure
from florence_tagger.web.lingering import Lingering

SEND_SECONDS = 60  # for an answer, once it is begun
SMALL_BODY = 1_000_000  # bytes
AT_HAND_SECONDS = 0.005  # for what has arrived already
TRANSIENT = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ECONNABORTED)
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SCARCE_SECONDS = 0.5  # without accepting, where the system has no descriptor for a connection

# What gunicorn can't read as a request, and is not simply 400.
STATUS_OF_FAULT: dict[type[Exception], HTTPStatus] = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
}


class TooLateError(NoMoreData, TimeoutError):  # type: ignore[misc]
    """A request did not arrive in time: to gunicorn the end of it, to the application a timeout."""


class PunctualUnreader(SocketUnreader):  # type: ignore[misc]
    """Reads a connection until a deadline, a monotonic time that is set for each request."""

    deadline = 0.0

    def chunk(self, size_hint: int | None = None) -> bytes:
        own = self.sock.gettimeout() or SEND_SECONDS
        left = self.deadline - time.monotonic()
        try:
            self.sock.settimeout(max(min(own, left), 0.001))
            return bytes(super().chunk(size_hint))
        except TimeoutError as exc:
            raise TooLateError from exc
        finally:
            self.sock.settimeout(own)


class Worker(ThreadWorker):  # type: ignore[misc]
    """A worker that, told to stop, answers every request it has with what is done by then.

    Its application has `settings`, `watch`, which is called about once a second, and `close`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scarce_until = 0.0

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.wsgi: Any = partial(call, self.wsgi)

    def run(self) -> None:
        self._lingering = Lingering(self.poller)
        super().run()

    def notify(self) -> None:
        """gunicorn's sign of life, in its main thread."""
        super().notify()
        # Here and not where they come: a connection must not be closed while its event may be about to be treated.
        scarce = time.monotonic() < self._scarce_until
        self._lingering.end(0 if scarce else self.worker_connections // 3)
        self._end_silent()
        self.app.watch()

    def accept(self, listener: socket.socket) -> None:
        """Takes a connection, which waits in no thread until it has sent something."""
        try:
            client, address = listener.accept()
        except OSError as exc:
            if exc.errno in SCARCE:
                self._scarce_until = time.monotonic() + SCARCE_SECONDS
                self.set_accept_enabled(False)
            elif exc.errno not in TRANSIENT:
                raise
            return
        self.nr_conns += 1
        conn = TConn(self.cfg, client, address, listener.getsockname())
        conn.timeout = time.monotonic() + self.cfg.keepalive
        self.pending_conns.append(conn)
        self.poller.register(client, EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def set_accept_enabled(self, enabled: bool) -> None:
        """Called before each wait for events, so that a pause ends by itself."""
        super().set_accept_enabled(enabled and time.monotonic() >= self._scarce_until)

    def handle(self, conn: TConn) -> Any:
        """Treats a request, in a thread; what it sends must come in time."""
        conn.init()
        if not isinstance(conn.parser.unreader, PunctualUnreader):
            conn.parser.unreader = PunctualUnreader(conn.sock)
        conn.parser.unreader.deadline = time.monotonic() + self.app.settings.body_seconds
        return super().handle(conn)

    def finish_request(self, conn: TConn, done: "Future[Any]") -> None:
        """Keeps a connection for further requests, or closes it without waiting for its client."""
        if done.cancelled() or done.exception() is not None or done.result():
            super().finish_request(conn, done)
            return
        self.nr_conns -= 1
        try:
            self._lingering.add(conn.sock)
        except (OSError, ValueError):
            conn.close()

    def _end_silent(self) -> None:
        """Closes the oldest of too many connections that have not sent anything."""
        for conn in islice(self.pending_conns, max(len(self.pending_conns) - self.worker_connections // 2, 0)):
            conn.timeout = 0
        self.murder_pending()

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answers what is no request, or a fault of ours, by its kind alone.

        gunicorn logs and sends back what it could not read: of a body longer than its header says, that is a document.
        """
        kind = type(exc).__name__
        if is_of_client(exc):
            status = STATUS_OF_FAULT.get(type(exc), HTTPStatus.BAD_REQUEST)
            self.log.warning("No request that could be read: %s", kind)
        else:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            self.log.error("A request failed: %s\n%s", kind, "".join(format_tb(exc.__traceback__)))
        with suppress(OSError):
            client.setblocking(False)
            client.sendall(error_answer(status, kind))

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: requests may finish, for a while; in the last third what still waits is given up."""
        super().handle_exit(sig, frame)
        timer = threading.Timer(self.app.settings.stop_seconds * 2 / 3, self.app.close)
        timer.daemon = True
        timer.start()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT and SIGQUIT: what waits is given up at once."""
        super().handle_exit(sig, frame)
        threading.Thread(target=self.app.close, daemon=True).start()


def is_of_client(exc: Exception) -> bool:
    """Whether an error is about what a client sent; a header of ours is not, though it has such a class."""
    ours = (errors.InvalidResponseHeader, errors.InvalidResponseHeaderName)
    return isinstance(exc, errors.ParseException) and not isinstance(exc, ours)


def error_answer(status: HTTPStatus, kind: str) -> bytes:
    """The whole answer to what never reached the application, after which the connection ends."""
    body = json.dumps(failure(status, f"The request could not be read or answered: {kind}.")).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\n\r\n"
    )
    return head.encode() + body


def call(
    application: Callable[..., Iterable[bytes]], environ: Mapping[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    """Calls an application; a request whose body has not arrived when it is refused is the last of its connection.

    gunicorn would wait for the rest to keep the connection, for which a thread waits as long as the client likes.
    """

    def start(*args: Any) -> Any:
        if not is_read(environ["wsgi.input"].reader):
            start_response.__self__.force_close()  # type: ignore[attr-defined]  # gunicorn's Response
        return start_response(*args)

    return application(environ, start)


def is_read(reader: Any) -> bool:
    """Whether nothing of a body is left to come; what is left of a small one is read if it is there already."""
    if not isinstance(reader, LengthReader):
        return not (isinstance(reader, ChunkedReader) and reader.parser is not None)
    if 0 < reader.length <= SMALL_BODY and isinstance(reader.unreader, PunctualUnreader):
        reader.unreader.deadline = time.monotonic() + AT_HAND_SECONDS
        with suppress(OSError):
            reader.read(reader.length)
    return bool(reader.length == 0)
