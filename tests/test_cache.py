"""The cache of results: a file is computed once for all who ask, and one who leaves harms nobody else."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from florence_tagger.cache import ResultCache, key_of
from florence_tagger.context import RequestContext
from florence_tagger.errors import ClientDisconnectedError, DocumentError
from florence_tagger.media.sampling import Sampling
from florence_tagger.schemas import OBJECT_DETECTION, Detection, DocumentResult, FrameResult
from tests.conftest import wait_for

CAT = DocumentResult((FrameResult((Detection("cat", (0.0, 0.0, 1.0, 1.0), 0.9),)),))
PATIENT = RequestContext()


def forbidden() -> DocumentResult:
    raise AssertionError("this is known")


class Computation:
    """Computes a cat once it may, and counts how often."""

    def __init__(self, outcome: DocumentResult | Exception = CAT) -> None:
        self.outcome = outcome
        self.begun = Event()
        self.may_end = Event()
        self.times = 0

    def __call__(self) -> DocumentResult:
        self.times += 1
        self.begun.set()
        assert self.may_end.wait(30)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_cache_known_file_is_not_computed_again() -> None:
    cache = ResultCache(2)
    assert cache.get_or_compute("a", lambda: CAT, PATIENT) == CAT
    assert cache.get_or_compute("a", forbidden, PATIENT) == CAT
    assert (cache.hits, cache.misses, len(cache)) == (1, 1, 1)


def test_cache_full_forgets_the_least_recently_used() -> None:
    cache = ResultCache(2)
    for key in "ab":
        cache.get_or_compute(key, lambda: CAT, PATIENT)
    cache.get_or_compute("a", forbidden, PATIENT)
    cache.get_or_compute("c", lambda: CAT, PATIENT)
    cache.get_or_compute("a", forbidden, PATIENT)
    with pytest.raises(AssertionError):
        cache.get_or_compute("b", forbidden, PATIENT)


@pytest.mark.parametrize("outcome", [CAT, DocumentError("no picture"), RuntimeError("broken")], ids=repr)
def test_cache_copies_in_flight_share_one_outcome(outcome: DocumentResult | Exception) -> None:
    cache, compute = ResultCache(2), Computation(outcome)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(cache.get_or_compute, "a", compute, PATIENT)
        assert compute.begun.wait(30)
        others = [pool.submit(cache.get_or_compute, "a", compute, PATIENT) for _ in range(2)]
        time.sleep(0.1)
        assert not any(other.done() for other in others)
        compute.may_end.set()
        outcomes = [future.exception(30) or future.result() for future in (first, *others)]
    assert all(one is outcome for one in outcomes)
    assert compute.times == 1
    assert len(cache) == (outcome is CAT)


@pytest.mark.parametrize("error", [ClientDisconnectedError("left"), TimeoutError()], ids=repr)
def test_cache_request_that_ends_early_hands_the_work_to_one_that_waits(error: Exception) -> None:
    cache, given_up, compute = ResultCache(2), Computation(error), Computation()
    compute.may_end.set()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_compute, "a", given_up, PATIENT)
        assert given_up.begun.wait(30)
        second = pool.submit(cache.get_or_compute, "a", compute, PATIENT)
        given_up.may_end.set()
        assert first.exception(30) is error
        assert second.result(30) == CAT
    assert (given_up.times, compute.times) == (1, 1)


@pytest.mark.parametrize(
    ("context", "error"),
    [
        (lambda: RequestContext.within(0.2), TimeoutError),
        (lambda: RequestContext(is_canceled=lambda: True), ClientDisconnectedError),
    ],
    ids=["deadline", "canceled"],
)
def test_cache_one_that_waits_may_leave(context: Callable[[], RequestContext], error: type[Exception]) -> None:
    cache, compute = ResultCache(2), Computation()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get_or_compute, "a", compute, PATIENT)
        assert compute.begun.wait(30)
        with pytest.raises(error):
            cache.get_or_compute("a", forbidden, context())
        compute.may_end.set()
        assert first.result(30) == CAT


def test_cache_incomplete_results_and_failures_are_not_kept() -> None:
    cache = ResultCache(2)
    cache.get_or_compute("a", lambda: DocumentResult(CAT.frames, incomplete=True), PATIENT)
    with pytest.raises(AssertionError):
        cache.get_or_compute("a", forbidden, PATIENT)
    assert len(cache) == 0
    assert cache.get_or_compute("a", lambda: CAT, PATIENT) == CAT


def test_cache_without_entries_computes_every_time() -> None:
    cache, compute = ResultCache(0), Computation()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(cache.get_or_compute, "a", compute, PATIENT) for _ in range(2)]
        assert wait_for(lambda: compute.times == 2)
        compute.may_end.set()
        assert [future.result(30) for future in both] == [CAT, CAT]
    assert (cache.hits, cache.misses, len(cache)) == (0, 2, 0)


def test_key_differs_by_task_sampling_and_file() -> None:
    few = Sampling(max_frames=3)
    keys = [key_of(Sampling(), b"a"), key_of(Sampling(), b"b"), key_of((OBJECT_DETECTION, Sampling()), b"a")]
    assert len({*keys, key_of(few, b"a"), key_of(Sampling(max_frames=3), b"a")}) == 4
