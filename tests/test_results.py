"""The memory of results: copies are answered once, and nobody's leaving harms another."""

from collections.abc import Callable
from concurrent.futures import CancelledError, Future

import pytest

from florence_tagger.cache import ResultCache, key_of
from florence_tagger.media.sampling import Sampling
from florence_tagger.schemas import OBJECT_DETECTION, Detection, DocumentResult, FrameResult

CAT = DocumentResult((FrameResult((Detection("cat", (0.0, 0.0, 1.0, 1.0), 0.9),)),))


class Work:
    """Hands out futures, and counts them."""

    def __init__(self) -> None:
        self.futures: list[Future[DocumentResult]] = []

    def __call__(self) -> Future[DocumentResult]:
        self.futures.append(Future())
        return self.futures[-1]


def forbidden() -> Future[DocumentResult]:
    raise AssertionError("this was known")


def test_what_was_found_is_known_afterwards() -> None:
    results, work = ResultCache(2), Work()
    first = results.result("a", work)
    work.futures[0].set_result(CAT)
    assert first.result(0) == CAT
    assert results.result("a", forbidden).result(0) == CAT
    assert (results.hits, results.misses, len(results)) == (1, 1, 1)


def test_copies_under_way_share_the_work() -> None:
    results, work = ResultCache(2), Work()
    waiting = [results.result("a", work), results.result("a", forbidden)]
    work.futures[0].set_result(CAT)
    assert [future.result(0) for future in waiting] == [CAT, CAT]


def test_the_least_recently_used_is_forgotten() -> None:
    results = ResultCache(2)

    def find(key: str, submit: Callable[[], Future[DocumentResult]]) -> None:
        results.result(key, submit)

    for key in "ab":
        work = Work()
        find(key, work)
        work.futures[0].set_result(CAT)
    find("a", forbidden)
    work = Work()
    find("c", work)
    work.futures[0].set_result(CAT)
    find("a", forbidden)
    with pytest.raises(AssertionError):
        find("b", forbidden)


def test_work_ends_when_the_last_one_leaves() -> None:
    results, work = ResultCache(2), Work()
    first, second = results.result("a", work), results.result("a", forbidden)
    first.cancel()
    assert not work.futures[0].cancelled()
    second.cancel()
    assert work.futures[0].cancelled()
    again = results.result("a", work)
    work.futures[1].set_result(CAT)
    assert again.result(0) == CAT


def test_failures_and_cancellations_are_told_to_all_and_not_kept() -> None:
    results, work = ResultCache(2), Work()
    waiting = [results.result("a", work), results.result("a", forbidden)]
    work.futures[0].set_exception(RuntimeError("broken"))
    for future in waiting:
        with pytest.raises(RuntimeError, match="broken"):
            future.result(0)
    waiting = [results.result("a", work), results.result("a", forbidden)]
    work.futures[1].cancel()
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(0)
    assert len(results) == 0


def test_work_that_can_not_begin_is_told_to_all() -> None:
    results = ResultCache(2)
    followers: list[Future[DocumentResult]] = []

    def submit() -> Future[DocumentResult]:
        followers.append(results.result("a", forbidden))  # a copy that comes while this one is being decoded
        raise ValueError("no picture")

    with pytest.raises(ValueError, match="no picture"):
        results.result("a", submit)
    with pytest.raises(ValueError, match="no picture"):
        followers[0].result(0)
    work = Work()
    results.result("a", work)
    assert len(work.futures) == 1


def test_one_who_joins_what_was_given_up_begins_anew() -> None:
    results, work = ResultCache(2), Work()
    results.result("a", work).cancel()
    again = results.result("a", work)
    work.futures[1].set_result(CAT)
    assert again.result(0) == CAT


def test_nothing_is_kept_without_room() -> None:
    results, work = ResultCache(0), Work()
    for index in range(2):
        found = results.result("a", work)
        work.futures[index].set_result(CAT)
        assert found.result(0) == CAT
    assert results.misses == 2


def test_keys_tell_tasks_and_files_apart() -> None:
    few = Sampling(max_frames=3)
    keys = [key_of(Sampling(), b"a"), key_of(Sampling(), b"b"), key_of((OBJECT_DETECTION, Sampling()), b"a")]
    assert len({*keys, key_of(few, b"a"), key_of(Sampling(max_frames=3), b"a")}) == 4
