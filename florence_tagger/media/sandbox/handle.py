"""Handle of a decoder process, used by the service."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import Any

import numpy as np

from florence_tagger.context import RequestContext
from florence_tagger.errors import ClientDisconnectedError, DocumentError
from florence_tagger.media.limits import SandboxLimits
from florence_tagger.media.sampling import Sampling
from florence_tagger.schemas import Frame, UInt8Array
from florence_tagger.tiling import UNTILED

logger = logging.getLogger(__name__)

PACKAGE_ROOT = Path(__file__).resolve().parents[3]  # import path of this package for the child process
MAX_MESSAGE_BYTES = 100_000  # frame fields and reasons are short

# Settings of glibc (mallopt(3)): one heap, which keeps the memory of a photo of twelve megapixels, so that the next one
# does not request it from the system page by page. That saves a quarter of the time (`python -m benchmarks.media`).
MALLOC_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),  # Pillow allocates blocks of 16 MiB
    "MALLOC_TRIM_THRESHOLD_": str(128 * 1024**2),
}


class DecoderHandle:
    """A decoder process that decodes one file at a time.

    Attributes:
        reusable: another file can be decoded; False once the process has crashed, was killed or has exited.
    """

    def __init__(self, limits: SandboxLimits) -> None:
        """Start the process; call it in a thread that outlives the process (prctl(2), PR_SET_PDEATHSIG).

        Raises:
            OSError: the system can't start another process.
        """
        self._limits = limits
        self._file = os.memfd_create("document")
        self._pixels = os.memfd_create("pixels")
        parent_socket, child_socket = socketpair()
        with child_socket:
            startup = {
                "channel": child_socket.fileno(),
                "file": self._file,
                "pixels": self._pixels,
                "parent_pid": os.getpid(),
                "limits": asdict(limits),
            }
            command = [sys.executable, "-P", "-m", "florence_tagger.media.sandbox.child", json.dumps(startup)]
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(child_socket.fileno(), self._file, self._pixels),
                env=child_environment(),
                process_group=0,  # a terminal's Ctrl-C must not reach it, not even before it ignores the signal
            )
        self._channel = Connection(parent_socket.detach())
        self.reusable = True

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    def frames(
        self, content: bytes, sampling: Sampling, context: RequestContext, tiles: tuple[int, ...] = UNTILED
    ) -> Generator[Frame]:
        """Yield the frames of a file, each decoded on request.

        Args:
            content: bytes of the file.
            sampling: frames to decode of a video or animation.
            context: of the request that the file belongs to.
            tiles: as in `DecodeOptions`.

        Raises:
            DocumentError: the file is damaged, is not accepted or made the process fail, possibly after some frames.
            TimeoutError: the deadline has passed; the process can't be reused.
            ClientDisconnectedError: the request is canceled; the process can't be reused unless it has replied.
        """
        os.truncate(self._file, 0)
        write_all(self._file, content)
        pixels: UInt8Array = np.empty(0, np.uint8)
        message: dict[str, Any] = asdict(sampling) | {"tiles": tiles}
        seconds_left = self._limits.seconds
        ended = False
        try:
            while True:
                started = time.monotonic()
                reply = self._exchange(message, seconds_left, context)
                seconds_left -= time.monotonic() - started
                if ended := "exits" in reply:
                    break
                pixels = pixels if reply["repeats"] else self._read_pixels()
                yield frame_from(pixels, reply)
                message = {"more": True}
        finally:
            if self.reusable and not ended:  # the caller stopped before the last frame
                reply = self._exchange({"more": False}, seconds_left, RequestContext(context.deadline))
            if self.reusable:
                os.truncate(self._file, 0)
                self.reusable = reply.get("exits") is False
        if "error" in reply:
            raise DocumentError(str(reply["error"]))

    def _exchange(self, message: dict[str, Any], seconds: float, context: RequestContext) -> dict[str, Any]:
        """Send a message and return the reply, which must arrive within `seconds`."""
        end = time.monotonic() + seconds
        try:
            self._channel.send_bytes(json.dumps(message).encode())
            if not self._channel.poll():  # a reply that is there already is taken, whatever became of the request
                replace(context, deadline=min(context.deadline, end)).poll(self._poll_channel)
            reply: dict[str, Any] = json.loads(self._channel.recv_bytes(MAX_MESSAGE_BYTES))
        except (TimeoutError, ClientDisconnectedError) as exc:
            self.reusable = False  # it is still decoding the file
            if isinstance(exc, ClientDisconnectedError) or context.deadline < end:
                raise
            logger.warning("A decoder process was given up after %g s.", self._limits.seconds)
            raise DocumentError(f"The file was not decoded within {self._limits.seconds:g} seconds.") from None
        except (OSError, EOFError, ValueError) as exc:
            self.reusable = False
            logger.warning("A file made its decoder process crash.")
            raise DocumentError("The file made its decoder crash.") from exc
        return reply

    def _poll_channel(self, seconds: float) -> bool | None:
        """Return True if a reply arrives within `seconds`, else None."""
        return self._channel.poll(seconds) or None

    def _read_pixels(self) -> UInt8Array:
        """Return a copy of the pixels that the process has written: uint8 (H, W, 3)."""
        pixels: UInt8Array = np.empty((*self._limits.options.image_size, 3), np.uint8)
        os.preadv(self._pixels, [pixels.data], 0)
        return pixels

    def kill(self) -> None:
        """Kill the process, even while it decodes, and close its descriptors."""
        self.reusable = False
        self._process.kill()
        self._process.wait()
        self._channel.close()
        for descriptor in (self._file, self._pixels):
            os.close(descriptor)


def frame_from(pixels: UInt8Array, reply: dict[str, Any]) -> Frame:
    """Return the frame of these pixels and the fields of the process's reply."""
    tile = reply.pop("tile")
    return Frame(pixels, **reply, tile=None if tile is None else tuple(tile))


def write_all(descriptor: int, content: bytes) -> None:
    """Write all bytes to a file, of which one system call may take only some."""
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, memoryview(content)[written:], written)


def child_environment() -> dict[str, str]:
    """Return this process's environment without the service's settings, which include its API key."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLORENCE_")}
    return inherited | MALLOC_SETTINGS | {"PYTHONPATH": str(PACKAGE_ROOT), "OPENBLAS_NUM_THREADS": "1"}
