"""A document's content through the stages, in order: base64, picture, model, counts."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

from florence_tagger.batching import Batcher
from florence_tagger.counting import count_regions
from florence_tagger.errors import BusyError, DocumentError, NotReadyError
from florence_tagger.media.content import decode_base64
from florence_tagger.media.images import open_picture
from florence_tagger.results import Results, key_of
from florence_tagger.schemas import Detection, DocumentResult, Frame

logger = logging.getLogger(__name__)

Outcome = DocumentResult | DocumentError

OBJECT_DETECTION = "OD"

# A request has at most so many documents queued, so that a large one leaves places for others. It is enough to keep the
# model busy: files are decoded faster than they are looked at.
DOCUMENTS_UNDER_WAY = 8


@dataclass(frozen=True)
class Limits:
    """Of one document and one request: bytes, pixels, seconds."""

    document_bytes: int
    pixels: int
    request_seconds: float


@dataclass(frozen=True)
class Pipeline:
    """The stages that all requests go through.

    Attributes:
        image_size: (height, width) of the model's input, pixels.
    """

    batcher: Batcher
    results: Results
    image_size: tuple[int, int]
    limits: Limits

    def run(self, contents: Sequence[str | DocumentError], on_done: Callable[[], None] = lambda: None) -> list[Outcome]:
        """Treats the documents of a request; `contents` has the base64 text of each, or why it has none.

        Files are decoded here, in the request's thread, while the model is at the ones before. `on_done` is called for
        each document that is done with, one way or the other.

        Raises:
            NotReadyError, BusyError: none of the documents could be queued.
        """
        deadline = time.monotonic() + self.limits.request_seconds
        under_way: deque[Future[Detection] | DocumentError] = deque()
        outcomes: list[Outcome] = []
        accepted = False

        def finish_oldest() -> None:
            outcomes.append(self._finish(under_way.popleft(), deadline))
            on_done()

        for content in contents:
            if len(under_way) == DOCUMENTS_UNDER_WAY:
                finish_oldest()
            under_way.append(self._start(content, deadline, patient=accepted))
            accepted = accepted or isinstance(under_way[-1], Future)
        while under_way:
            finish_oldest()
        return outcomes

    def _start(self, content: str | DocumentError, deadline: float, patient: bool) -> Future[Detection] | DocumentError:
        """Decodes and queues one document; only a request of which something is queued waits for a place."""
        if isinstance(content, DocumentError):
            return content
        if time.monotonic() > deadline:
            return self._too_late()
        try:
            file = decode_base64(content, self.limits.document_bytes)
            wait_until = deadline if patient else 0.0
            return self.results.detection(key_of(OBJECT_DETECTION, file), lambda: self._submit(file, wait_until))
        except DocumentError as exc:
            return exc
        except (BusyError, NotReadyError) as exc:
            if not patient:
                raise
            return self._too_late() if isinstance(exc, BusyError) else DocumentError(str(exc))

    def _submit(self, file: bytes, wait_until: float) -> Future[Detection]:
        """Decodes and queues a file that is not known."""
        return self.batcher.submit(self._open(file), max(wait_until - time.monotonic(), 0.0))

    def _open(self, file: bytes) -> Frame:
        """Decodes one document; DocumentError where it can't be."""
        try:
            return open_picture(file, self.image_size, self.limits.pixels)
        except DocumentError:
            raise
        except Exception as exc:  # whatever a decoder makes of hostile bytes costs this document alone; the log has it
            logger.exception("A document could not be decoded")
            raise DocumentError("The file could not be decoded; the log of the service says how.") from exc

    def _finish(self, started: Future[Detection] | DocumentError, deadline: float) -> Outcome:
        """Waits for one document's detection, at most until the deadline."""
        if isinstance(started, DocumentError):
            return started
        try:
            found = started.result(max(deadline - time.monotonic(), 0))
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
        if found.truncated:
            logger.warning("An answer was cut off at the most tokens: objects may be missing.")
        return DocumentResult(count_regions(found.regions), found)

    def _too_late(self) -> DocumentError:
        return DocumentError(f"Not finished within the {self.limits.request_seconds:g} seconds of a request.")
