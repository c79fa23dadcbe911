"""Hostile and damaged files: each is answered in time, for little memory, and the next picture is counted right."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import psutil
import pytest

from florence_tagger.assembly import start_decoder_pool
from florence_tagger.config import load_settings
from florence_tagger.errors import DocumentError
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.schemas import Frame
from tests.attacks import ANY, ATTACKS, a0_scan
from tests.pictures import JPEG, PICTURES
from tests.variants import Variant
from tests.videos import VIDEOS

SECONDS = 5.0
ENDED = SECONDS + 1.5  # a new process may have to start before it
MAX_BYTES = 300e6  # above what a process has when it is idle
SIZE = (224, 224)

# One kind of file of each decoder, small ones, for mutations and truncations.
MUTATED = {
    **{f"{one.format}: {one.name}": one for one in PICTURES if one.counts is not None and "megapixels" not in one.name},
    **{f"{one.format}: {one.name}": one for one in VIDEOS if one.counts is not None},
}
FORMATS = list({one.format: one for one in MUTATED.values()}.values())


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    """One process, so that each file is decoded where the one before was."""
    settings = load_settings({"decoder_processes": 1, "document_seconds": SECONDS})
    pool = start_decoder_pool(settings, SIZE)
    yield pool
    pool.close()


def decoded(pool: DecoderPool, content: bytes) -> list[Frame] | str:
    """The frames of a file, or why there are none."""
    try:
        return list(pool.frames(content, Sampling(), time.monotonic() + 60))
    except DocumentError as exc:
        return str(exc)


def expect_right(pool: DecoderPool, expected: list[Frame]) -> None:
    """The next picture is decoded as ever."""
    (frame,) = decoded(pool, JPEG["4:2:0"]())
    assert isinstance(frame, Frame)
    np.testing.assert_array_equal(frame.pixels, expected[0].pixels)


@pytest.fixture(scope="module")
def good(decoders: DecoderPool) -> list[Frame]:
    frames = decoded(decoders, JPEG["4:2:0"]())
    assert isinstance(frames, list)
    return frames


@pytest.fixture(scope="module")
def idle(decoders: DecoderPool, good: list[Frame]) -> int:
    """The memory of a process that has decoded no more than a small picture, bytes."""
    return int(psutil.Process(decoders.pids[0]).memory_info().rss)


@contextmanager
def watched(pool: DecoderPool, idle: int) -> Iterator[list[int]]:
    """The most memory that any process of a pool, a new one, too, has in the block above `idle`, bytes, in a list."""
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            for pid in pool.pids:
                with suppress(psutil.Error):
                    most[0] = max(most[0], psutil.Process(pid).memory_info().rss - idle)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str, decoders: DecoderPool, good: list[Frame], idle: int) -> None:
    make, reason = ATTACKS[name]
    content = make()
    with watched(decoders, idle) as memory:
        started = time.monotonic()
        outcome = decoded(decoders, content)
        seconds = time.monotonic() - started
    assert seconds < ENDED
    print(f"{memory[0] / 1e6:.0f} MB above idle, {seconds:.2f} s")
    assert memory[0] < MAX_BYTES
    if reason is None:
        assert isinstance(outcome, list), outcome
        assert outcome
    elif reason is not ANY:
        assert isinstance(outcome, str)
        assert reason in outcome
    expect_right(decoders, good)


def test_a_large_scan_is_decoded_where_the_setting_allows_it() -> None:
    pool = start_decoder_pool(load_settings({"decoder_processes": 1, "max_pixels": 300_000_000}), SIZE)
    try:
        decoded(pool, JPEG["4:2:0"]())
        with watched(pool, int(psutil.Process(pool.pids[0]).memory_info().rss)) as memory:
            outcome = decoded(pool, a0_scan())
    finally:
        pool.close()
    print(f"{memory[0] / 1e6:.0f} MB above idle")
    assert isinstance(outcome, list), outcome
    assert [(frame.width, frame.height) for frame in outcome] == [(13_300, 18_800)]
    assert memory[0] < 400e6


@pytest.mark.parametrize("variant", FORMATS, ids=lambda one: one.format)
def test_truncations(variant: Variant, decoders: DecoderPool, good: list[Frame]) -> None:
    content = variant.make()
    whole = decoded(decoders, content)
    lengths = {2**power for power in range(17)} | {len(content) - 2**power for power in range(17)}
    for length in sorted(length for length in lengths if 0 < length < len(content)):
        outcome = decoded(decoders, content[:length])
        if isinstance(outcome, str):
            assert not any(unclear in outcome for unclear in UNCLEAR), (length, outcome)
        elif (
            isinstance(whole, list) and whole[0].time_s is None
        ):  # of a video the beginning counts; of a picture only all of it
            assert all((one.pixels == other.pixels).all() for one, other in zip(outcome, whole, strict=True)), length
    expect_right(decoders, good)


UNCLEAR = ("the log of the service says how", "made its decoder crash", "not decoded within")


def mutations(number: int, seed: int) -> Iterator[bytes]:
    """Files of all kinds with some bytes changed, cut out, doubled or zeroed."""
    rng = np.random.default_rng(seed)
    files = [one.make() for one in MUTATED.values()]
    for index in range(number):
        content = bytearray(files[index % len(files)])
        for _ in range(int(rng.integers(1, 9))):
            near_head = rng.random() < 0.5  # where sizes and tables are
            place = int(rng.integers(0, min(len(content), 600) if near_head else len(content)))
            length = int(rng.integers(1, 17))
            kind = rng.integers(0, 4)
            if kind == 0:
                content[place : place + length] = rng.bytes(length)
            elif kind == 1:
                del content[place : place + length]
            elif kind == 2:
                content[place:place] = content[place : place + length]
            else:
                content[place : place + length] = bytes([int(rng.choice([0, 255]))]) * length
        yield bytes(content) or b"\0"


def survive(pool: DecoderPool, number: int, seed: int, good: list[Frame], idle: int) -> None:
    unclear: list[bool] = []
    with watched(pool, idle) as memory:
        for index, content in enumerate(mutations(number, seed)):
            started = time.monotonic()
            outcome = decoded(pool, content)
            assert outcome
            unclear.append(isinstance(outcome, str) and any(reason in outcome for reason in UNCLEAR))
            assert time.monotonic() - started < ENDED
            if index % 50 == 0:
                expect_right(pool, good)
    print(f"{memory[0] / 1e6:.0f} MB above idle, {sum(unclear)} of {number} without a clear reason")
    assert memory[0] < MAX_BYTES
    assert sum(unclear) <= number / 100  # a crash in a codec, which costs its file alone
    expect_right(pool, good)


def test_mutated_files(decoders: DecoderPool, good: list[Frame], idle: int) -> None:
    survive(decoders, 500, 1, good, idle)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_mutated_files(decoders: DecoderPool, good: list[Frame], idle: int) -> None:
    survive(decoders, 5000, int(os.environ.get("FUZZ_SEED", "2")), good, idle)
