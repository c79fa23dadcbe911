"""The pipeline on a fake model and fake decoders: order, failures, deadlines, cancellation, and who decodes when."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest

from florence_tagger.cache import ResultCache, key_of
from florence_tagger.context import Outcome, RequestContext, RequestObserver
from florence_tagger.counting import count_document
from florence_tagger.errors import BusyError, ClientDisconnectedError, DocumentError, NotReadyError, Reason
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.pool import DecodePermits, DecoderPool
from florence_tagger.pipeline import Pipeline, RequestLimits
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import OBJECT_DETECTION, DocumentResult, Frame, Prompt
from florence_tagger.tiling import UNTILED
from tests.conftest import FakeModel, wait_for

PIXELS = np.zeros((8, 8, 3), np.uint8)
QUEUE_SIZE = 16  # more than the frames of one request


def video_frame(time_s: float) -> Frame:
    return Frame(PIXELS, 8, 8, time_s=time_s)


@dataclass
class FakeDecoders:
    """Decodes a file of n bytes to n frames of a video; one that begins with `!` is damaged after them."""

    permits: DecodePermits = field(default_factory=lambda: DecodePermits(0))
    image_size: tuple[int, int] = (8, 8)
    seconds: float = 0.0
    decoding: int = 0
    most_decoding: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def frames(self, content: bytes, sampling: Sampling, context: RequestContext, tiles: object) -> Iterator[Frame]:
        with self.lock:
            self.decoding += 1
            self.most_decoding = max(self.decoding, self.most_decoding)
        time.sleep(self.seconds)
        yield from (video_frame(float(index)) for index in range(len(content.strip(b"!"))))
        with self.lock:
            self.decoding -= 1
        if content.startswith(b"!"):
            raise DocumentError("damaged")


@dataclass
class RecordingModel(FakeModel):
    """Notes the times of the frames that it begins with."""

    frames: list[float | None] = field(default_factory=list)

    def prefill(self, frame: Frame, prompt: Prompt) -> Frame:
        self.frames.append(frame.time_s)
        return super().prefill(frame, prompt)

    def step(self) -> dict[Hashable, DocumentResult | Exception]:
        return cast(dict[Hashable, DocumentResult | Exception], super().step())


@pytest.fixture
def model() -> RecordingModel:
    return RecordingModel()


@pytest.fixture
def decoders() -> FakeDecoders:
    return FakeDecoders()


@pytest.fixture
def pipeline(model: RecordingModel, decoders: FakeDecoders) -> Iterator[Pipeline]:
    scheduler = Scheduler(lambda: model, QUEUE_SIZE)
    assert wait_for(lambda: scheduler.ready)
    yield Pipeline(cast(DecoderPool, decoders), scheduler, ResultCache(8), RequestLimits(1000, 30.0))
    model.go.set()
    scheduler.close()


def outcome_in_words(outcome: Outcome) -> dict[str, int] | str:
    return str(outcome) if isinstance(outcome, DocumentError) else count_document(outcome.frames)


def test_pipeline_several_documents_outcomes_in_their_order(pipeline: Pipeline, model: RecordingModel) -> None:
    model.go.set()
    reported: list[Outcome] = []

    class Observer(RequestObserver):
        def on_document_done(self, outcome: Outcome) -> None:
            reported.append(outcome)

    contents = [b"aaaaaa", DocumentError("no file"), b"!", b"!a", b"a", b"aa"]
    context = RequestContext(time.monotonic() + 30, observer=Observer())
    outcomes = pipeline.run(contents, Sampling(), context=context)
    assert [outcome_in_words(one) for one in outcomes] == [{"cat": 1}, "no file", "damaged", *[{"cat": 1}] * 3]
    assert [len(one.frames) for one in outcomes if isinstance(one, DocumentResult)] == [6, 1, 1, 2]
    assert [one.incomplete for one in outcomes if isinstance(one, DocumentResult)] == [False, True, False, False]
    assert reported == outcomes


def test_pipeline_model_failure_costs_one_document(pipeline: Pipeline, model: RecordingModel) -> None:
    model.go.set()
    model.error = ValueError("broken")
    (failed,) = pipeline.run([b"a"], Sampling())
    assert isinstance(failed, DocumentError)
    assert failed.reason is Reason.MODEL
    model.error = None
    assert [outcome_in_words(one) for one in pipeline.run([b"a"], Sampling())] == [{"cat": 1}]


def test_pipeline_deadline_passed_answers_and_gives_up_what_waits(pipeline: Pipeline, model: RecordingModel) -> None:
    outcomes = pipeline.run([b"aaa", b"bb"], Sampling(), context=RequestContext.within(0.5))
    assert [cast(DocumentError, one).reason for one in outcomes] == [Reason.LATE] * 2
    assert pipeline.scheduler.waiting == 0
    model.go.set()
    assert wait_for(lambda: pipeline.scheduler.running == 0 and pipeline.scheduler.waiting == 0)
    assert len(model.frames) == 1
    assert pipeline.scheduler.reserved == 0


def test_pipeline_canceled_request_gives_up_what_waits(pipeline: Pipeline, model: RecordingModel) -> None:
    context = RequestContext(time.monotonic() + 30, is_canceled=model.entered.is_set)
    with pytest.raises(ClientDisconnectedError):
        pipeline.run([b"aaa", b"bb"], Sampling(), context=context)
    model.go.set()
    assert wait_for(lambda: pipeline.scheduler.running == 0 and pipeline.scheduler.waiting == 0)
    assert len(model.frames) == 1


def test_pipeline_queue_full_refuses_before_decoding(pipeline: Pipeline, decoders: FakeDecoders) -> None:
    for _ in range(QUEUE_SIZE):
        pipeline.scheduler.reserve()
    with pytest.raises(BusyError):
        pipeline.run([b"a"], Sampling())
    assert decoders.most_decoding == 0
    for _ in range(QUEUE_SIZE):
        pipeline.scheduler.release()


def test_pipeline_known_file_gives_its_reserved_slot_back(pipeline: Pipeline, model: RecordingModel) -> None:
    model.go.set()
    for _ in range(2):
        assert [outcome_in_words(one) for one in pipeline.run([b"a"], Sampling())] == [{"cat": 1}]
        assert pipeline.scheduler.reserved == 0
    assert len(model.frames) == 1


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_pipeline_one_request_decodes_by_its_permit_and_the_shared_ones(
    pipeline: Pipeline, model: RecordingModel, decoders: FakeDecoders, extra: int
) -> None:
    model.go.set()
    decoders.permits, decoders.seconds = DecodePermits(extra), 0.1
    assert len(pipeline.run([bytes([65 + index]) for index in range(8)], Sampling())) == 8
    assert decoders.most_decoding == 1 + extra


def test_pipeline_file_of_a_busy_request_is_computed_for_another(pipeline: Pipeline, model: RecordingModel) -> None:
    """A request whose video waits for the model has not begun its second file, which another request sends as well."""
    video, picture = b"a" * 30, b"b"
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(pipeline.run, [video, picture], Sampling())
        assert model.entered.wait(30)
        key = key_of((OBJECT_DETECTION, Sampling(), False, UNTILED), picture)
        assert key not in pipeline.cache
        small = pool.submit(pipeline.run, [picture], Sampling())
        assert wait_for(lambda: key in pipeline.cache)
        model.go.set()
        assert [outcome_in_words(one) for one in small.result(30)] == [{"cat": 1}]
        assert len(large.result(30)) == 2


def test_permits_two_requests_share_what_is_extra() -> None:
    permits = DecodePermits(1)
    assert permits.acquire("a", 0)
    assert permits.acquire("a", 0)
    assert not permits.acquire("a", 0)
    assert permits.acquire("b", 0), "the first one of a request is its own"
    assert not permits.acquire("b", 0)
    permits.release("a")
    assert permits.acquire("b", 0)
    for request in "abb":
        permits.release(request)
    assert permits.acquire("c", 0)
    assert permits.acquire("c", 0)


def test_pipeline_half_a_character_is_no_base64(pipeline: Pipeline) -> None:
    (failed,) = pipeline.run(["\ud800abc"], Sampling())
    assert isinstance(failed, DocumentError)
    assert failed.reason is Reason.CONTENT
    assert pipeline.cache.misses == 0


def test_pipeline_stopped_service_decodes_no_further_file(
    pipeline: Pipeline, model: RecordingModel, decoders: FakeDecoders
) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pipeline.run, [b"a", b"b", b"c"], Sampling())
        assert model.entered.wait(30)
        decoders.seconds = 30
        pipeline.scheduler.abort_all(NotReadyError("stopping"))
        reasons = [cast(DocumentError, one).reason for one in answer.result(20)]
    assert reasons == [Reason.STOPPING] * 3


@pytest.mark.parametrize("wait", [lambda context: context.check(), lambda context: context.poll(lambda _: None)])
def test_context_past_its_deadline_raises(wait: Callable[[RequestContext], object]) -> None:
    with pytest.raises(TimeoutError):
        wait(RequestContext.within(-1))
    with pytest.raises(ClientDisconnectedError):
        wait(RequestContext.within(-1).__class__(0.0, lambda: True))
