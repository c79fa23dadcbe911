"""Lingering close of answered connections: if closed at once, a client that still uploads would lose its answer."""

import socket
import time
from selectors import EVENT_READ, BaseSelector

IDLE_SECONDS = 5  # without a byte; this and the next are what nginx calls lingering_timeout and lingering_time
ALL_SECONDS = 30
PART = 65536  # bytes that are read at a time


class Lingering:
    """Connections whose input is read and discarded, on the events of `poller`; used by its thread only."""

    def __init__(self, poller: BaseSelector) -> None:
        self._poller = poller
        self._ends: dict[socket.socket, tuple[float, float]] = {}  # without another byte, and in all; first ends first

    def add(self, client: socket.socket) -> None:
        """Shut down the sending side of a connection, and continue to read.

        Raises:
            OSError, ValueError: the client has disconnected.
        """
        client.setblocking(False)
        client.shutdown(socket.SHUT_WR)
        self._poller.register(client, EVENT_READ, self._drain)
        now = time.monotonic()
        self._ends[client] = (now + IDLE_SECONDS, now + ALL_SECONDS)

    def end(self, most: int) -> None:
        """Close the connections that are idle for too long, and the longest idle ones of more than `most`."""
        now = time.monotonic()
        for client, (idle, _) in list(self._ends.items()):
            if idle > now and len(self._ends) <= most:
                break
            self._part(client)

    def _drain(self, client: socket.socket) -> None:
        try:
            more = bool(client.recv(PART))
        except BlockingIOError:
            return
        except OSError:
            more = False
        now = time.monotonic()
        _, last = self._ends.pop(client)
        self._ends[client] = (now + IDLE_SECONDS, last)  # behind all others now
        if not more or now > last:
            self._part(client)

    def _part(self, client: socket.socket) -> None:
        del self._ends[client]
        self._poller.unregister(client)
        client.close()
