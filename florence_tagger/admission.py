"""A request's frames at the scheduler: the first has a slot reserved, the others wait for theirs."""

import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from florence_tagger.context import RequestContext
from florence_tagger.errors import BusyError, NotReadyError
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import Frame, FrameResult, Prompt

# Of one request, so that a large one leaves slots to others. It is enough to keep the model busy: files are decoded
# faster than frames are processed.
MAX_FRAMES_IN_FLIGHT = 8


class Admission:
    """Admits the frames of one request, for any of its threads, while its block is entered.

    A request reserves a slot before anything is done for it, so that it is refused early or not at all.
    """

    def __init__(self, scheduler: Scheduler, prompt: Prompt, context: RequestContext) -> None:
        self._scheduler = scheduler
        self._prompt = prompt
        self._context = context
        self._in_flight = threading.BoundedSemaphore(MAX_FRAMES_IN_FLIGHT)
        self._lock = threading.Lock()  # of the reservation
        self._reserved = False

    def __enter__(self) -> Self:
        """Reserve a slot; NotReadyError or BusyError if there is none."""
        self._scheduler.reserve()
        self._reserved = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._take_reservation():
            self._scheduler.release()

    def add(self, frame: Frame) -> Future[FrameResult]:
        """Queue a frame once there is a slot for it.

        Raises:
            NotReadyError: the service is stopping.
            ClientDisconnectedError: the request is canceled.
            TimeoutError: its deadline has passed.
        """
        self._context.poll(lambda seconds: self._in_flight.acquire(timeout=seconds) or None)
        try:
            result = self._context.poll(lambda seconds: self._add_within(seconds, frame))
        except BaseException:
            self._in_flight.release()
            raise
        result.add_done_callback(self._on_done)
        return result

    def _add_within(self, seconds: float, frame: Frame) -> Future[FrameResult] | None:
        reserved = self._take_reservation()
        try:
            return self._scheduler.add_request(frame, self._prompt, seconds, reserved, self._context.observer.on_start)
        except BusyError:
            return None
        except NotReadyError:
            if reserved:  # it was not used: the exit returns it
                self._reserved = True
            raise

    def _take_reservation(self) -> bool:
        """Return whether the reserved slot is still there, and give it to the caller."""
        with self._lock:
            reserved, self._reserved = self._reserved, False
            return reserved

    def _on_done(self, _result: Future[FrameResult]) -> None:
        self._in_flight.release()
        self._context.observer.on_frame_done()
