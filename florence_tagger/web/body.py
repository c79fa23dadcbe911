"""The body of a request, with its bounds: the bytes of one, the bytes of all, and time."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from flask import Request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import RequestEntityTooLarge

from florence_tagger.errors import BodyTimeoutError, BusyError, ClientDisconnectedError, RequestError
from florence_tagger.web.content_encoding import codings_of, decoded

PART = 1024 * 1024  # bytes that are read at a time


class Reservation:
    """The bytes that one request holds."""

    def __init__(self, room: "ByteBudget") -> None:
        self._room = room
        self.held = 0

    def take(self, number: int) -> None:
        """Holds so many more; BusyError where they are too many with those of others."""
        self._room.change(number, self.held)
        self.held += number

    def give_back(self, number: int) -> None:
        """Holds so many less."""
        self._room.change(-number, self.held)
        self.held -= number


class ByteBudget:
    """Bounds the bytes that all requests hold, for any thread. One request alone may have more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self.held = 0

    def check(self, number: int, own: int = 0) -> None:
        """BusyError where `number` bytes are too many for one that holds `own` already."""
        others = self.held - own
        if others and self.held + number > self._most:
            raise BusyError("As many bytes wait as are accepted.")

    def change(self, number: int, own: int) -> None:
        """Takes bytes for one that holds `own`, or gives some back."""
        with self._lock:
            if number > 0:
                self.check(number, own)
            self.held += number

    @contextmanager
    def share(self) -> Iterator[Reservation]:
        """What a request holds, until it ends."""
        share = Reservation(self)
        try:
            yield share
        finally:
            self.change(-share.held, share.held)


def read_body(sent: Request, most: int, room: ByteBudget, share: Reservation) -> bytes | bytearray:
    """The body of a request without its Content-Encoding, at most `most` bytes, held in its share.

    What the header says is refused before anything is read; bytes count once they are there, so that who announces
    much and sends little takes nothing from others.

    Raises:
        UnsupportedMediaType: its Content-Encoding is none that is known.
        RequestEntityTooLarge: it is longer, which one in chunks or a compressed one only shows on its way.
        BusyError: there is no room for it.
        LateBodyError: it did not arrive in time.
        GoneError: the client broke off.
        RequestError: its chunks are damaged, or it is not what its Content-Encoding says.
    """
    codings = codings_of(sent.headers.get("Content-Encoding", ""))
    if (sent.content_length or 0) > most:
        refuse(most)
    room.check(sent.content_length or 0)
    parts: list[bytes] = []
    arriving = kept_in(parts, at_most(most, received(sent)), share)
    if not codings:
        return b"".join(arriving)

    def decode(compressed: Iterable[bytes]) -> Iterator[bytes]:
        return decoded(compressed, codings, lambda pieces: at_most(most, pieces))

    length = sum(map(len, decode(arriving)))  # nothing of it is kept: what turns out to be too long takes no memory
    return whole(parts, length, decode, share)


def whole(
    parts: list[bytes], length: int, decode: Callable[[Iterable[bytes]], Iterator[bytes]], share: Reservation
) -> bytearray:
    """The `length` bytes that compressed parts come to, held in a share in their place."""
    share.take(length)
    body = bytearray(length)
    place = 0
    for piece in decode(parts):
        body[place : place + len(piece)] = piece
        place += len(piece)
    share.give_back(sum(map(len, parts)))
    return body


def received(sent: Request) -> Iterator[bytes]:
    """What arrives of a body, in parts; GoneError where it ends before its length."""
    length = 0
    while part := read_part(sent):
        length += len(part)
        yield part
    if length < (sent.content_length or 0):
        raise ClientDisconnectedError("The client broke off.")


def at_most(most: int, parts: Iterable[bytes]) -> Iterator[bytes]:
    """The parts; RequestEntityTooLarge once they are more than `most` bytes together."""
    length = 0
    for part in parts:
        length += len(part)
        if length > most:
            refuse(most)
        yield part


def kept_in(kept: list[bytes], parts: Iterable[bytes], share: Reservation) -> Iterator[bytes]:
    """The parts, each held in a share and appended to `kept` before it is handed on."""
    for part in parts:
        share.take(len(part))
        kept.append(part)
        yield part


def read_part(sent: Request) -> bytes:
    """The next bytes of a body; none at its end."""
    try:
        return sent.stream.read(PART)
    except TimeoutError as exc:
        raise BodyTimeoutError("The request did not arrive in time.") from exc
    except OSError as exc:
        raise ClientDisconnectedError("The client broke off.") from exc
    except ParseException as exc:
        raise RequestError("The body's chunks are damaged.") from exc


def refuse(most: int) -> NoReturn:
    raise RequestEntityTooLarge(f"The body is larger than {most / 1e6:g} MB, the most for one request.")
