"""A document's content through the stages, in order: base64, cache, frames, model, counts."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from contextvars import copy_context
from dataclasses import dataclass, field, replace

from florence_tagger.admission import Admission
from florence_tagger.cache import ResultCache, key_of
from florence_tagger.context import Outcome, RequestContext
from florence_tagger.errors import STOPPING, ClientDisconnectedError, DocumentError, NotReadyError, Reason
from florence_tagger.labels import Aliases
from florence_tagger.media.content import check_size, decode_base64
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.refinement import Refinement
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import (
    AUTO,
    OBJECT_DETECTION,
    Box,
    Content,
    DocumentResult,
    Frame,
    FrameResult,
    Prompt,
    Rules,
    Tiles,
)
from florence_tagger.telemetry import Stage, Telemetry
from florence_tagger.tiling import UNTILED, max_frames_per_picture, merge_tiles, plan_tiles

logger = logging.getLogger(__name__)

MAX_DOCUMENTS_IN_FLIGHT = 8  # of one request


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one document and one request: bytes, seconds."""

    document_bytes: int
    request_seconds: float


@dataclass(frozen=True)
class Pipeline:
    """The stages that all requests go through."""

    decoders: DecoderPool
    scheduler: Scheduler
    cache: ResultCache
    limits: RequestLimits
    telemetry: Telemetry = field(default_factory=Telemetry)
    aliases: Aliases = field(default_factory=Aliases)

    def run(
        self,
        contents: Sequence[Content | DocumentError],
        sampling: Sampling,
        prompt: Prompt = OBJECT_DETECTION,
        context: RequestContext | None = None,
        rules: Rules = Rules(),  # noqa: B008 - frozen
        tiles: Tiles = 1,
    ) -> list[Outcome]:
        """Process the documents of a request and return what becomes of each, in their order.

        Args:
            contents: the file of each document, or why it has none.
            sampling: of videos and animations; their tiles are part of its budget of frames.
            prompt: what the model is asked for.
            context: of the request; by default it ends after the seconds of the settings.
            rules: how detections become counts.
            tiles: per side of each picture.

        Raises:
            RequestError: two classes of the rules are the same thing.
            NotReadyError, BusyError: there is no slot for the request.
            ClientDisconnectedError: the request is canceled; what has not begun is given up.
        """
        context = context or RequestContext.within(self.limits.request_seconds)
        refinement = Refinement.of(rules, self.aliases)
        with Admission(self.scheduler, prompt, context) as admission:
            return PipelineRequest(self, admission, context, sampling, prompt, refinement, tiles).process_all(contents)


@dataclass(frozen=True)
class Picture:
    """A picture, page or video frame whose whole and tiles are in flight.

    Attributes:
        page, time_s, width, height: as in `Frame`.
        whole: its result to come; of a repeated frame that of the one before.
        tiles: each with its result to come.
    """

    page: int | None
    time_s: float | None
    width: int
    height: int
    whole: Future[FrameResult]
    tiles: tuple[tuple[Box, Future[FrameResult]], ...] = ()

    @property
    def futures(self) -> tuple[Future[FrameResult], ...]:
        """All results to come."""
        return (self.whole, *(future for _, future in self.tiles))

    def result(self, context: RequestContext, by_label: bool) -> FrameResult:
        """Return the merged result once the model is done; `by_label` as of `tiling.merge`."""
        whole, *in_tiles = [context.wait(future) for future in self.futures]
        placed = replace(whole, page=self.page, time_s=self.time_s, width=self.width, height=self.height, tiles=())
        return merge_tiles(placed, [box for box, _ in self.tiles], in_tiles, by_label)


