"""Same bytes, same answer: results kept by the hash of the file.

Scanned shares are full of copies. A copy that comes while the first is still being looked at waits for the same answer.
"""

import hashlib
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

from cachetools import LRUCache

from florence_tagger.schemas import DocumentResult


def key_of(wanted: Hashable, content: bytes) -> Hashable:
    """What a result depends on while model and settings are the same: what is `wanted` of a file, and the file."""
    return wanted, hashlib.sha256(content).digest()


@dataclass
class Pending:
    """A result that is wanted, those who wait for it, and once it is queued the work that brings it."""

    waiting: list[Future[DocumentResult]] = field(default_factory=list)
    source: Future[DocumentResult] | None = None


class ResultCache:
    """The results of at most `entries` files, the least recently asked for forgotten first; for any thread.

    With no entries nothing is kept and nothing shared.

    Attributes:
        hits, misses: how many files were known, or under way, and how many were not.
    """

    def __init__(self, entries: int) -> None:
        self._known: LRUCache[Hashable, DocumentResult] = LRUCache(entries)
        self._pending: dict[Hashable, Pending] = {}
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._known)

    def result(self, key: Hashable, submit: Callable[[], Future[DocumentResult]]) -> Future[DocumentResult]:
        """The result of a file, from `submit` if it is not known and not under way.

        Each caller has a future of its own; the work is cancelled once all who wait for it have cancelled theirs. What
        `submit` raises is raised, and failures are not kept.
        """
        with self._lock:
            if (known := self._find(key)) is not None:
                self.hits += 1
                return known
            self.misses += 1
            pending = Pending()
            mine = self._join(key, pending)
            if self._known.maxsize:
                self._pending[key] = pending
        try:
            source = submit()  # may take its time, or wait for a place in the queue
        except Exception as exc:
            self._settle(key, pending, exc)
            raise
        self._attach(key, pending, source)
        return mine

    def _find(self, key: Hashable) -> Future[DocumentResult] | None:
        if key in self._known:
            found: Future[DocumentResult] = Future()
            found.set_result(self._known[key])
            return found
        pending = self._pending.get(key)
        return None if pending is None else self._join(key, pending)

    def _join(self, key: Hashable, pending: Pending) -> Future[DocumentResult]:
        """One more who waits for a result."""
        mine: Future[DocumentResult] = Future()
        pending.waiting.append(mine)
        mine.add_done_callback(lambda done: self._leave(key, pending) if done.cancelled() else None)
        return mine

    def _attach(self, key: Hashable, pending: Pending, source: Future[DocumentResult]) -> None:
        """Notes the work that brings a result."""
        with self._lock:
            pending.source = source
            abandoned = all(future.cancelled() for future in pending.waiting)
        if abandoned:
            source.cancel()
        source.add_done_callback(lambda done: self._settle(key, pending, outcome_of(done)))

    def _leave(self, key: Hashable, pending: Pending) -> None:
        """Gives up a result that nobody waits for any more, if it has not begun."""
        with self._lock:
            if not all(future.cancelled() for future in pending.waiting):
                return
            self._forget(key, pending)
        if pending.source is not None:
            pending.source.cancel()

    def _settle(self, key: Hashable, pending: Pending, outcome: DocumentResult | BaseException) -> None:
        """Hands a result, or why there is none, to all who wait for it."""
        with self._lock:
            self._forget(key, pending)
            # another time an incomplete one may be complete: its decoder may have been too slow or too small
            if isinstance(outcome, DocumentResult) and not outcome.incomplete and self._known.maxsize:
                self._known[key] = outcome
            waiting = tuple(pending.waiting)
        for future in waiting:
            if isinstance(outcome, CancelledError):
                future.cancel()
            elif not future.set_running_or_notify_cancel():
                continue
            elif isinstance(outcome, DocumentResult):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

    def _forget(self, key: Hashable, pending: Pending) -> None:
        if self._pending.get(key) is pending:
            del self._pending[key]


def outcome_of(done: Future[DocumentResult]) -> DocumentResult | BaseException:
    """The result of a future that is done, or what it would raise."""
    if done.cancelled():
        return CancelledError()
    return done.exception() or done.result()
