"""A decoder process as the service sees it."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import Any

import numpy as np

from florence_tagger.errors import DocumentError
from florence_tagger.media.limits import LOOK_SECONDS, SandboxLimits
from florence_tagger.media.sampling import Sampling
from florence_tagger.schemas import Frame, UInt8Array
from florence_tagger.tiling import WHOLE

logger = logging.getLogger(__name__)

PACKAGES = Path(__file__).resolve().parents[3]  # where this package is, for a process that imports it anew
MAX_MESSAGE = 100_000  # bytes; reasons are short

# Of glibc (mallopt(3)): one heap, which keeps what a photo of twelve megapixels took, so that the next one need not ask
# the system for it page by page. That is a quarter of the time (`python -m benchmarks.media`).
MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),  # Pillow takes blocks of 16 MiB
    "MALLOC_TRIM_THRESHOLD_": str(128 * 1024**2),
}


class DecoderHandle:
    """One file at a time, to frames.

    Attributes:
        fit: for another file; not where it crashed, was ended, or has ended itself.
    """

    def __init__(self, confinement: SandboxLimits) -> None:
        """Starts it; must be called in a thread that lives as long as the process shall (prctl(2), PR_SET_PDEATHSIG).

        Raises:
            OSError: the system has no room for it.
        """
        self._confinement = confinement
        self._file = os.memfd_create("document")
        self._pixels = os.memfd_create("pixels")
        ours, theirs = socketpair()
        with theirs:
            startup = {
                "channel": theirs.fileno(),
                "file": self._file,
                "pixels": self._pixels,
                "parent": os.getpid(),
                "confinement": asdict(confinement),
            }
            command = [sys.executable, "-P", "-m", "florence_tagger.media.sandbox.child", json.dumps(startup)]
            handed = (theirs.fileno(), self._file, self._pixels)
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=handed,
                env=environment(),
                process_group=0,  # a terminal's Ctrl-C is not for it, not even before it can ignore it
            )
        self._channel = Connection(ours.detach())
        self.fit = True

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def frames(
        self,
        content: bytes,
        sampling: Sampling,
        deadline: float,
        check: Callable[[], None] = lambda: None,
        tiles: tuple[int, ...] = WHOLE,
    ) -> Generator[Frame]:
        """The frames of a file, decoded one by one as they are asked for; `tiles` as in `DecodeOptions`.

        `check` is called now and then meanwhile; what it raises costs the process, which is at the file.

        Raises:
            DocumentError: the file is not accepted or damaged, or it cost the process, possibly after some frames.
            TimeoutError: the monotonic time `deadline` has come.
        """
        os.truncate(self._file, 0)
        write_all(self._file, content)
        pixels: UInt8Array = np.empty(0, np.uint8)
        message: dict[str, Any] = asdict(sampling) | {"tiles": tiles}
        work_left = self._confinement.seconds
        ended = False
        try:
            while True:
                started = time.monotonic()
                answer = self._ask(message, work_left, deadline, check)
                work_left -= time.monotonic() - started
                if ended := "spent" in answer:
                    break
                pixels = pixels if answer["repeats"] else self._read_pixels()
                yield frame_of(pixels, answer)
                message = {"more": True}
        finally:
            if self.fit and not ended:  # nobody wants the rest
                answer = self._ask({"more": False}, work_left, deadline)
            if self.fit:
                os.truncate(self._file, 0)
                self.fit = not answer["spent"]
        if "error" in answer:
            raise DocumentError(str(answer["error"]))

    def _ask(
        self, message: dict[str, Any], work_left: float, deadline: float, check: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Sends a message and waits for the answer to it."""
        time_left = deadline - time.monotonic()
        try:
            self._channel.send_bytes(json.dumps(message).encode())
            if self._is_answered(min(work_left, time_left), check):
                answer: dict[str, Any] = json.loads(self._channel.recv_bytes(MAX_MESSAGE))
                return answer
        except (OSError, EOFError, ValueError) as exc:
            self.fit = False
            logger.warning("A file made its decoder process crash.")
            raise DocumentError("The file made its decoder crash.") from exc
        self.fit = False
        if time_left < work_left:
            raise TimeoutError
        logger.warning("A decoder process was given up after %g s.", self._confinement.seconds)
        raise DocumentError(f"The file was not decoded within {self._confinement.seconds:g} seconds.")

    def _is_answered(self, seconds: float, check: Callable[[], None]) -> bool:
        """Whether there is an answer within so many seconds."""
        ends = time.monotonic() + seconds
        while not self._channel.poll(max(min(ends - time.monotonic(), LOOK_SECONDS), 0)):
            if time.monotonic() >= ends:
                return False
            try:
                check()
            except Exception:
                self.fit = False  # it is still at the file
                raise
        return True

    def _read_pixels(self) -> UInt8Array:
        """A copy of the pixels that the process has written: uint8 (H, W, 3)."""
        pixels: UInt8Array = np.empty((*self._confinement.limits.image_size, 3), np.uint8)
        os.preadv(self._pixels, [pixels.data], 0)
        return pixels

    def end(self) -> None:
        """Ends the process, whatever it is at."""
        self.fit = False
        self._process.kill()
        self._process.wait()
        self._channel.close()
        for descriptor in (self._file, self._pixels):
            os.close(descriptor)


def frame_of(pixels: UInt8Array, answer: dict[str, Any]) -> Frame:
    """A frame of pixels and of what the process tells of it."""
    tile = answer.pop("tile")
    return Frame(pixels, **answer, tile=None if tile is None else tuple(tile))


def write_all(descriptor: int, content: bytes) -> None:
    """Writes more than one call of the system may take."""
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, memoryview(content)[written:], written)


def environment() -> dict[str, str]:
    """This process's environment without the service's settings, among them its key."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("FLORENCE_")}
    return own | MEMORY | {"PYTHONPATH": str(PACKAGES), "OPENBLAS_NUM_THREADS": "1"}
