"""Main program of a decoder process: it receives files one after another and sends their frames on request.

It imports only what decodes, so that it starts fast and holds nothing of the service. Files and pixels are exchanged
through two in-memory files that both processes have open. Messages are JSON over a socket, never pickled, so that a
process that was taken over by a malicious file can't make the service run code.

    service                                             child
    {"fps", "max_frames", "max_seconds", "tiles"} ->
                                                  <-    {"width", "height", "page", "time_s", "repeats", "tile"}
    {"more": true}, or false for the next file    ->
                                                  <-    the next frame; finally {"end": true} or {"error": reason},
                                                        and {"exits": true} if this process exits then
"""

import ctypes
import json
import math
import os
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
from florence_tagger.media.sandbox.rlimits import memory_usage, restrict_process

FRAME_FIELDS = ("width", "height", "page", "time_s", "repeats", "tile")  # sent with each frame, besides its pixels
ALARM_MARGIN_SECONDS = 5  # the service kills a slow child in time; the alarm is for a child whose service has died
RETAINED_BYTES = 120e6  # free memory kept for the next photo; the rest is returned to the system
OUT_OF_MEMORY = "To be decoded the file needs more memory than a decoder may take (FLORENCE_DECODER_MEMORY_MB)."
LEAK_BYTES = 60e6  # beyond `RETAINED_BYTES`: a process that still holds that much after a document is replaced


class DecoderChild:
    """Decodes files until the service closes the channel or the process has to be replaced.

    Args:
        channel: descriptor of the socket to the service.
        file: descriptor of the in-memory file with the document.
        pixels: descriptor of the in-memory file for the pixels of a frame.
        limits: of this process.
    """

    def __init__(self, channel: int, file: int, pixels: int, limits: SandboxLimits) -> None:
        self._channel = Connection(channel)
        self._file = file
        self._pixels = pixels
        self._limits = limits
        self._idle_bytes = memory_usage().resident

    def run(self) -> None:
        """Decode one file per request until the process has to be replaced."""
        exits = False
        while not exits:
            final_message = self._decode_file(self._receive())
            exits = final_message.pop("exits", False) or self._leaks_memory()
            self._send(final_message | {"exits": exits})

    def _decode_file(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send the frames of the current file and return the final message."""
        try:
            tiles = tuple(request.pop("tiles"))
            for message in self._frame_messages(Sampling(**request), tiles):
                self._send(message)
                if not self._receive()["more"]:
                    break
        except DocumentError as exc:
            return {"error": str(exc)}
        except MemoryError:
            return {"error": OUT_OF_MEMORY, "exits": True}
        except Exception:  # noqa: BLE001 - any error that hostile bytes cause in a decoder fails this document only
            traceback.print_exc()
            return {"error": "The file could not be decoded; the log of the service says how."}
        return {"end": True}

    def _leaks_memory(self) -> bool:
        """Return free memory to the system and report whether too much is still held."""
        if memory_usage().resident > self._idle_bytes + RETAINED_BYTES:
            with suppress(AttributeError):  # not glibc
                ctypes.CDLL(None).malloc_trim(0)
        return memory_usage().resident > self._idle_bytes + RETAINED_BYTES + LEAK_BYTES

    def _frame_messages(self, sampling: Sampling, tiles: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """Yield a message for each frame of the current file, after writing its pixels to the shared file."""
        options = replace(self._limits.options, tiles=tiles)
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            for frame in open_frames(file, options, sampling):
                if not frame.repeats:
                    os.pwrite(self._pixels, frame.pixels.data, 0)
                yield {name: getattr(frame, name) for name in FRAME_FIELDS}

    def _receive(self) -> dict[str, Any]:
        """Return the next message of the service; exit if the channel is closed."""
        signal.alarm(0)
        try:
            message: dict[str, Any] = json.loads(self._channel.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        signal.alarm(math.ceil(self._limits.seconds) + ALARM_MARGIN_SECONDS)
        return message

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send_bytes(json.dumps(message).encode())
        except OSError:
            os._exit(0)


def main() -> None:
    """Run a decoder process as started by `DecoderHandle`."""
    startup = json.loads(sys.argv[1])
    options = startup["limits"]["options"]
    options |= {name: tuple(options[name]) for name in ("image_size", "tiles")}
    limits = SandboxLimits(**startup["limits"] | {"options": DecodeOptions(**options)})
    warnings.simplefilter("ignore")  # about harmless damage
    av.logging.set_level(av.logging.PANIC)
    restrict_process(startup["parent_pid"], limits.memory_bytes)
    DecoderChild(startup["channel"], startup["file"], startup["pixels"], limits).run()


if __name__ == "__main__":
    main()
