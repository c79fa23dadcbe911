"""The pool of decoder processes: streams frames, and loses a process and one document at most, never more."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import pytest

from florence_tagger.assembly import start_decoder_pool
from florence_tagger.config import load_settings
from florence_tagger.context import RequestContext
from florence_tagger.errors import ClientDisconnectedError, DocumentError, NotReadyError
from florence_tagger.media.images import open_picture
from florence_tagger.media.limits import DecodeOptions, SandboxLimits
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.schemas import Frame
from tests.attacks import many_scans_jpeg, png_bomb
from tests.conftest import ROOT, wait_for
from tests.pictures import JPEG, PNG
from tests.videos import video

SIZE = (224, 224)
SCENE = PNG["RGB"]()


def pool_of(**settings: Any) -> DecoderPool:
    return start_decoder_pool(load_settings({"decoder_processes": 1} | settings), SIZE)


@pytest.fixture
def decoders() -> Iterator[DecoderPool]:
    pool = pool_of()
    yield pool
    pool.close()


def frames(pool: DecoderPool, content: bytes = SCENE, seconds: float = 30, **sampling: Any) -> list[Frame]:
    return list(pool.frames(content, Sampling(**sampling), RequestContext.within(seconds)))


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_pixels_are_those_decoded_here(decoders: DecoderPool) -> None:
    (frame,) = frames(decoders)
    here = open_picture(SCENE, SIZE, 10**8)
    assert (frame.width, frame.height) == (here.width, here.height)
    np.testing.assert_array_equal(frame.pixels, here.pixels)


def test_frames_come_when_they_are_asked_for_and_can_be_given_up(decoders: DecoderPool) -> None:
    stream = decoders.frames(video("mp4", "libx264"), Sampling(), RequestContext.within(30))
    first = next(stream)
    stream.close()
    (pid,) = decoders.pids
    assert frames(decoders)[0].pixels.any()
    assert decoders.pids == [pid]
    np.testing.assert_array_equal(first.pixels, frames(decoders, video("mp4", "libx264"))[0].pixels)


def test_a_crash_costs_one_document(decoders: DecoderPool) -> None:
    stream = decoders.frames(video("mp4", "libx264"), Sampling(), RequestContext.within(30))
    next(stream)
    (pid,) = decoders.pids
    os.kill(pid, signal.SIGSEGV)
    with pytest.raises(DocumentError, match="made its decoder crash"):
        next(stream)
    assert frames(decoders)
    assert pid not in decoders.pids


def test_one_that_dies_idle_costs_nothing(decoders: DecoderPool) -> None:
    frames(decoders)
    (pid,) = decoders.pids
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: gone(pid))
    assert frames(decoders)


def test_the_deadline_of_a_document() -> None:
    pool = pool_of(document_seconds=1)
    try:
        frames(pool)
        (pid,) = pool.pids
        content = many_scans_jpeg()  # minutes of work
        started = time.monotonic()
        with pytest.raises(DocumentError, match="not decoded within 1 seconds"):
            frames(pool, content)
        assert time.monotonic() - started < 10
        assert gone(pid)
        assert frames(pool)
    finally:
        pool.close()


def test_a_file_that_is_not_wanted_any_more_is_given_up(decoders: DecoderPool) -> None:
    """The process that is at it makes room for the next file; who waits for a process waits no longer."""
    began, asked = time.monotonic(), iter(range(10**9))

    def is_canceled() -> bool:
        return next(asked) > 1

    (pid,) = decoders.pids if wait_for(lambda: bool(decoders.pids)) else ()
    with pytest.raises(ClientDisconnectedError):
        list(decoders.frames(many_scans_jpeg(), Sampling(), RequestContext(began + 60, is_canceled)))
    assert wait_for(lambda: gone(pid))
    stream = decoders.frames(video("mp4", "libx264"), Sampling(), RequestContext.within(30))
    next(stream)  # the one process is busy
    with pytest.raises(ClientDisconnectedError):
        list(decoders.frames(SCENE, Sampling(), RequestContext(time.monotonic() + 60, is_canceled)))
    assert time.monotonic() - began < 30
    stream.close()
    assert frames(decoders)


def test_the_deadline_of_a_request(decoders: DecoderPool) -> None:
    frames(decoders)
    with pytest.raises(TimeoutError):
        frames(decoders, many_scans_jpeg(), seconds=0.5)
    assert frames(decoders)


def test_requests_that_wait_for_a_process_are_told_in_time(decoders: DecoderPool) -> None:
    stream = decoders.frames(SCENE, Sampling(), RequestContext.within(30))
    next(stream)
    with pytest.raises(TimeoutError):
        frames(decoders, seconds=0.2)
    stream.close()
    assert frames(decoders)


def test_memory_is_limited() -> None:
    pool = pool_of(decoder_memory_mb=100)
    try:
        frames(pool)
        (pid,) = pool.pids
        with pytest.raises(DocumentError, match="needs more memory"):
            frames(pool, png_bomb(6000))
        assert frames(pool)
        assert pid not in pool.pids
    finally:
        pool.close()


def test_a_closed_pool_says_so(decoders: DecoderPool) -> None:
    frames(decoders)
    pids = decoders.pids
    decoders.close()
    assert all(gone(pid) for pid in pids)
    with pytest.raises(NotReadyError, match="stopping"):
        frames(decoders)


def test_signals_to_the_group_are_the_services(decoders: DecoderPool) -> None:
    frames(decoders)
    (pid,) = decoders.pids
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert frames(decoders)
    assert decoders.pids == [pid]


def test_a_process_knows_no_secrets_and_loads_no_model(decoders: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLORENCE_API_KEY", "secret")
    pool = pool_of()
    try:
        frames(pool)
        process = psutil.Process(pool.pids[0])
        assert "FLORENCE_API_KEY" not in process.environ()
        assert not any("openvino" in one.path for one in process.memory_maps())
    finally:
        pool.close()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "decoding"])
def test_no_process_outlives_a_killed_service(busy: bool) -> None:
    code = (
        "import sys, time\n"
        "from florence_tagger.config import load_settings\n"
        "from florence_tagger.context import RequestContext\n"
        "from florence_tagger.media.sampling import Sampling\n"
        "from florence_tagger.assembly import start_decoder_pool\n"
        "pool = start_decoder_pool(load_settings({'decoder_processes': 2}), (224, 224))\n"
        "list(pool.frames(sys.stdin.buffer.read(int(sys.argv[1])), Sampling(), RequestContext.within(30)))\n"
        "while len(pool.pids) < 2: time.sleep(0.01)\n"
        "print(*pool.pids, flush=True)\n"
        "list(pool.frames(sys.stdin.buffer.read(), Sampling(), RequestContext.within(30)))\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(len(SCENE))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as service:
        assert service.stdin
        assert service.stdout
        service.stdin.write(SCENE)
        service.stdin.flush()
        pids = [int(pid) for pid in service.stdout.readline().split()]
        if busy:
            service.stdin.write(many_scans_jpeg())
            with suppress(BrokenPipeError):
                service.stdin.close()
            assert wait_for(lambda: any(psutil.Process(pid).cpu_percent(0.1) > 10 for pid in pids))
        assert len(pids) == 2
        service.kill()
    assert wait_for(lambda: all(gone(pid) for pid in pids))


def test_files_are_handed_over_whole(decoders: DecoderPool) -> None:
    large = JPEG["4:2:0"]() + bytes(20_000_000)
    assert frames(decoders, large)
    np.testing.assert_array_equal(frames(decoders)[0].pixels, open_picture(SCENE, SIZE, 10**8).pixels)


def test_two_files_at_a_time_do_not_mix() -> None:
    limits = SandboxLimits(DecodeOptions(SIZE, 10**8), 600_000_000, 60)
    pool = DecoderPool(2, limits)
    try:
        one = pool.frames(video("mp4", "libx264"), Sampling(), RequestContext.within(30))
        two = pool.frames(SCENE, Sampling(), RequestContext.within(30))
        assert len({next(one).pixels.tobytes(), next(two).pixels.tobytes()}) == 2
        assert [len(list(one)), len(list(two))] == [2, 0]
    finally:
        pool.close()
