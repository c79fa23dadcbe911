"""Continuous batching: a bounded queue of frames, and the two threads that run the model on them.

One thread prefills frames, one after another; the other decodes the sequences of all prefilled frames together. If the
model is exclusive, as on a CPU, the two do not overlap, and prefill goes first while there is capacity, because
decoding eight sequences together takes half as long as decoding them one after another.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from florence_tagger.errors import NOT_READY, STOPPING, BusyError, NotReadyError
from florence_tagger.schemas import OBJECT_DETECTION, Frame, FrameResult, Prompt
from florence_tagger.telemetry import Stage, Telemetry


class Model(Protocol):
    """A model that the scheduler runs."""

    @property
    def capacity(self) -> int:
        """Maximum number of frames in the model."""

    @property
    def exclusive(self) -> bool:
        """True if `prefill` and `step` must not run at the same time."""

    def prefill(self, frame: Frame, prompt: Prompt) -> Any:
        """Encode a frame and a prompt for the decoder."""

    def add(self, key: Hashable, prefilled: Any) -> None:
        """Add a prefilled frame to the running sequences; a call that raises adds nothing."""

    def step(self) -> Mapping[Any, FrameResult | Exception]:
        """Decode one token for every running sequence, and return the outcomes of the finished ones by key.

        A call that raises has dropped all running sequences.
        """


@dataclass(frozen=True, eq=False)
class QueuedFrame:
    """A frame with its prompt, the future for its result, and a callback for the start of its prefill."""

    frame: Frame
    prompt: Prompt
    on_start: Callable[[], None]
    result: Future[FrameResult] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)


class Scheduler:
    """Owner of a model and its two threads, which processes frames in the order of `add_request`.

    A request first reserves a queue slot, so that it is refused before any work is done for it. Its first frame takes
    that slot; its other frames wait for free slots.

    Args:
        load: creates the model; called once, in the prefill thread.
        queue_size: maximum number of waiting frames, reserved slots included.
        on_failure: called in the prefill thread with the exception that `load` raised; no frame is processed after it.
        telemetry: receives durations and batch sizes.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        queue_size: int,
        on_failure: Callable[[Exception], None] = lambda exc: None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._load = load
        self._on_failure = on_failure
        self._queue_size = queue_size
        self._telemetry = telemetry or Telemetry()
        lock = threading.Lock()  # guards everything below
        self._state_changed = threading.Condition(lock)  # the model's threads wait for it
        self._slot_freed = threading.Condition(lock)  # `add_request` waits for it
        self._waiting: deque[QueuedFrame] = deque()
        self._reserved = 0
        self._prefilling: QueuedFrame | None = None
        self._prefilled: list[tuple[QueuedFrame, Any]] = []
        self._running: set[QueuedFrame] = set()
        self._busy_since: dict[Stage, float] = {}
        self._ready = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="prefill", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """True if frames are accepted: the model is loaded and the scheduler is not closed."""
        return self._ready.is_set() and not self._closed

    def wait_until_ready(self) -> None:
        """Block until the model is loaded; never returns if loading fails."""
        self._ready.wait()

    @property
    def busy_seconds(self) -> float:
        """Seconds since the current prefill or decode step began; 0 if none is in progress."""
        since = min(self._busy_since.copy().values(), default=None)
        return 0.0 if since is None else time.monotonic() - since

    @property
    def waiting(self) -> int:
        """Number of waiting frames."""
        return len(self._waiting)

    @property
    def reserved(self) -> int:
        """Number of reserved queue slots that no frame has taken yet."""
        return self._reserved

    @property
    def running(self) -> int:
        """Number of frames in the model, in prefill or decode."""
        return len(self._prefilled) + len(self._running) + (Stage.PREFILL in self._busy_since)

    def check(self) -> None:
        """Raise if no queue slot can be reserved.

        Raises:
            NotReadyError: the model is not loaded, or the scheduler is closed.
            BusyError: the queue is full.
        """
        self._check_ready()
        self._check_queue(len(self._waiting) + self._reserved)

    def _check_ready(self) -> None:
        if not self.ready:
            raise NotReadyError(STOPPING if self._closed else NOT_READY)

    def _check_queue(self, num_taken: int) -> None:
        if num_taken >= self._queue_size:
            raise BusyError("As many documents wait as are accepted.")

    def reserve(self) -> None:
        """Reserve a queue slot until `add_request` takes it or `release` returns it; raises as `check` does."""
        with self._state_changed:
            self.check()
            self._reserved += 1

    def release(self) -> None:
        """Return a reserved queue slot."""
        with self._slot_freed:
            self._reserved -= 1
            self._slot_freed.notify()

    def add_request(
        self,
        frame: Frame,
        prompt: Prompt = OBJECT_DETECTION,
        timeout: float = 0.0,
        reserved: bool = False,
        on_start: Callable[[], None] = lambda: None,
    ) -> Future[FrameResult]:
        """Queue a frame in its reserved slot, or wait for a free slot for at most `timeout` seconds.

        Args:
            frame: the frame to process.
            prompt: the task and its text.
            timeout: seconds.
            reserved: the frame takes a slot that `reserve` reserved for it.
            on_start: called in the prefill thread when the frame's prefill begins.

        Raises:
            NotReadyError: the model is not loaded, or the scheduler is closed.
            BusyError: no slot became free in time.
        """
        queued = QueuedFrame(frame, prompt, on_start)
        queued.result.add_done_callback(partial(self._drop_canceled, queued))
        with self._slot_freed:
            # Slots reserved by other requests do not count here: those requests may be waiting for this frame's result.
            self._slot_freed.wait_for(
                lambda: reserved or not self.ready or len(self._waiting) < self._queue_size, timeout
            )
            self._check_ready()
            if not reserved:
                self._check_queue(len(self._waiting))
            self._reserved -= reserved
            self._waiting.append(queued)
            self._state_changed.notify_all()
        return queued.result

    def _drop_canceled(self, queued: QueuedFrame, result: Future[FrameResult]) -> None:
        """Free the slot of a frame that is canceled while it waits."""
        if not result.cancelled():
            return
        with self._slot_freed:
            if queued in self._waiting:
                self._waiting.remove(queued)
                self._slot_freed.notify()
                self._state_changed.notify_all()

    def close(self) -> None:
        """Stop accepting frames, cancel the waiting ones, and return when all frames in the model are finished."""
        for queued in self._stop():
            queued.result.cancel()
        self._thread.join()

    def abort_all(self, error: Exception) -> None:
        """Stop accepting frames and fail all of them, even those in a model that never returns."""
        waiting = self._stop()
        with self._state_changed:  # the model's threads may still return
            running = (*(queued for queued, _ in self._prefilled), *self._running, self._prefilling)
        for queued in (*waiting, *running):
            if queued is not None:
                with suppress(InvalidStateError):  # it is finished or canceled
                    queued.result.set_exception(error)

    def _stop(self) -> Sequence[QueuedFrame]:
        """Stop accepting frames, and return the waiting ones."""
        with self._state_changed:
            self._closed = True
            waiting = tuple(self._waiting)
            self._waiting.clear()
            self._state_changed.notify_all()
            self._slot_freed.notify_all()
        return waiting

    def _run(self) -> None:
        try:
            model = self._load()
        except Exception as exc:  # noqa: BLE001 - any failure must be reported: the thread ends here
            self._on_failure(exc)
            return
        decoder = threading.Thread(target=self._decode_frames, args=(model,), name="decode", daemon=True)
        decoder.start()
        self._ready.set()
        self._prefill_frames(model)
        decoder.join()

    def _prefill_frames(self, model: Model) -> None:
        """Prefill waiting frames until the scheduler is closed."""
        while (queued := self._next_frame(model)) is not None:
            self._telemetry.observe_stage(Stage.QUEUE, time.monotonic() - queued.queued_at)
            try:
                queued.on_start()
                prefilled = model.prefill(queued.frame, queued.prompt)
            except Exception as exc:  # noqa: BLE001 - one frame's failure must not end the thread
                self._end(Stage.PREFILL, {queued: exc})
            else:
                self._end(Stage.PREFILL, prefilled=[(queued, prefilled)])

    def _decode_frames(self, model: Model) -> None:
        """Decode prefilled frames until the scheduler is closed and the model is empty."""
        while (admitted := self._admit(model)) is not None:
            outcomes: dict[QueuedFrame, FrameResult | Exception] = {}
            for queued, prefilled in admitted:
                try:
                    model.add(queued, prefilled)
                except Exception as exc:  # noqa: BLE001 - as above
                    outcomes[queued] = exc
            self._telemetry.observe_step(len(self._running))
            try:
                outcomes |= model.step()
            except Exception as exc:  # noqa: BLE001 - it fails all frames of the step, but must not end the thread
                outcomes = dict.fromkeys(self._running, exc)
            self._end(Stage.DECODE_STEP, outcomes)

    def _may_prefill(self, model: Model) -> bool:
        has_frame = bool(self._waiting) and self.running < model.capacity
        return has_frame and not self._excluded_by(Stage.DECODE_STEP, model)

    def _may_decode(self, model: Model) -> bool:
        prefill_first = model.exclusive and self._waiting and self.running < model.capacity
        has_sequence = bool(self._prefilled or self._running)
        return has_sequence and not prefill_first and not self._excluded_by(Stage.PREFILL, model)

    def _excluded_by(self, stage: Stage, model: Model) -> bool:
        """Return True if the given stage is in progress and excludes the other one."""
        return model.exclusive and stage in self._busy_since

    def _next_frame(self, model: Model) -> QueuedFrame | None:
        """Wait until prefill may run, and return the oldest waiting frame; None if the scheduler is closed."""
        with self._state_changed:
            while True:
                self._state_changed.wait_for(lambda: self._closed or self._may_prefill(model))
                if self._closed:
                    return None
                queued = self._waiting.popleft()
                self._slot_freed.notify()
                if queued.result.set_running_or_notify_cancel():
                    self._prefilling = queued
                    self._busy_since[Stage.PREFILL] = time.monotonic()
                    return queued
                self._state_changed.notify_all()  # the frame was canceled: the decode thread need not wait for it

    def _admit(self, model: Model) -> list[tuple[QueuedFrame, Any]] | None:
        """Wait until decode may run, and return the frames that join its next step; None if no step is left to run."""
        with self._state_changed:
            self._state_changed.wait_for(lambda: self._may_decode(model) or (self._closed and not self.running))
            if not self.running:
                return None
            admitted, self._prefilled = self._prefilled, []
            self._running.update(queued for queued, _ in admitted)
            self._busy_since[Stage.DECODE_STEP] = time.monotonic()
            return admitted

    def _end(
        self,
        stage: Stage,
        outcomes: Mapping[QueuedFrame, FrameResult | Exception] = MappingProxyType({}),
        prefilled: Sequence[tuple[QueuedFrame, Any]] = (),
    ) -> None:
        """End a prefill or decode step, with the outcomes of finished frames and the frames that are now prefilled."""
        for queued, outcome in outcomes.items():
            with suppress(InvalidStateError):  # it was aborted
                if isinstance(outcome, Exception):
                    queued.result.set_exception(outcome)
                else:
                    self._telemetry.observe_result(outcome)
                    queued.result.set_result(outcome)
        with self._state_changed:
            self._prefilling = None if stage is Stage.PREFILL else self._prefilling
            self._running.difference_update(outcomes)
            self._prefilled.extend(prefilled)
            seconds = time.monotonic() - self._busy_since.pop(stage)
            # A thread that wakes takes a core from the next step, and after most steps has nothing to do.
            if self._waiting or outcomes or prefilled or self._closed:
                self._state_changed.notify_all()
        self._telemetry.observe_stage(stage, seconds)