@dataclass(frozen=True, eq=False)
class PipelineRequest:
    """A request on its way through the stages."""

    pipeline: Pipeline
    admission: Admission
    context: RequestContext
    sampling: Sampling
    prompt: Prompt
    refinement: Refinement
    tiles: Tiles

    def process_all(self, contents: Sequence[Content | DocumentError]) -> list[Outcome]:
        """Process documents, several at once in threads, and report each in their order."""
        outcomes = []
        variables = copy_context()  # the job's id, for the log
        with ThreadPoolExecutor(MAX_DOCUMENTS_IN_FLIGHT, "document") as pool:
            run = map if len(contents) == 1 else pool.map
            for outcome in run(lambda content: variables.copy().run(self.process, content), contents):
                self.context.observer.on_document_done(outcome)
                outcomes.append(outcome)
        return outcomes

    def process(self, content: Content | DocumentError) -> Outcome:
        """Detect and count the objects of one document, or say why not; ClientDisconnectedError if it is canceled."""
        if isinstance(content, DocumentError):
            return DocumentError(str(content), Reason.CONTENT)
        try:
            return self.refinement.apply(self.detect(content))
        except ClientDisconnectedError:
            raise
        except TimeoutError:
            seconds = self.pipeline.limits.request_seconds
            return DocumentError(f"Not finished within the {seconds:g} seconds of a request.", Reason.LATE)
        except CancelledError:
            return DocumentError(STOPPING, Reason.STOPPING)
        except NotReadyError as exc:
            return DocumentError(str(exc), Reason.STOPPING)
        except DocumentError as exc:
            return DocumentError(str(exc), exc.reason)  # without its traceback, which holds the file
        except Exception:
            logger.exception("The model failed on a document")
            return DocumentError("The model failed on this document; the log of the service says how.", Reason.MODEL)

    def detect(self, content: Content) -> DocumentResult:
        """Return the detections of a document: of its whole pictures, then of the tiles that these call for."""
        result = self._detect_cached(content, UNTILED if self.tiles == AUTO else (self.tiles,))
        if self.tiles == AUTO:
            frames_left = self.sampling.max_frames - len(result.frames)
            tiles = plan_tiles(result.frames, frames_left, self.pipeline.decoders.image_size)
            result = result if tiles == UNTILED else self._detect_cached(content, tiles, result.frames)
        if result.truncated:
            logger.warning("An answer was cut off at the most tokens: objects may be missing.")
        return result

    def _detect_cached(
        self, content: Content, tiles: tuple[int, ...], known: Sequence[FrameResult] = ()
    ) -> DocumentResult:
        """Return the detections in so many tiles per picture; the whole pictures' may be `known`."""
        self.context.check()
        permits, cache = self.pipeline.decoders.permits, self.pipeline.cache
        # The permit comes first: another request that waits for this file must not wait for the request's other files.
        with ExitStack() as permit:
            self.context.poll(lambda seconds: permits.acquire(self, seconds) or None)
            permit.callback(permits.release, self)
            # The bytes are decoded from base64 once more below, so that no thread holds them while it waits.
            key = key_of((self.prompt, self.sampling, self.tiles == AUTO, tiles), self._file_of(content))
            if key in cache:
                permit.close()
            return cache.get_or_compute(key, lambda: self._detect(content, tiles, known, permit), self.context)

    def _detect(
        self, content: Content, tiles: tuple[int, ...], known: Sequence[FrameResult], permit: ExitStack
    ) -> DocumentResult:
        pictures: list[Picture] = []
        try:
            with permit:
                incomplete = self._decode(content, tiles, known, pictures)
            by_label = self.prompt.task.names_things
            return DocumentResult(tuple(picture.result(self.context, by_label) for picture in pictures), incomplete)
        except BaseException:
            for future in (future for picture in pictures for future in picture.futures):
                future.cancel()
            raise

    def _decode(
        self, content: Content, tiles: tuple[int, ...], known: Sequence[FrameResult], pictures: list[Picture]
    ) -> bool:
        """Decode a file and queue its frames as they come; return whether it could not be decoded to its end."""
        if not self.pipeline.scheduler.ready:  # no frame would be processed any more
            raise NotReadyError(STOPPING)
        began = time.monotonic()
        incomplete = False
        try:
            file = self._file_of(content)
            sampling = within_budget(self.sampling, self.tiles)
            with closing(self.pipeline.decoders.frames(file, sampling, self.context, tiles)) as frames:
                for frame in frames:
                    self._add(pictures, frame, known)
        except DocumentError as exc:
            # The first frames of a video count; without some of its pages a document would be counted wrong.
            if not pictures or pictures[-1].time_s is None:
                raise
            logger.warning("A video is counted by its first %d frames: %s", len(pictures), exc)
            incomplete = True
        self.pipeline.telemetry.observe_stage(Stage.DECODE_FILE, time.monotonic() - began)
        self.pipeline.telemetry.observe_tiles(len({future for picture in pictures for _, future in picture.tiles}))
        return incomplete

    def _file_of(self, content: Content) -> bytes:
        """Return the bytes of a document's file; DocumentError if there are none or too many."""
        max_bytes = self.pipeline.limits.document_bytes
        try:
            return decode_base64(content, max_bytes) if isinstance(content, str) else check_size(content, max_bytes)
        except DocumentError as exc:
            raise DocumentError(str(exc), Reason.CONTENT) from exc

    def _add(self, pictures: list[Picture], frame: Frame, known: Sequence[FrameResult]) -> None:
        """Add a frame to the pictures of a document, and queue it unless its result is known."""
        if frame.tile is not None:
            pictures[-1] = replace(pictures[-1], tiles=(*pictures[-1].tiles, (frame.tile, self.admission.add(frame))))
        elif frame.repeats:
            pictures.append(replace(pictures[-1], page=frame.page, time_s=frame.time_s))
        else:
            index = len(pictures)
            whole = completed_future(known[index]) if index < len(known) else self.admission.add(frame)
            pictures.append(Picture(frame.page, frame.time_s, frame.width, frame.height, whole))


def completed_future(result: FrameResult) -> Future[FrameResult]:
    """Return a future that has its result."""
    future: Future[FrameResult] = Future()
    future.set_result(result)
    return future


def within_budget(sampling: Sampling, tiles: Tiles) -> Sampling:
    """Return the sampling of videos whose frames are cut into tiles: whole and tiles share one budget of frames.

    If the whole frames decide on the tiles, half of the budget is kept for these.
    """
    frames = 2 if tiles == AUTO else max_frames_per_picture(tiles)
    return replace(sampling, max_frames=max(sampling.max_frames // frames, 1))
