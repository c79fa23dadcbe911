"""Same bytes, same answer: detections kept by the hash of the file they were found in.

Scanned shares are full of copies. A copy that comes while the first is still being looked at waits for the same answer.
"""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from cachetools import LRUCache

from florence_tagger.schemas import Detection


def key_of(task: str, content: bytes) -> str:
    """What a detection depends on, as long as model and settings are the same: the task and the file."""
    return f"{task} {hashlib.sha256(content).hexdigest()}"


@dataclass
class Pending:
    """A detection under way, and those who wait for it."""

    source: Future[Detection]
    waiting: list[Future[Detection]] = field(default_factory=list)


class Results:
    """The detections of at most `entries` files, the least recently asked for forgotten first; for any thread.

    With no entries nothing is kept and nothing shared.

    Attributes:
        hits, misses: how many files were known, or under way, and how many were not.
    """

    def __init__(self, entries: int) -> None:
        self._known: LRUCache[str, Detection] = LRUCache(entries)
        self._pending: dict[str, Pending] = {}
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._known)

    def detection(self, key: str, submit: Callable[[], Future[Detection]]) -> Future[Detection]:
        """The detection of a file, from `submit` if it is not known and not under way.

        Each caller has a future of its own; the work is cancelled once all who wait for it have cancelled theirs. What
        `submit` raises is raised, and detections that fail are not kept.
        """
        with self._lock:
            if known := self._find(key):
                self.hits += 1
                return known
            self.misses += 1
        if not self._known.maxsize:
            return submit()
        source = submit()  # may wait for a place in the queue, so not under the lock
        with self._lock:
            pending = self._pending[key] = Pending(source)
            mine = self._join(pending)
        source.add_done_callback(lambda done: self._settle(key, pending))
        return mine

    def _find(self, key: str) -> Future[Detection] | None:
        if key in self._known:
            found: Future[Detection] = Future()
            found.set_result(self._known[key])
            return found
        pending = self._pending.get(key)
        return None if pending is None else self._join(pending)

    def _join(self, pending: Pending) -> Future[Detection]:
        """One more who waits for a detection."""
        mine: Future[Detection] = Future()
        pending.waiting.append(mine)
        mine.add_done_callback(lambda done: self._leave(pending) if done.cancelled() else None)
        return mine

    def _leave(self, pending: Pending) -> None:
        """Gives up a detection that nobody waits for any more, if it has not begun."""
        if all(future.cancelled() for future in pending.waiting):
            pending.source.cancel()

    def _settle(self, key: str, pending: Pending) -> None:
        """Hands a detection to all who wait for it."""
        source = pending.source
        failed = source.cancelled() or source.exception() is not None
        with self._lock:
            if self._pending.get(key) is pending:
                del self._pending[key]
            if not failed:
                self._known[key] = source.result()
            waiting = tuple(pending.waiting)
        for future in waiting:
            if source.cancelled():
                future.cancel()
            elif not future.set_running_or_notify_cancel():
                continue
            elif (error := source.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(source.result())
