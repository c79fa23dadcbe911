"""The one place where threads share the model: a bounded queue before it and the thread that owns it.

The model is loaded in that thread, so that a server answers from its first moment, and used in no other: the decoder's
cache is state.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from florence_tagger.errors import BusyError, NotReadyError
from florence_tagger.schemas import Detection, Frame

logger = logging.getLogger(__name__)


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
        self._queue: queue.Queue[Work | None] = queue.Queue(queue_size)
        self._ready = threading.Event()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._ready.is_set()

    @property
    def busy_seconds(self) -> float:
        """For how long the model has been at the frame it is at; 0 when it has none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def waiting(self) -> int:
        """How many frames wait."""
        return self._queue.qsize()

    def submit(self, frame: Frame, timeout: float = 0.0) -> Future[Detection]:
        """Queues a frame, waiting for a place for at most `timeout` seconds.

        Raises:
            NotReadyError: the model is not loaded.
            BusyError: there was no place in time.
        """
        if not self.ready:
            raise NotReadyError("The model is not ready yet.")
        work = Work(frame, Future())
        try:
            self._queue.put(work, timeout > 0, timeout)
        except queue.Full:
            raise BusyError("As many documents wait as are accepted.") from None
        return work.result

    def close(self) -> None:
        """Ends the thread after the frame it is at; what waits is cancelled."""
        while self._thread.is_alive():
            try:
                while (work := self._queue.get_nowait()) is not None:
                    work.result.cancel()
            except queue.Empty:
                pass
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                continue
            self._thread.join()

    def _run(self) -> None:
        try:
            model = self._load()
        except Exception as exc:  # noqa: BLE001 - whatever it is, somebody must be told: the thread ends here
            self._on_failure(exc)
            return
        self._ready.set()
        while (work := self._queue.get()) is not None:
            if work.result.set_running_or_notify_cancel():
                self._treat(model, work)

    def _treat(self, model: Model, work: Work) -> None:
        self._busy_since = time.monotonic()
        try:
            work.result.set_result(model.detect(work.frame))
        except Exception as exc:  # noqa: BLE001 - one frame's failure is its sender's, the thread lives on
            work.result.set_exception(exc)
        finally:
            self._busy_since = None
