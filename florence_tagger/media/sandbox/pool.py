"""Pool of decoder processes, the only ones that decode untrusted bytes."""

import logging
import queue
import threading
from collections import Counter
from collections.abc import Generator, Hashable
from concurrent.futures import ThreadPoolExecutor

from florence_tagger.context import RequestContext
from florence_tagger.errors import STOPPING, ClientDisconnectedError, NotReadyError
from florence_tagger.media.limits import SandboxLimits
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.handle import DecoderHandle
from florence_tagger.schemas import Frame
from florence_tagger.tiling import UNTILED

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0  # after the system could not start another process


class DecodePermits:
    """Permits to decode, for the files of requests: one for each request at any time, and `extra` that all share.

    So neither a large request nor several of them occupy all processes with videos that wait for the model.
    """

    def __init__(self, extra: int) -> None:
        self._extra = extra
        self._held: Counter[Hashable] = Counter()
        self._changed = threading.Condition()

    def acquire(self, request: Hashable, seconds: float) -> bool:
        """Return whether a request got a permit within `seconds`."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._held[request] or self._extra > 0, seconds):
                return False
            self._extra -= self._held[request] > 0
            self._held[request] += 1
            return True

    def release(self, request: Hashable) -> None:
        """Return a permit of a request."""
        with self._changed:
            self._held[request] -= 1
            if self._held[request]:
                self._extra += 1
            else:
                del self._held[request]
            self._changed.notify_all()


class DecoderPool:
    """A fixed number of decoder processes, shared by all threads; a lost process is replaced at once.

    All processes are started by one thread of the pool, since they die with the thread that started them.

    Attributes:
        permits: to decode; a request's files need one each.
    """

    def __init__(self, processes: int, limits: SandboxLimits) -> None:
        self.permits = DecodePermits(max(processes // 2 - 1, 0))
        self._limits = limits
        self._idle: queue.LifoQueue[DecoderHandle | None] = queue.LifoQueue()  # the one used last has warm caches
        self._all: set[DecoderHandle] = set()
        self._closed = threading.Event()
        self._lock = threading.Lock()  # guards `_all` against a concurrent `close`
        self._starter = ThreadPoolExecutor(1, "decoders")
        for _ in range(processes):
            self._starter.submit(self._start)

    def frames(
        self,
        content: bytes,
        sampling: Sampling,
        context: RequestContext,
        tiles: tuple[int, ...] = UNTILED,
    ) -> Generator[Frame]:
        """Yield the frames of a file, each decoded on request.

        Args:
            content: bytes of the file.
            sampling: frames to decode of a video or animation.
            context: of the request that the file belongs to.
            tiles: tiles a side of each picture, as in `DecodeOptions`.

        Raises:
            DocumentError: the file is damaged, is not accepted or made its process fail, possibly after some frames.
            TimeoutError: the deadline has passed.
            ClientDisconnectedError: the request is canceled.
            NotReadyError: the pool is closed.
        """
        handle = context.poll(self._acquire_within)
        try:
            yield from handle.frames(content, sampling, context, tiles)
        except ClientDisconnectedError:
            raise
        except Exception as exc:
            if self._closed.is_set():  # `close` has killed the process: the file is not at fault
                raise NotReadyError(STOPPING) from exc
            raise
        finally:
            self._release(handle)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the frames, pixels."""
        return self._limits.options.image_size

    @property
    def pids(self) -> list[int]:
        """Ids of the processes."""
        with self._lock:
            return [handle.pid for handle in self._all]

    def close(self) -> None:
        """Kill all processes; files that are being decoded fail."""
        self._closed.set()
        with self._lock:
            handles, self._all = self._all, set()
        for handle in handles:
            handle.kill()
        self._idle.put(None)
        self._starter.shutdown(cancel_futures=True)

    def _acquire_within(self, seconds: float) -> DecoderHandle | None:
        """Return an idle process; None if there is none within `seconds`, or if it has died."""
        try:
            handle = self._idle.get(timeout=seconds)
        except queue.Empty:
            return None
        if handle is None or self._closed.is_set():
            self._idle.put(None)  # for the next thread that waits
            raise NotReadyError(STOPPING)
        if handle.is_alive:
            return handle
        self._replace(handle)
        return None

    def _release(self, handle: DecoderHandle) -> None:
        if handle.reusable:
            self._idle.put(handle)
        else:
            self._replace(handle)

    def _replace(self, handle: DecoderHandle) -> None:
        with self._lock:
            if handle not in self._all:  # `close` has killed it
                return
            self._all.remove(handle)
            self._starter.submit(self._start)  # under the lock: not after `close` has shut the starter down
        handle.kill()

    def _start(self) -> None:
        """Start a process, in the pool's thread."""
        while not self._closed.is_set():
            try:
                handle = DecoderHandle(self._limits)
            except OSError:
                logger.exception("A decoder process can't be started")
                self._closed.wait(RETRY_SECONDS)
                continue
            with self._lock:
                if self._closed.is_set():
                    handle.kill()
                    return
                self._all.add(handle)
            self._idle.put(handle)
            return
