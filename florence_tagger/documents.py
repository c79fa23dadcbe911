"""What was found in a document's frames, as soon as all of it is there, to what was found in the document.

Tiles of a picture are frames of their own; what was found in them is merged here.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace

from florence_tagger.schemas import Box, DocumentResult, FrameResult
from florence_tagger.tiling import Look, in_picture, merge


@dataclass(frozen=True)
class Part:
    """A picture whose looks were queued; those that repeat another share its detections.

    Attributes:
        whole: what is found in all of it.
        page, time_s, width, height: as in `Frame`.
        tiles: that are looked at, too, each with what is found in it.
    """

    whole: Future[FrameResult]
    page: int | None = None
    time_s: float | None = None
    width: int = 0
    height: int = 0
    tiles: tuple[tuple[Box, Future[FrameResult]], ...] = ()

    @property
    def looks(self) -> tuple[Future[FrameResult], ...]:
        """All that the model was asked for."""
        return (self.whole, *(in_tile for _, in_tile in self.tiles))

    def frame_result(self, by_label: bool) -> FrameResult:
        """What was found in it, once all its looks are done; `by_label` as of `merge`."""
        found = self.whole.result()
        if self.tiles:
            found = self._merged(found, [in_tile.result() for _, in_tile in self.tiles], by_label)
        tiles = tuple(tile for tile, _ in self.tiles)
        return replace(found, page=self.page, time_s=self.time_s, width=self.width, height=self.height, tiles=tiles)

    def _merged(self, whole: FrameResult, in_tiles: Sequence[FrameResult], by_label: bool) -> FrameResult:
        """What is in it by what was found in the whole, and in each tile."""
        looks = [
            Look(tile, in_picture(found.detections, tile, self.width, self.height))
            for (tile, _), found in zip(self.tiles, in_tiles, strict=True)
        ]
        return FrameResult(
            merge(Look((0, 0, self.width, self.height), whole.detections), looks, by_label),
            any(found.truncated for found in in_tiles),
            whole.tokens + sum(found.tokens for found in in_tiles),
        )


def gather(parts: Sequence[Part], incomplete: bool = False, by_label: bool = True) -> Future[DocumentResult]:
    """The result of a document from those of its pictures, of which there is at least one.

    The first look that fails fails the document and cancels the others; cancelling the document cancels all.
    """
    whole: Future[DocumentResult] = Future()
    waiting = {look for part in parts for look in part.looks}
    lock = threading.Lock()

    def on_done(done: Future[FrameResult]) -> None:
        failure = CancelledError() if done.cancelled() else done.exception()
        with lock:
            waiting.discard(done)
            if whole.running() or (waiting and failure is None) or not claim(whole):
                return
        if failure is not None:
            cancel(parts)
            whole.set_exception(failure)
        else:
            try:
                whole.set_result(DocumentResult(tuple(part.frame_result(by_label) for part in parts), incomplete))
            except Exception as exc:  # noqa: BLE001 - whatever it is, somebody waits
                whole.set_exception(exc)

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
        for look in part.looks:
            look.cancel()
