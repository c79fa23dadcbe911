"""What was found in a document's frames, as soon as all of it is there, to what was found in the document."""

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

from florence_tagger.schemas import Detection, DocumentResult, Sighting


@dataclass(frozen=True)
class Part:
    """A frame that was queued; frames that repeat another share its detection. `page` and `time_s` as in `Frame`."""

    detection: Future[Detection]
    page: int | None = None
    time_s: float | None = None


def gather(parts: Sequence[Part], incomplete: bool = False) -> Future[DocumentResult]:
    """The result of a document from those of its frames, of which there is at least one.

    The first that fails fails the document and cancels the others; cancelling the document cancels all.
    """
    whole: Future[DocumentResult] = Future()
    waiting = {part.detection for part in parts}
    lock = threading.Lock()

    def on_done(done: Future[Detection]) -> None:
        failure = CancelledError() if done.cancelled() else done.exception()
        with lock:
            waiting.discard(done)
            if whole.running() or (waiting and failure is None) or not claim(whole):
                return
        if failure is not None:
            cancel(parts)
            whole.set_exception(failure)
        else:
            sightings = tuple(Sighting(part.detection.result(), part.page, part.time_s) for part in parts)
            whole.set_result(DocumentResult(sightings, incomplete))

    whole.add_done_callback(lambda done: cancel(parts) if done.cancelled() else None)
    for detection in tuple(waiting):
        detection.add_done_callback(on_done)
    return whole


def claim(whole: Future[DocumentResult]) -> bool:
    """Whether a future still wants its result, which it then must be given."""
    return not whole.done() and whole.set_running_or_notify_cancel()


def cancel(parts: Sequence[Part]) -> None:
    """Gives up the frames that the model has not begun."""
    for part in parts:
        part.detection.cancel()
