"""The one place where threads share the model: a bounded queue before it and the thread that owns it.

The model is loaded in that thread, so that a server answers from its first moment, and used in no other: the decoder's
cache is state.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from florence_tagger.errors import BusyError, NotReadyError
from florence_tagger.schemas import Detection, Frame


class Model(Protocol):
    """What the queue feeds."""

    def detect(self, frame: Frame) -> Detection: ...


@dataclass(frozen=True)
class Work:
    """A frame that waits, and where its detection goes."""

    frame: Frame
    result: Future[Detection]


class Batcher:
    """Runs a model in a thread of its own, one frame after the other, in the order of `submit`.

    Args:
        load: makes the model; called once, in the thread.
        queue_size: most frames that wait.
        on_failure: told what `load` raised, in the thread; nothing is treated after that.
    """

    def __init__(
        self, load: Callable[[], Model], queue_size: int, on_failure: Callable[[Exception], None] = lambda exc: None
    ) -> None:
        self._load = load
        self._on_failure = on_failure
        self._queue_size = queue_size
        self._queue: deque[Work] = deque()
        self._changed = threading.Condition()  # of the queue, and of the two flags below
        self._ready = False
        self._closed = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether frames are taken: the model is loaded and the service is not about to stop."""
        return self._ready and not self._closed

    @property
    def busy_seconds(self) -> float:
        """For how long the model has been at the frame it is at; 0 when it has none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def waiting(self) -> int:
        """How many frames wait."""
        return len(self._queue)

    def submit(self, frame: Frame, timeout: float = 0.0) -> Future[Detection]:
        """Queues a frame, waiting for a place for at most `timeout` seconds.

        Raises:
            NotReadyError: the model is not loaded, or the service is about to stop.
            BusyError: there was no place in time.
        """
        work = Work(frame, Future())
        with self._changed:
            self._changed.wait_for(lambda: not self.ready or len(self._queue) < self._queue_size, timeout)
            if not self.ready:
                raise NotReadyError("The service is stopping." if self._closed else "The model is not ready yet.")
            if len(self._queue) >= self._queue_size:
                raise BusyError("As many documents wait as are accepted.")
            self._queue.append(work)
            self._changed.notify_all()
        return work.result

    def close(self) -> None:
        """Takes nothing more, cancels what waits, and returns when the frame that the model is at is done."""
        with self._changed:
            self._closed = True
            while self._queue:
                self._queue.popleft().result.cancel()
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            model = self._load()
        except Exception as exc:  # noqa: BLE001 - whatever it is, somebody must be told: the thread ends here
            self._on_failure(exc)
            return
        self._ready = True
        while (work := self._next()) is not None:
            if work.result.set_running_or_notify_cancel():
                self._treat(model, work)

    def _next(self) -> Work | None:
        """The frame that waits longest, once there is one; None when the thread shall end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue)
            if self._closed:
                return None
            work = self._queue.popleft()
            self._changed.notify_all()
        return work

    def _treat(self, model: Model, work: Work) -> None:
        self._busy_since = time.monotonic()
        try:
            work.result.set_result(model.detect(work.frame))
        except Exception as exc:  # noqa: BLE001 - one frame's failure is its sender's, the thread lives on
            work.result.set_exception(exc)
        finally:
            self._busy_since = None
