"""The body of a request, with its bounds: the bytes of one, the bytes of all, and time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from flask import Request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import RequestEntityTooLarge

from florence_tagger.errors import BusyError, GoneError, LateBodyError, RequestError

PART = 1024 * 1024  # bytes that are read at a time


class Share:
    """The bytes that one request holds."""

    def __init__(self, room: "Room") -> None:
        self._room = room
        self.held = 0

    def take(self, number: int) -> None:
        """Holds so many more; BusyError where they are too many with those of others."""
        self._room.change(number, self.held)
        self.held += number


class Room:
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
    def share(self) -> Iterator[Share]:
        """What a request holds, until it ends."""
        share = Share(self)
        try:
            yield share
        finally:
            self.change(-share.held, share.held)


def read_body(sent: Request, most: int, room: Room, share: Share) -> bytes:
    """The body of a request, at most `most` bytes, held in its share.

    What the header says is refused before anything is read; bytes count once they are there, so that who announces
    much and sends little takes nothing from others.

    Raises:
        RequestEntityTooLarge: it is longer, which one in chunks only shows on its way.
        BusyError: there is no room for it.
        LateBodyError: it did not arrive in time.
        GoneError: the client broke off.
        RequestError: its chunks are damaged.
    """
    expected = sent.content_length
    if expected is not None and expected > most:
        refuse(most)
    room.check(expected or 0)
    parts: list[bytes] = []
    while part := read_part(sent):
        if share.held + len(part) > most:
            refuse(most)
        share.take(len(part))
        parts.append(part)
    if expected is not None and share.held < expected:
        raise GoneError("The client broke off.")
    return b"".join(parts)


def read_part(sent: Request) -> bytes:
    """The next bytes of a body; none at its end."""
    try:
        return sent.stream.read(PART)
    except TimeoutError as exc:
        raise LateBodyError("The request did not arrive in time.") from exc
    except OSError as exc:
        raise GoneError("The client broke off.") from exc
    except ParseException as exc:
        raise RequestError("The body's chunks are damaged.") from exc


def refuse(most: int) -> NoReturn:
    raise RequestEntityTooLarge(f"The body is larger than {most / 1e6:g} MB, the most for one request.")
