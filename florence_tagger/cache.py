"""Same file, same answer: results kept by the hash of the file, and computed once for all who ask meanwhile.

Scanned shares are full of copies. A copy that arrives while the first is processed waits for the same result.
"""

import hashlib
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future

from cachetools import LRUCache

from florence_tagger.context import RequestContext
from florence_tagger.errors import ClientDisconnectedError
from florence_tagger.schemas import DocumentResult

# The request that computes a result has ended without one: it says nothing about the file.
ENDED_EARLY = (ClientDisconnectedError, TimeoutError, CancelledError)


def key_of(options: Hashable, file: bytes) -> Hashable:
    """Return what a result depends on while model and settings are the same: a file and how it is processed."""
    return options, hashlib.sha256(file).digest()


class ResultCache:
    """The results of at most `max_entries` files, least recently used first out; for any thread.

    With 0 entries nothing is kept and nothing shared.

    Attributes:
        hits, misses: number of files that were known or being processed, and of those that were not.
    """

    def __init__(self, max_entries: int) -> None:
        self._known: LRUCache[Hashable, DocumentResult] = LRUCache(max_entries)
        self._in_flight: dict[Hashable, Future[DocumentResult]] = {}
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: Hashable) -> bool:
        """Return whether a result is known or being computed."""
        with self._lock:
            return key in self._known or key in self._in_flight

    def get_or_compute(
        self, key: Hashable, compute: Callable[[], DocumentResult], context: RequestContext
    ) -> DocumentResult:
        """Return the result of a key: the known one, that of the thread which computes it now, or from `compute`.

        If the request that computes it ends early, one of those that wait computes it. Failures and incomplete results
        are shared, but not kept: another time the file may be decoded to its end.

        Raises:
            ClientDisconnectedError, TimeoutError: as `context` says while it waits.
            Exception: whatever `compute` raises.
        """
        while True:
            with self._lock:
                if (known := self._known.get(key)) is not None:
                    self.hits += 1
                    return known
                flight = self._in_flight.get(key)
                if flight is None:
                    self.misses += 1
                    flight = Future()
                    if self._known.maxsize:
                        self._in_flight[key] = flight
                    break
            try:
                result = context.wait(flight)
            except CancelledError:
                continue
            with self._lock:
                self.hits += 1
            return result
        try:
            return self._compute(key, flight, compute)
        finally:
            del flight  # see `_compute`

    def _compute(
        self, key: Hashable, flight: Future[DocumentResult], compute: Callable[[], DocumentResult]
    ) -> DocumentResult:
        try:
            result = compute()
        except BaseException as exc:
            self._land(key)
            if isinstance(exc, ENDED_EARLY) or not isinstance(exc, Exception):
                flight.cancel()
            else:
                flight.set_exception(exc)
            raise
        else:
            self._land(key, None if result.incomplete else result)
            flight.set_result(result)
            return result
        finally:
            del flight  # else the error, its traceback and the file would be a cycle until garbage collection

    def _land(self, key: Hashable, result: DocumentResult | None = None) -> None:
        """End the computation of a key, and keep its result if there is one."""
        with self._lock:
            self._in_flight.pop(key, None)
            if result is not None and self._known.maxsize:
                self._known[key] = result
