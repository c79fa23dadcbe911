"""A document's content through the stages, in order: base64, frames, model, counts."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import closing
from dataclasses import dataclass, field

from florence_tagger.batching import Batcher
from florence_tagger.documents import Part, cancel, gather
from florence_tagger.errors import BusyError, DocumentError, NotReadyError
from florence_tagger.media.content import decode_base64
from florence_tagger.media.decoders import Decoders
from florence_tagger.media.limits import Sampling
from florence_tagger.results import Results, key_of
from florence_tagger.schemas import OBJECT_DETECTION, Detection, DocumentResult, Frame, Prompt

logger = logging.getLogger(__name__)

Outcome = DocumentResult | DocumentError

# A request has at most so many documents and frames queued, so that a large one leaves places for others. It is enough
# to keep the model busy: files are decoded faster than they are looked at.
DOCUMENTS_UNDER_WAY = 8
FRAMES_UNDER_WAY = 8


@dataclass(frozen=True)
class Limits:
    """Of one document and one request: bytes, seconds."""

    document_bytes: int
    request_seconds: float


@dataclass(frozen=True)
class Pipeline:
    """The stages that all requests go through."""

    decoders: Decoders
    batcher: Batcher
    results: Results
    limits: Limits

    def run(
        self,
        contents: Sequence[str | DocumentError],
        sampling: Sampling,
        prompt: Prompt = OBJECT_DETECTION,
        on_done: Callable[[], None] = lambda: None,
    ) -> list[Outcome]:
        """Treats the documents of a request; `contents` has the base64 text of each, or why it has none.

        Files are decoded, one at a time, while the model is at the ones before. `on_done` is called for each document
        that is done with, one way or the other.

        Raises:
            NotReadyError, BusyError: none of the documents could be queued.
        """
        run = Run(self, sampling, prompt, time.monotonic() + self.limits.request_seconds)
        under_way: deque[Future[DocumentResult] | DocumentError] = deque()
        outcomes: list[Outcome] = []

        def finish_oldest() -> None:
            outcomes.append(run.finish(under_way.popleft()))
            on_done()

        for content in contents:
            if len(under_way) == DOCUMENTS_UNDER_WAY:
                finish_oldest()
            under_way.append(run.start(content))
        while under_way:
            finish_oldest()
        return outcomes


@dataclass
class Run:
    """A request on its way through the stages.

    Attributes:
        deadline: monotonic time at which it is answered with what is done.
        patient: something of it is queued, so that it waits for places for the rest.
        frames: of its frames those that may still be queued, the oldest first.
    """

    pipeline: Pipeline
    sampling: Sampling
    prompt: Prompt
    deadline: float
    patient: bool = False
    frames: deque[Future[Detection]] = field(default_factory=deque)

    def start(self, content: str | DocumentError) -> Future[DocumentResult] | DocumentError:
        """Decodes and queues one document.

        Raises:
            NotReadyError, BusyError: it could not be queued, and nothing else is.
        """
        if isinstance(content, DocumentError):
            return content
        if time.monotonic() > self.deadline:
            return self._too_late()
        try:
            file = decode_base64(content, self.pipeline.limits.document_bytes)
            key = key_of((self.prompt, self.sampling), file)
            result = self.pipeline.results.result(key, lambda: self._submit(file))
        except DocumentError as exc:
            return exc
        except TimeoutError:
            return self._too_late()
        except (BusyError, NotReadyError) as exc:
            if not self.patient:
                raise
            return self._too_late() if isinstance(exc, BusyError) else DocumentError(str(exc))
        self.patient = True
        return result

    def _submit(self, file: bytes) -> Future[DocumentResult]:
        """Decodes a file that is not known and queues its frames, one by one."""
        parts: list[Part] = []
        incomplete = False
        with closing(self.pipeline.decoders.frames(file, self.sampling, self.deadline)) as frames:
            try:
                for frame in frames:
                    detection = parts[-1].detection if frame.repeats else self._queue(frame)
                    parts.append(Part(detection, frame.page, frame.time_s))
            except Exception as exc:
                # What there is of a video counts; without some of its pages a document would be counted wrong.
                incomplete = isinstance(exc, DocumentError) and bool(parts) and parts[-1].time_s is not None
                if not incomplete:
                    cancel(parts)
                    raise
                logger.warning("A video is counted by its first %d frames: %s", len(parts), exc)
        return gather(parts, incomplete)

    def _queue(self, frame: Frame) -> Future[Detection]:
        """Queues a frame; only a request of which something is queued waits for a place."""
        while len(self.frames) >= FRAMES_UNDER_WAY:
            oldest = self.frames.popleft()
            if wait([oldest], max(self.deadline - time.monotonic(), 0)).not_done:
                raise TimeoutError
        patience = self.deadline - time.monotonic() if self.patient else 0.0
        detection = self.pipeline.batcher.submit(frame, self.prompt, max(patience, 0.0))
        self.patient = True
        self.frames.append(detection)
        return detection

    def finish(self, started: Future[DocumentResult] | DocumentError) -> Outcome:
        """Waits for one document's result, at most until the deadline."""
        if isinstance(started, DocumentError):
            return started
        try:
            result = started.result(max(self.deadline - time.monotonic(), 0))
        except TimeoutError:
            started.cancel()
            return self._too_late()
        except CancelledError:
            return DocumentError("The service is stopping.")
        except (DocumentError, BusyError, NotReadyError) as exc:  # what befell the copy that this one waited for
            return DocumentError(str(exc))
        except Exception:  # the model's failure is this document's alone; the log has its trace
            logger.exception("The model failed on a document")
            return DocumentError("The model failed on this document; the log of the service says how.")
        if result.truncated:
            logger.warning("An answer was cut off at the most tokens: objects may be missing.")
        return result

    def _too_late(self) -> DocumentError:
        return DocumentError(f"Not finished within the {self.pipeline.limits.request_seconds:g} seconds of a request.")
