"""The one place where threads share the model: a bounded queue before it and the two threads that run it.

One thread looks at the frames, one after the other; the other decodes the answers of all that were looked at together.
Where both run on the same cores they take turns, and looking goes first as long as there is room, because decoding
eight answers together takes half as long as one after the other.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from florence_tagger.errors import NOT_READY, STOPPING, BusyError, NotReadyError
from florence_tagger.schemas import OBJECT_DETECTION, Frame, FrameResult, Prompt
from florence_tagger.telemetry import Stage, Telemetry


class Model(Protocol):
    """What the queue feeds."""

    @property
    def capacity(self) -> int:
        """Most frames under way."""

    @property
    def exclusive(self) -> bool:
        """Whether `encode` and `step` shall not run at the same time."""

    def encode(self, frame: Frame, prompt: Prompt) -> Any:
        """Looks at a frame for what is asked."""

    def start(self, key: Hashable, encoded: Any) -> None:
        """Begins the answer for a frame; one that raises has not begun it."""

    def step(self) -> Mapping[Any, FrameResult | Exception]:
        """Takes the answers under way a token on, and tells those that ended. One that raises has given up all."""


@dataclass(frozen=True, eq=False)
class Work:
    """A frame that waits, what it is asked for, where its detection goes, and who is told that the model begins."""

    frame: Frame
    prompt: Prompt
    begun: Callable[[], None]
    result: Future[FrameResult] = field(default_factory=Future)
    queued: float = field(default_factory=time.monotonic)


class Scheduler:
    """Runs a model in two threads of its own, the frames in the order of `submit`.

    A request first reserves a place, so that it is refused before any work was done for it. With that it is sure of
    the place of one frame; for those of its others it waits.

    Args:
        load: makes the model; called once, in the first of the threads.
        queue_size: most frames that wait, places that are reserved included.
        on_failure: told what `load` raised, in the thread; nothing is treated after that.
        telemetry: told what takes how long.
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
        lock = threading.Lock()  # of everything below
        self._changed = threading.Condition(lock)  # the model's threads wait for it
        self._places = threading.Condition(lock)  # in the queue; `submit` waits for them
        self._queue: deque[Work] = deque()
        self._reserved = 0
        self._encoding: Work | None = None
        self._encoded: list[tuple[Work, Any]] = []
        self._decoding: set[Work] = set()
        self._busy_since: dict[Stage, float] = {}
        self._ready = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether frames are taken: the model is loaded and the service is not about to stop."""
        return self._ready.is_set() and not self._closed

    def wait_until_ready(self) -> None:
        """Returns once the model is loaded; must not be called where loading it may fail."""
        self._ready.wait()

    @property
    def busy_seconds(self) -> float:
        """For how long the model has been at the frame or step it is at; 0 when it has none."""
        since = min(self._busy_since.copy().values(), default=None)
        return 0.0 if since is None else time.monotonic() - since

    @property
    def waiting(self) -> int:
        """How many frames wait."""
        return len(self._queue)

    @property
    def reserved(self) -> int:
        """How many places are reserved that no frame has taken yet."""
        return self._reserved

    @property
    def under_way(self) -> int:
        """How many frames the model is at."""
        return len(self._encoded) + len(self._decoding) + (Stage.ENCODE in self._busy_since)

    def check(self) -> None:
        """Whether a place could be reserved.

        Raises:
            NotReadyError: the model is not loaded, or the service is about to stop.
            BusyError: there is none.
        """
        self._check_ready()
        self._check_room(len(self._queue) + self._reserved)

    def _check_ready(self) -> None:
        if not self.ready:
            raise NotReadyError(STOPPING if self._closed else NOT_READY)

    def _check_room(self, taken: int) -> None:
        if taken >= self._queue_size:
            raise BusyError("As many documents wait as are accepted.")

    def reserve(self) -> None:
        """Keeps a place for a frame, until `submit` takes it or `release` gives it back; raises as `check` does."""
        with self._changed:
            self.check()
            self._reserved += 1

    def release(self) -> None:
        """Gives a reserved place back."""
        with self._places:
            self._reserved -= 1
            self._places.notify()

    def submit(
        self,
        frame: Frame,
        prompt: Prompt = OBJECT_DETECTION,
        timeout: float = 0.0,
        reserved: bool = False,
        begun: Callable[[], None] = lambda: None,
    ) -> Future[FrameResult]:
        """Queues a frame in the place that was reserved for it, or waits for one for at most `timeout` seconds.

        `begun` is called in the model's thread when it begins with the frame.

        Raises:
            NotReadyError: the model is not loaded, or the service is about to stop.
            BusyError: there was no place in time.
        """
        work = Work(frame, prompt, begun)
        with self._places:
            # Places that others reserved are not counted here: what waits has work behind it that those may wait for.
            self._places.wait_for(lambda: reserved or not self.ready or len(self._queue) < self._queue_size, timeout)
            self._check_ready()
            if not reserved:
                self._check_room(len(self._queue))
            self._reserved -= reserved
            self._queue.append(work)
            self._changed.notify_all()
        return work.result

    def close(self) -> None:
        """Takes nothing more, cancels what waits, and returns when the frames that the model is at are done."""
        for work in self._stop():
            work.result.cancel()
        self._thread.join()

    def abort_all(self, error: Exception) -> None:
        """Takes nothing more and fails all frames, even those that the model is at and may never be done with."""
        waiting = self._stop()
        with self._changed:  # the model's threads may come back all the same
            under_way = (*(work for work, _ in self._encoded), *self._decoding, self._encoding)
        for work in (*waiting, *under_way):
            if work is not None:
                with suppress(InvalidStateError):  # it is done with, or given up
                    work.result.set_exception(error)

    def _stop(self) -> Sequence[Work]:
        """Takes nothing more; returns what waited."""
        with self._changed:
            self._closed = True
            waiting = tuple(self._queue)
            self._queue.clear()
            self._changed.notify_all()
            self._places.notify_all()
        return waiting

    def _run(self) -> None:
        try:
            model = self._load()
        except Exception as exc:  # noqa: BLE001 - whatever it is, somebody must be told: the thread ends here
            self._on_failure(exc)
            return
        decoder = threading.Thread(target=self._decode_frames, args=(model,), name="decode", daemon=True)
        decoder.start()
        self._ready.set()
        self._encode_frames(model)
        decoder.join()

    def _encode_frames(self, model: Model) -> None:
        """Encodes what is queued, until the service stops."""
        while (work := self._next_frame(model)) is not None:
            self._telemetry.took(Stage.QUEUE, time.monotonic() - work.queued)
            work.begun()
            try:
                encoded = model.encode(work.frame, work.prompt)
            except Exception as exc:  # noqa: BLE001 - one frame's failure is its sender's, the thread lives on
                self._end(Stage.ENCODE, {work: exc})
            else:
                self._end(Stage.ENCODE, encoded=[(work, encoded)])

    def _decode_frames(self, model: Model) -> None:
        """Decodes what is encoded, until the service stops and nothing is under way."""
        while (arrived := self._next_step(model)) is not None:
            outcomes: dict[Work, FrameResult | Exception] = {}
            for work, encoded in arrived:
                try:
                    model.start(work, encoded)
                except Exception as exc:  # noqa: BLE001 - as above
                    outcomes[work] = exc
            self._telemetry.stepped(len(self._decoding))
            try:
                outcomes |= model.step()
            except Exception as exc:  # noqa: BLE001 - it strikes all frames of the step, the thread lives on
                outcomes = dict.fromkeys(self._decoding, exc)
            self._end(Stage.DECODE_STEP, outcomes)

    def _may_encode(self, model: Model) -> bool:
        return bool(self._queue) and self.under_way < model.capacity and not self._blocked(model, Stage.DECODE_STEP)

    def _may_decode(self, model: Model) -> bool:
        waits = model.exclusive and self._queue and self.under_way < model.capacity
        return bool(self._encoded or self._decoding) and not waits and not self._blocked(model, Stage.ENCODE)

    def _blocked(self, model: Model, other: Stage) -> bool:
        """Whether the other stage has the turn."""
        return model.exclusive and other in self._busy_since

    def _next_frame(self, model: Model) -> Work | None:
        """The frame that waits longest, once its turn has come; None when the thread shall end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or self._may_encode(model))
                if self._closed:
                    return None
                work = self._queue.popleft()
                self._places.notify()
                if work.result.set_running_or_notify_cancel():
                    self._encoding = work
                    self._busy_since[Stage.ENCODE] = time.monotonic()
                    return work
                self._changed.notify_all()  # nothing comes of it: decoding, which let it go first, need not wait

    def _next_step(self, model: Model) -> list[tuple[Work, Any]] | None:
        """The frames that join the next step, once its turn has come; None when the thread shall end."""
        with self._changed:
            self._changed.wait_for(lambda: self._may_decode(model) or (self._closed and not self.under_way))
            if not self.under_way:
                return None
            arrived, self._encoded = self._encoded, []
            self._decoding.update(work for work, _ in arrived)
            self._busy_since[Stage.DECODE_STEP] = time.monotonic()
            return arrived

    def _end(
        self,
        stage: Stage,
        outcomes: Mapping[Work, FrameResult | Exception] = MappingProxyType({}),
        encoded: Sequence[tuple[Work, Any]] = (),
    ) -> None:
        """Ends a stage's turn: with frames that are done, or frames that are encoded."""
        for work, outcome in outcomes.items():
            with suppress(InvalidStateError):  # it was abandoned
                if isinstance(outcome, Exception):
                    work.result.set_exception(outcome)
                else:
                    self._telemetry.detected(outcome)
                    work.result.set_result(outcome)
        with self._changed:
            self._encoding = None if stage is Stage.ENCODE else self._encoding
            self._decoding.difference_update(outcomes)
            self._encoded.extend(encoded)
            took = time.monotonic() - self._busy_since.pop(stage)
            # Whoever wakes takes a core from the next step: after most steps there is nothing for them to do.
            if self._queue or outcomes or encoded or self._closed:
                self._changed.notify_all()
        self._telemetry.took(stage, took)
