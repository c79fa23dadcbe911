"""The queue before the model: who goes when, and that answers decoded together are those decoded alone."""

from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest

from florence_tagger.errors import BusyError, NotReadyError
from florence_tagger.florence import stateful_decoder
from florence_tagger.florence.model import Florence2
from florence_tagger.media.images import open_picture
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import Frame, FrameResult, Prompt
from tests.conftest import SCENES, TRUTH, assert_same_results, wait_for


def frame(size: int = 8) -> Frame:
    return Frame(np.zeros((size, size, 3), np.uint8), size, size)


class Steps:
    """A model whose answers take three steps, and which waits for leave at each thing it does.

    Attributes:
        seen: what it did, in order: "prefill" or the number of frames in a step.
        most_at_once: of prefill and step.
    """

    def __init__(self, capacity: int, exclusive: bool) -> None:
        self.capacity, self.exclusive = capacity, exclusive
        self.seen: list[Any] = []
        self.left: dict[Hashable, int] = {}
        self.broken, self.unwanted = False, 0
        self.prefilling, self.go = Event(), Event()
        self.go.set()
        self.overlapped = False

    def prefill(self, frame: Frame, prompt: Prompt) -> Frame:
        self.prefilling.set()
        self.seen.append("prefill")
        assert self.go.wait(30)
        self.prefilling.clear()
        return frame

    def add(self, key: Hashable, prefilled: Frame) -> None:
        if prefilled.width == self.unwanted:
            raise ValueError("unwanted")
        self.left[key] = 3

    def step(self) -> dict[Hashable, FrameResult | Exception]:
        self.overlapped |= self.prefilling.is_set()
        self.seen.append(len(self.left))
        if self.broken:
            self.left.clear()
            raise RuntimeError("the device is lost")
        self.left = {key: left - 1 for key, left in self.left.items()}
        ended = [key for key, left in self.left.items() if not left]
        self.left = {key: left for key, left in self.left.items() if left}
        return dict.fromkeys(ended, FrameResult(()))


def started(model: Any, queue_size: int = 64) -> Scheduler:
    scheduler = Scheduler(lambda: model, queue_size)
    assert wait_for(lambda: scheduler.ready)
    return scheduler


def test_what_waits_is_encoded_first_and_then_decoded_together() -> None:
    model = Steps(capacity=3, exclusive=True)
    model.go.clear()
    scheduler = started(model)
    results = [scheduler.add_request(frame()) for _ in range(4)]
    model.go.set()
    for result in results:
        assert result.result(10) == FrameResult(())
    assert model.seen == ["prefill", "prefill", "prefill", 3, 3, 3, "prefill", 1, 1, 1]
    assert not model.overlapped
    scheduler.close()


def test_a_lone_frame_does_not_wait_for_others() -> None:
    model = Steps(capacity=3, exclusive=True)
    scheduler = started(model)
    assert scheduler.add_request(frame()).result(10) == FrameResult(())
    assert model.seen == ["prefill", 1, 1, 1]
    scheduler.close()


def test_encoding_overlaps_decoding_where_it_pays() -> None:
    model = Steps(capacity=2, exclusive=False)
    scheduler = started(model)
    first = scheduler.add_request(frame())
    assert wait_for(lambda: 1 in model.seen or first.done())
    model.go.clear()
    second = scheduler.add_request(frame())
    assert model.prefilling.wait(10)
    assert first.result(10) == FrameResult(())  # while the second is still being looked at
    assert not second.done()
    model.go.set()
    assert second.result(10) == FrameResult(())
    scheduler.close()


def test_a_frame_that_was_given_up_holds_nobody_up() -> None:
    model = Steps(capacity=2, exclusive=True)
    model.go.clear()
    scheduler = started(model)
    first, second = scheduler.add_request(frame()), scheduler.add_request(frame())
    assert model.prefilling.wait(10)
    second.cancel()
    model.go.set()
    assert first.result(10) == FrameResult(())
    scheduler.close()


def test_an_answer_that_can_not_begin_costs_itself_alone() -> None:
    model = Steps(capacity=2, exclusive=True)
    model.unwanted = 1
    model.go.clear()
    scheduler = started(model)
    first, second = scheduler.add_request(frame(1)), scheduler.add_request(frame(2))
    model.go.set()
    with pytest.raises(ValueError, match="unwanted"):
        first.result(10)
    assert second.result(10) == FrameResult(())
    scheduler.close()


def test_a_step_that_fails_costs_its_frames_alone() -> None:
    model = Steps(capacity=2, exclusive=True)
    model.broken = True
    scheduler = started(model)
    with pytest.raises(RuntimeError, match="device is lost"):
        scheduler.add_request(frame()).result(10)
    model.broken = False
    assert scheduler.add_request(frame()).result(10) == FrameResult(())
    assert scheduler.running == 0
    scheduler.close()


def test_closing_finishes_what_is_under_way() -> None:
    model = Steps(capacity=1, exclusive=True)
    model.go.clear()
    scheduler = started(model)
    running, waiting = scheduler.add_request(frame()), scheduler.add_request(frame())
    assert model.prefilling.wait(10)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(scheduler.close)
        assert wait_for(waiting.cancelled)
        model.go.set()
        closing.result(10)
    assert running.result(0) == FrameResult(())


def test_a_place_is_sure_once_it_is_reserved() -> None:
    model = Steps(capacity=1, exclusive=True)
    model.go.clear()
    scheduler = started(model, queue_size=2)
    running = scheduler.add_request(frame())
    assert model.prefilling.wait(10)
    scheduler.reserve()
    others = [
        scheduler.add_request(frame()) for _ in range(2)
    ]  # waiting for places that others reserved could be for ever
    with pytest.raises(BusyError):
        scheduler.reserve()
    with pytest.raises(BusyError):
        scheduler.add_request(frame())
    mine = scheduler.add_request(frame(), reserved=True)
    assert (scheduler.waiting, scheduler.reserved) == (3, 0)
    model.go.set()
    for result in (running, *others, mine):
        assert result.result(10) == FrameResult(())
    scheduler.reserve()
    scheduler.release()
    assert scheduler.reserved == 0
    scheduler.close()


def test_abandoning_fails_even_what_the_model_never_comes_back_from() -> None:
    model = Steps(capacity=1, exclusive=True)
    model.go.clear()
    scheduler = started(model)
    results = [scheduler.add_request(frame()) for _ in range(3)]
    assert model.prefilling.wait(10)
    scheduler.abort_all(NotReadyError("it hangs"))
    for result in results:
        with pytest.raises(NotReadyError, match="it hangs"):
            result.result(10)
    assert not scheduler.ready
    model.go.set()  # it does come back, and nobody is hurt
    scheduler.close()


def test_frames_decoded_together_are_counted_as_alone(florence2: Florence2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames come and go at their own times, so that rows move and the cache is cut, and nobody's answer changes."""
    monkeypatch.setattr(stateful_decoder, "MIN_EVICTED_TOKENS", 5)
    frames = [open_picture((SCENES / name).read_bytes(), (224, 224), 10**8) for name in TRUTH]
    alone = [florence2.detect(one) for one in frames]
    scheduler = started(florence2)
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda one: scheduler.add_request(one, timeout=60).result(60), frames * 4))
    scheduler.close()
    assert_same_results(together, alone * 4)
