"""A decoder process: it is given files, one after the other, and gives their frames, each when it is asked for.

It imports only what decodes, so that it starts fast and holds nothing of the service. Files and pixels go through two
files in memory that both sides have open; what else there is to say goes as JSON through a socket, never pickled, so
that a process that a file has taken over can't make the service run anything.

    service                                             process
    {"fps", "max_frames", "max_seconds", "tiles"} ->
                                                  <-    {"width", "height", "page", "time_s", "repeats", "tile"}
    {"more": true}, or false for the next file    ->
                                                  <-    another frame; last {"end": true} or {"error": reason},
                                                        and {"spent": whether this process ends now}
"""

import ctypes
import json
import math
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import av.logging

from florence_tagger.errors import DocumentError
from florence_tagger.media.frames import open_frames
from florence_tagger.media.limits import DecodeOptions, SandboxLimits
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.rlimits import memory

TOLD = ("width", "height", "page", "time_s", "repeats", "tile")  # of a frame, beside its pixels
PR_SET_PDEATHSIG = 1  # prctl(2)
SPARE_SECONDS = 5  # the service ends a process in time; the alarm is for when there is no service any more
KEPT_BYTES = 120e6  # of memory that is free, for the next photo; what is more goes back to the system
NO_MEMORY = "To be decoded the file needs more memory than a decoder may take (FLORENCE_DECODER_MEMORY_MB)."
LEAK_BYTES = 60e6  # beyond what may be kept: a process that still holds so much after a document is replaced


class Worker:
    """Treats files until the service closes the channel, or it is better to begin anew.

    Args:
        channel, file, pixels: descriptors.
    """

    def __init__(self, channel: int, file: int, pixels: int, confinement: SandboxLimits) -> None:
        self._channel = Connection(channel)
        self._file = file
        self._pixels = pixels
        self._confinement = confinement
        self._idle_bytes = memory()[1]

    def run(self) -> None:
        """The loop."""
        spent = False
        while not spent:
            last = self._treat(self._receive())
            spent = last.pop("spent", False) or self._leaks()
            self._send(last | {"spent": spent})

    def _treat(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Gives the frames of the file at hand; the last message to it."""
        try:
            tiles = tuple(asked.pop("tiles"))
            for message in self._messages(Sampling(**asked), tiles):
                self._send(message)
                if not self._receive()["more"]:
                    break
        except DocumentError as exc:
            return {"error": str(exc)}
        except MemoryError:
            return {"error": NO_MEMORY, "spent": True}
        except Exception:  # noqa: BLE001 - whatever a decoder makes of hostile bytes costs this document alone
            traceback.print_exc()
            return {"error": "The file could not be decoded; the log of the service says how."}
        return {"end": True}

    def _leaks(self) -> bool:
        """Whether memory is lost, having given back what is free and large."""
        if memory()[1] > self._idle_bytes + KEPT_BYTES:
            with suppress(AttributeError):  # not glibc
                ctypes.CDLL(None).malloc_trim(0)
        return memory()[1] > self._idle_bytes + KEPT_BYTES + LEAK_BYTES

    def _messages(self, sampling: Sampling, tiles: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """The frames of the file at hand, their pixels where the service finds them."""
        limits = replace(self._confinement.limits, tiles=tiles)
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            for frame in open_frames(file, limits, sampling):
                if not frame.repeats:
                    os.pwrite(self._pixels, frame.pixels.data, 0)
                yield {name: getattr(frame, name) for name in TOLD}

    def _receive(self) -> dict[str, Any]:
        """What the service says next; the end of this process where it is gone."""
        signal.alarm(0)
        try:
            message: dict[str, Any] = json.loads(self._channel.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        signal.alarm(math.ceil(self._confinement.seconds) + SPARE_SECONDS)
        return message

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send_bytes(json.dumps(message).encode())
        except OSError:
            os._exit(0)


def confine(parent: int, confinement: SandboxLimits) -> None:
    """Limits what this process can take, and ties it to the service's."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before this
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM):  # they may go to the whole group: the service knows what to do
        signal.signal(number, signal.SIG_IGN)
    most = memory()[0] + confinement.memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves nobody's document on a disk


def main() -> None:
    """Runs a decoder process, as `DecoderHandle` starts it."""
    started = json.loads(sys.argv[1])
    limits = started["confinement"]["limits"]
    limits |= {name: tuple(limits[name]) for name in ("image_size", "tiles")}
    confinement = SandboxLimits(**started["confinement"] | {"limits": DecodeOptions(**limits)})
    warnings.simplefilter("ignore")  # of damage that does no harm
    av.logging.set_level(av.logging.PANIC)
    confine(started["parent"], confinement)
    Worker(started["channel"], started["file"], started["pixels"], confinement).run()


if __name__ == "__main__":
    main()
