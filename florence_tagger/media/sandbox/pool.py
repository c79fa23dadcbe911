"""The pool of decoder processes: untrusted bytes are decoded in them and nowhere else."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

from florence_tagger.errors import STOPPING, NotReadyError
from florence_tagger.media.limits import LOOK_SECONDS, SandboxLimits
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.handle import DecoderHandle
from florence_tagger.schemas import Frame
from florence_tagger.tiling import WHOLE

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0  # after the system had no room for another process


class DecoderPool:
    """So many processes, for any thread; one that is lost or spent is replaced at once.

    They are started one after the other in a thread of the pool's, which they end with.
    """

    def __init__(self, processes: int, confinement: SandboxLimits) -> None:
        self._confinement = confinement
        self._idle: queue.LifoQueue[DecoderHandle | None] = queue.LifoQueue()  # the one used last is warm
        self._all: set[DecoderHandle] = set()
        self._closed = threading.Event()
        self._lock = threading.Lock()  # of the set, and of what closing must not miss
        self._starter = ThreadPoolExecutor(1, "decoders")
        for _ in range(processes):
            self._starter.submit(self._start)

    def frames(
        self,
        content: bytes,
        sampling: Sampling,
        deadline: float,
        check: Callable[[], None] = lambda: None,
        tiles: tuple[int, ...] = WHOLE,
    ) -> Generator[Frame]:
        """The frames of a file, decoded one by one as they are asked for, until the monotonic time `deadline`.

        `tiles` says how many each picture is cut into, as in `DecodeOptions`.

        `check` is called now and then while something is waited for, and raises where the file is not wanted any more.

        Raises:
            DocumentError: the file is not accepted or damaged, or it cost its process, possibly after some frames.
            TimeoutError: the deadline has come.
            NotReadyError: the pool is closed.
        """
        process = self._take(deadline, check)
        try:
            yield from process.frames(content, sampling, deadline, check, tiles)
        finally:
            self._give_back(process)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the frames, pixels."""
        return self._confinement.limits.image_size

    @property
    def pids(self) -> list[int]:
        """The ids of the processes."""
        with self._lock:
            return [process.pid for process in self._all]

    def close(self) -> None:
        """Ends all processes; what they are at fails."""
        self._closed.set()
        with self._lock:
            processes, self._all = self._all, set()
        for process in processes:
            process.end()
        self._idle.put(None)
        self._starter.shutdown(cancel_futures=True)

    def _take(self, deadline: float, check: Callable[[], None]) -> DecoderHandle:
        """A process that is free and alive."""
        while True:
            check()
            try:
                process = self._idle.get(timeout=max(min(deadline - time.monotonic(), LOOK_SECONDS), 0))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise TimeoutError from None
                continue
            if process is None or self._closed.is_set():
                self._idle.put(None)  # for the next one
                raise NotReadyError(STOPPING)
            if process.alive:
                return process
            self._replace(process)

    def _give_back(self, process: DecoderHandle) -> None:
        if process.fit:
            self._idle.put(process)
        else:
            self._replace(process)

    def _replace(self, process: DecoderHandle) -> None:
        with self._lock:
            if process not in self._all:  # the pool is closed, and has ended it
                return
            self._all.remove(process)
        process.end()
        self._starter.submit(self._start)

    def _start(self) -> None:
        """Starts a process, in the pool's thread."""
        while not self._closed.is_set():
            try:
                process = DecoderHandle(self._confinement)
            except OSError:
                logger.exception("A decoder process can't be started")
                self._closed.wait(RETRY_SECONDS)
                continue
            with self._lock:
                if self._closed.is_set():
                    process.end()
                    return
                self._all.add(process)
            self._idle.put(process)
            return
