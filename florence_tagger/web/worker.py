"""The threaded worker of gunicorn, protected from clients that send or read slowly, with a watchdog for the model.

Without this protection, a thread waits for a client's first byte, for its body without a limit, and up to five seconds
more for an unread body; and the only thread that accepts connections waits up to two seconds to close one. Then a few
hundred slow clients block all answers, health checks included.
"""

import errno
import json
import re
import select
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from itertools import islice
from selectors import EVENT_READ
from traceback import format_tb
from typing import Any

from gunicorn.http import errors
from gunicorn.workers.gthread import TConn, ThreadWorker

from florence_tagger.web.envelope import failure
from florence_tagger.web.lingering import Lingering
from florence_tagger.web.punctual import PunctualUnreader, call

PROBE = re.compile(rb"(?:GET|HEAD) /(?:health-check|test)[ ?]")
PROBE_BYTES = 4096  # of a probe's head, at most
PROBE_THREADS = 2
TRANSIENT = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ECONNABORTED)
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SCARCE_SECONDS = 0.2  # without accepting, where the system has no descriptor for a connection

# What gunicorn can't read as a request, and is not simply 400.
STATUS_OF_FAULT: dict[type[Exception], HTTPStatus] = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
}
WORDS_OF_FAULT = {
    HTTPStatus.BAD_REQUEST: "it is not HTTP, or has a header or chunk that is not",
    HTTPStatus.REQUEST_URI_TOO_LONG: "its first line is too long",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "its headers are too many or too long",
    HTTPStatus.EXPECTATION_FAILED: "it expects something else than 100-continue",
    HTTPStatus.NOT_IMPLEMENTED: "its transfer coding is not chunked",
    HTTPStatus.INTERNAL_SERVER_ERROR: "the service failed; its log says how",
}


class Worker(ThreadWorker):  # type: ignore[misc]
    """A worker that answers all accepted requests before it stops, with the documents done by then.

    Its application has `settings`, `watch`, which is called about once a second, and `close`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scarce_until = 0.0

    def load_wsgi(self) -> None:
        """Load the application, and limit the time for sending its answers."""
        super().load_wsgi()
        self.wsgi: Any = partial(call, self.wsgi)

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Return the threads for all requests but probes; called once, after the fork."""
        self._probes = ThreadPoolExecutor(PROBE_THREADS)
        pool: ThreadPoolExecutor = super().get_thread_pool()
        return pool

    def run(self) -> None:
        """Handle connections until a signal stops the worker."""
        self._lingering = Lingering(self.poller)
        super().run()

    def notify(self) -> None:
        """Send the heartbeat of gunicorn, close connections and watch the model; called in the main thread."""
        super().notify()
        # Here and not where they come: a connection must not be closed while its event may be about to be treated.
        scarce = time.monotonic() < self._scarce_until
        self._lingering.end(0 if scarce else self.worker_connections // 3)
        self._end_silent()
        self.app.watch()

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection; it occupies no thread until it has sent data."""
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
        """Enable accepting unless it pauses; called before each wait for events, so that a pause ends by itself."""
        super().set_accept_enabled(enabled and time.monotonic() >= self._scarce_until)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, but not beyond the end of a pause of accepting, which causes no event."""
        pause = self._scarce_until - time.monotonic()
        super().wait_for_and_dispatch_events(min(timeout, pause) if pause > 0 else timeout)

    def enqueue_req(self, conn: TConn) -> None:
        """Submit a request to the threads; probes have threads of their own, so that they never queue."""
        done = (self._probes if is_probe(conn) else self.tpool).submit(self.handle, conn)
        done.add_done_callback(lambda future: self.method_queue.defer(self.finish_request, conn, future))

    def handle(self, conn: TConn) -> Any:
        """Handle a request in a thread, with a time limit for its arrival."""
        conn.init()
        if not isinstance(conn.parser.unreader, PunctualUnreader):
            conn.parser.unreader = PunctualUnreader(conn.sock)
        conn.parser.unreader.expect(self.app.settings.body_seconds)
        return super().handle(conn)

    def handle_request(self, req: Any, conn: TConn) -> bool:
        """Handle a parsed request; return True to keep the connection, False if the client does not read its answer."""
        try:
            return bool(super().handle_request(req, conn))
        except TimeoutError:
            self.log.debug("A client did not take its answer.")
            return False

    def finish_request(self, conn: TConn, done: "Future[Any]") -> None:
        """Keep a connection for further requests, or close it without waiting for its client."""
        if done.cancelled() or done.exception() is not None or done.result():
            super().finish_request(conn, done)
            return
        self.nr_conns -= 1
        try:
            self._lingering.add(conn.sock)
        except (OSError, ValueError):
            conn.close()

    def _end_silent(self) -> None:
        """Close the oldest connections without data if there are too many."""
        for conn in islice(self.pending_conns, max(len(self.pending_conns) - self.worker_connections // 2, 0)):
            conn.timeout = 0
        self.murder_pending()

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer a request that can't be parsed, or an internal error; log its type only.

        By default gunicorn logs and returns the unparsable bytes, which are a document if a body is longer than its
        header says.
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
            client.sendall(error_answer(status))

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Handle SIGTERM: finish requests; after two thirds of the time, abort those that still wait."""
        super().handle_exit(sig, frame)
        timer = threading.Timer(self.app.settings.stop_seconds * 2 / 3, self.app.close)
        timer.daemon = True
        timer.start()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Handle SIGINT and SIGQUIT: abort waiting requests at once."""
        super().handle_exit(sig, frame)
        threading.Thread(target=self.app.close, daemon=True).start()


def is_probe(conn: TConn) -> bool:
    """Return True if the complete head of a probe has arrived and its answer can be sent without blocking."""
    if conn.parser is not None and conn.parser.unreader.buf.getvalue():  # a request that was sent ahead
        return False
    try:
        head = conn.sock.recv(PROBE_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False
    return bool(PROBE.match(head)) and b"\r\n\r\n" in head and has_room(conn.sock)


def has_room(client: socket.socket) -> bool:
    """Return True if a short answer can be sent without blocking."""
    poll = select.poll()
    poll.register(client, select.POLLOUT)
    return bool(poll.poll(0))


def is_of_client(exc: Exception) -> bool:
    """Return True if an error is the client's; an invalid response header is not, although it has such a class."""
    ours = (errors.InvalidResponseHeader, errors.InvalidResponseHeaderName)
    return isinstance(exc, errors.ParseException) and not isinstance(exc, ours)


def error_answer(status: HTTPStatus) -> bytes:
    """Return the complete answer to a request that never reached the application; it closes the connection."""
    body = json.dumps(failure(status, f"The request could not be read or answered: {WORDS_OF_FAULT[status]}.")).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\n\r\n"
    )
    return head.encode() + body
