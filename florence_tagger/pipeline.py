"""A document's content through the stages, in order: base64, frames, model, counts."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from florence_tagger.cache import ResultCache, key_of
from florence_tagger.documents import Part, cancel, gather
from florence_tagger.errors import STOPPING, BusyError, ClientDisconnectedError, DocumentError, NotReadyError, Reason
from florence_tagger.labels import Aliases
from florence_tagger.media.content import check_size, decode_base64
from florence_tagger.media.limits import LOOK_SECONDS
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.refinement import Refinement
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import (
    AUTO,
    OBJECT_DETECTION,
    DocumentResult,
    Frame,
    FrameResult,
    Prompt,
    Rules,
    Tiles,
)
from florence_tagger.telemetry import Stage, Telemetry
from florence_tagger.tiling import WHOLE, looks_at, plan_of

logger = logging.getLogger(__name__)

Content = str | bytes  # a file in base64, as requests have it, or as it is
Outcome = DocumentResult | DocumentError

# A request has at most so many documents and frames queued, so that a large one leaves places for others. It is enough
# to keep the model busy: files are decoded faster than they are looked at.
DOCUMENTS_UNDER_WAY = 8
FRAMES_UNDER_WAY = 8


class RequestObserver:
    """Hears how far a request is and is asked whether it is still wanted; this one forgets and never minds."""

    def begun(self) -> None:
        """The model begins with a frame; called in its thread."""

    def frame_done(self) -> None:
        """A frame is done with, one way or the other; called in any thread."""

    def document_done(self, outcome: Outcome) -> None:
        """A document is done with; called in the order of the documents."""

    def check(self) -> None:
        """Raises GoneError where nobody waits for the answer any more."""


@dataclass(frozen=True)
class RequestLimits:
    """Of one document and one request: bytes, seconds."""

    document_bytes: int
    request_seconds: float


@dataclass(frozen=True)
class Pipeline:
    """The stages that all requests go through."""

    decoders: DecoderPool
    scheduler: Scheduler
    results: ResultCache
    limits: RequestLimits
    telemetry: Telemetry = field(default_factory=Telemetry)
    aliases: Aliases = field(default_factory=Aliases)

    def run(
        self,
        contents: Sequence[Content | DocumentError],
        sampling: Sampling,
        prompt: Prompt = OBJECT_DETECTION,
        progress: RequestObserver | None = None,
        deadline: float | None = None,
        rules: Rules = Rules(),  # noqa: B008 - frozen
        tiles: Tiles = 1,
    ) -> list[Outcome]:
        """Treats the documents of a request; `contents` has the file of each, or why it has none.

        `tiles` says how many a side each picture is looked at in. They are frames of a video's budget.

        Files are decoded, one at a time, while the model is at the ones before. `deadline` is the monotonic time at
        which the request is answered with what is done.

        Raises:
            RequestError: two classes of the rules are the same thing.
            NotReadyError, BusyError: there is no place for the request.
            GoneError: nobody waits for the answer any more; what had not begun is given up.
        """
        if deadline is None:
            deadline = time.monotonic() + self.limits.request_seconds
        refinement = Refinement.of(rules, self.aliases)
        self.scheduler.reserve()
        run = Run(
            self,
            within_budget(sampling, tiles),
            sampling.max_frames,
            prompt,
            progress or RequestObserver(),
            deadline,
            refinement,
            tiles,
        )
        try:
            return run.outcomes(contents)
        finally:
            run.end()


@dataclass(frozen=True)
class Started:
    """A document under way: its result to come, and what it takes to start it again.

    Attributes:
        tiles: a side of each of its pictures, as in `DecodeOptions`.
        seen: what is known of its whole pictures.
    """

    content: Content
    result: Future[DocumentResult]
    tiles: tuple[int, ...]
    seen: Sequence[FrameResult]


@dataclass
class Run:
    """A request on its way through the stages.

    Attributes:
        max_frames: most looks at a video.
        deadline: monotonic time at which it is answered with what is done.
        reserved: the place that the request was given is not taken yet.
        under_way: of its documents those that are started and not finished, the oldest first.
        frames: of its frames those that may still be queued, the oldest first.
    """

    pipeline: Pipeline
    sampling: Sampling
    max_frames: int
    prompt: Prompt
    progress: RequestObserver
    deadline: float
    refinement: Refinement
    tiles: Tiles
    reserved: bool = True
    under_way: deque[Started | DocumentError] = field(default_factory=deque)
    frames: deque[Future[FrameResult]] = field(default_factory=deque)

    def outcomes(self, contents: Sequence[Content | DocumentError]) -> list[Outcome]:
        """What becomes of the documents, in their order."""
        outcomes: list[Outcome] = []

        def finish_oldest() -> None:
            outcomes.append(self.finish(self.under_way.popleft()))
            self.progress.document_done(outcomes[-1])

        for content in contents:
            if len(self.under_way) == DOCUMENTS_UNDER_WAY:
                finish_oldest()
            self.under_way.append(self.start(content, WHOLE if self.tiles == AUTO else (self.tiles,)))
        while self.under_way:
            finish_oldest()
        return outcomes

    def end(self) -> None:
        """Gives up what is still under way, and the place that was not taken."""
        for started in self.under_way:
            if isinstance(started, Started):
                started.result.cancel()
        if self.reserved:
            self.pipeline.scheduler.release()

    def start(
        self, content: Content | DocumentError, tiles: tuple[int, ...], seen: Sequence[FrameResult] = ()
    ) -> Started | DocumentError:
        """Decodes and queues one document, but not what was `seen` of it."""
        self.progress.check()
        if isinstance(content, DocumentError):
            return DocumentError(str(content), Reason.CONTENT)
        if time.monotonic() > self.deadline:
            return self._too_late()
        try:
            file = self._file_of(content)
        except DocumentError as exc:
            return DocumentError(str(exc), Reason.CONTENT)
        key = key_of((self.prompt, self.sampling, tiles), file)
        try:
            result = self.pipeline.results.result(key, lambda: self._submit(file, tiles, seen))
            return Started(content, result, tiles, seen)
        except DocumentError as exc:
            return exc
        except TimeoutError:
            return self._too_late()
        except NotReadyError as exc:
            return DocumentError(str(exc), Reason.STOPPING)

    def _file_of(self, content: Content) -> bytes:
        """The bytes of a document's file; DocumentError where there are none, or too many."""
        most = self.pipeline.limits.document_bytes
        return decode_base64(content, most) if isinstance(content, str) else check_size(content, most)

    def _submit(self, file: bytes, tiles: tuple[int, ...], seen: Sequence[FrameResult]) -> Future[DocumentResult]:
        """Decodes a file that is not known and queues its frames, one by one."""
        parts: list[Part] = []
        incomplete = False
        began = time.monotonic()
        decoded = self.pipeline.decoders.frames(file, self.sampling, self.deadline, self.progress.check, tiles)
        with closing(decoded) as frames:
            try:
                for frame in frames:
                    self._add(parts, frame, seen)
            except Exception as exc:
                # What there is of a video counts; without some of its pages a document would be counted wrong.
                incomplete = isinstance(exc, DocumentError) and bool(parts) and parts[-1].time_s is not None
                if not incomplete:
                    cancel(parts)
                    raise
                logger.warning("A video is counted by its first %d frames: %s", len(parts), exc)
        self.pipeline.telemetry.took(Stage.DECODE_FILE, time.monotonic() - began)
        self.pipeline.telemetry.cut(len({look for part in parts for _, look in part.tiles}))
        return gather(parts, incomplete, self.prompt.task.names_things)

    def _add(self, parts: list[Part], frame: Frame, seen: Sequence[FrameResult]) -> None:
        """Adds a frame to the pictures of a document, and queues it where it is not known what is in it."""
        if frame.tile is not None:
            parts[-1] = replace(parts[-1], tiles=(*parts[-1].tiles, (frame.tile, self._queue(frame))))
            return
        part = Part(Future(), frame.page, frame.time_s, frame.width, frame.height)
        if frame.repeats:
            part = replace(part, whole=parts[-1].whole, tiles=parts[-1].tiles)
        elif len(parts) < len(seen):
            part.whole.set_result(seen[len(parts)])
        else:
            part = replace(part, whole=self._queue(frame))
        parts.append(part)

    def _queue(self, frame: Frame) -> Future[FrameResult]:
        """Queues a frame, in the place that was reserved or in one that it waits for."""
        while len(self.frames) >= FRAMES_UNDER_WAY:
            self._await(self.frames.popleft())
        while True:
            self.progress.check()
            patience = min(self.deadline - time.monotonic(), LOOK_SECONDS)
            try:
                result = self.pipeline.scheduler.submit(
                    frame, self.prompt, max(patience, 0.0), self.reserved, self.progress.begun
                )
            except BusyError:
                if patience <= 0:
                    raise TimeoutError from None
                continue
            break
        self.reserved = False
        result.add_done_callback(lambda done: self.progress.frame_done())
        self.frames.append(result)
        return result

    def _await(self, result: Future[Any]) -> None:
        """Waits for something to be done; TimeoutError at the deadline, GoneError where it is not wanted any more."""
        while not result.done():  # `wait` alone does not see that something was cancelled
            wait([result], max(min(self.deadline - time.monotonic(), LOOK_SECONDS), 0))
            self.progress.check()
            if not result.done() and time.monotonic() >= self.deadline:
                raise TimeoutError

    def finish(self, started: Started | DocumentError) -> Outcome:
        """Waits for one document's result, at most until the deadline."""
        while isinstance(started, Started):
            try:
                self._await(started.result)
            except TimeoutError:
                started.result.cancel()
                return self._too_late()
            except ClientDisconnectedError:
                started.result.cancel()
                raise
            failure = CancelledError() if started.result.cancelled() else started.result.exception()
            if failure is None:
                result = started.result.result()
                tiles = self._tiles_for(started, result)
                if tiles == started.tiles:
                    return self._told(result)
                started = self.start(started.content, tiles, result.frames)
            elif isinstance(failure, ClientDisconnectedError | TimeoutError):
                # it was a copy of one whose request has ended before it was done
                started = self.start(started.content, started.tiles, started.seen)
            else:
                return as_outcome(failure)
        return started

    def _tiles_for(self, started: Started, result: DocumentResult) -> tuple[int, ...]:
        """The tiles a side of each picture of a document that its result calls for; those it had where it is final."""
        if self.tiles != AUTO or started.seen:
            return started.tiles
        left = self.max_frames - len(result.frames)
        return plan_of(result.frames, left, self.pipeline.decoders.image_size)

    def _told(self, result: DocumentResult) -> DocumentResult:
        if result.truncated:
            logger.warning("An answer was cut off at the most tokens: objects may be missing.")
        return self.refinement.apply(result)

    def _too_late(self) -> DocumentError:
        seconds = self.pipeline.limits.request_seconds
        return DocumentError(f"Not finished within the {seconds:g} seconds of a request.", Reason.LATE)


def within_budget(sampling: Sampling, tiles: Tiles) -> Sampling:
    """The sampling of videos whose frames are looked at in so many tiles a side: all looks are of one budget.

    Where what is seen decides on the tiles, half of the budget is kept for them.
    """
    looks = 2 if tiles == AUTO else looks_at(tiles)
    return replace(sampling, max_frames=max(sampling.max_frames // looks, 1))


def as_outcome(failure: BaseException) -> DocumentError:
    """What is said of a document whose result failed."""
    if isinstance(failure, CancelledError):
        return DocumentError(STOPPING, Reason.STOPPING)
    if isinstance(failure, DocumentError):
        return failure
    if isinstance(failure, NotReadyError):
        return DocumentError(str(failure), Reason.STOPPING)
    # The model's failure is this document's alone; the log has its trace.
    logger.error("The model failed on a document", exc_info=failure)
    return DocumentError("The model failed on this document; the log of the service says how.", Reason.MODEL)
