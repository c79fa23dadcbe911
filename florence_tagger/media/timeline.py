"""Packets of a video -> when their frames are shown.

Containers know it, but not all of them all of it: bare streams have no times, AVI has those of decoding, clocks leap,
and what is cut off or joined begins anew.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

VideoPacket: TypeAlias = "Packet[VideoStream]"

# Codecs whose packets may have frames in an order of many layers, and of which ffmpeg makes wrong times where the
# container has none of its own (AVI).
LAYERED = ("h264", "hevc")

# So many packets in a row may have no frame to show without harm: those before the first key frame of an open group of
# pictures depend on a frame that is not there, and encoders hide frames that only others are made from.
MAX_HIDDEN = 8

MIN_KNOWN = 0.75  # share of packets that have a time where a container tells of times
MAX_LEADING = 64  # packets until the first frame comes out, and more: ffmpeg keeps some for each thread

SHOWN_VP8 = 0x10  # of a packet's first byte: its frame is to be shown (RFC 6386, section 9.1)
LONGEST_GAP_S = 600  # between frames; a longer one is a fault of the clock that wrote the file


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown, in units of its stream.

    Attributes:
        packets: in the order of decoding.
        times: of the packets' frames.
        shown: the times of those that are shown, ascending.
        exact: frames carry these times. Else they have them in the order in which they are shown.
    """

    packets: Sequence[VideoPacket]
    times: Sequence[int]
    shown: Sequence[int]
    exact: bool

    @property
    def first(self) -> int | None:
        """The time that the first packet's frame carries; None where it is not shown."""
        packet = self.packets[0]
        return None if packet.is_discard else packet.pts

    def hides(self, moment: int, time: int) -> bool:
        """Tell whether a frame of some time is too far from a moment to be what is shown then."""
        early, late = sorted((moment, time))
        return bisect_right(self.shown, late) - bisect_right(self.shown, early) > MAX_HIDDEN


def timeline_of(codec: VideoCodecContext, packets: Sequence[VideoPacket]) -> Timeline:
    """Return when the frames of packets that have data are shown.

    Packets before the start of an edit list are decoded only for others; some without a time between those that have
    one are from before the start, too (Matroska).
    """
    given = [packet.pts for packet in packets if packet.pts is not None]
    known = len(given) >= MIN_KNOWN * len(packets)
    times = filled(packets) if known else decoding_times(packets)
    unordered = codec.name in LAYERED and codec.has_b_frames and given == sorted(given)
    shown = sorted(
        time
        for packet, time in zip(packets, times, strict=True)
        if is_shown(codec, packet) and (packet.pts is not None or not known)
    )
    if not known:
        for index, packet in enumerate(packets):
            packet.pts = index  # frames have it from their packets, which tells where they come from
    elif shown and shown[0] < times[0]:
        shown = shown[bisect_left(shown, first_time(codec, packets)) :]
    return Timeline(packets, times, shown, known and not unordered)


def filled(packets: Sequence[VideoPacket]) -> list[int]:
    """Return the times of packets, of one that has none that of the one before."""
    times: list[int] = []
    for packet in packets:
        times.append(packet.pts if packet.pts is not None else times[-1] if times else 0)
    return times


def decoding_times(packets: Sequence[VideoPacket]) -> list[int]:
    """Return when packets are decoded, ascending, which bare streams do not say of any or all of them."""
    times: list[int] = []
    following = 0
    for packet in packets:
        known = packet.pts if packet.dts is None else packet.dts
        times.append(following if known is None else known)
        following = times[-1] + max(packet.duration or 0, 1)
    return sorted(times)


def first_time(codec: VideoCodecContext, packets: Sequence[VideoPacket]) -> int:
    """Return the time of the first frame that is shown, at the latest the first packet's.

    Those of an open group of pictures at the start may depend on frames that are not there.
    """
    first = packets[0].pts or 0
    with suppress(av.FFmpegError):
        for packet in packets[:MAX_LEADING]:
            for frame in codec.decode(packet):
                codec.flush_buffers()
                return first if frame.pts is None else min(frame.pts, first)
    codec.flush_buffers()
    return first


def is_shown(codec: VideoCodecContext, packet: VideoPacket) -> bool:
    """Tell whether a packet's frame is to be shown."""
    return not packet.is_discard and (codec.name != "vp8" or bool(memoryview(packet)[0] & SHOWN_VP8))


def join(packets: Sequence[VideoPacket]) -> None:
    """Has the times of packets go on where they start anew, as in files joined end to end.

    Args:
        packets: in the order of the file, which is that of their decoding times.
    """
    shift, last, step = 0, None, 1
    for packet in packets:
        if packet.dts is not None:
            if last is not None and packet.dts + shift < last - step:
                shift = last + step - packet.dts
            elif last is not None:
                step = max(packet.dts + shift - last, 1)
            last = packet.dts = packet.dts + shift
        if packet.pts is not None:
            packet.pts += shift


def without_leaps(times: Sequence[float]) -> list[float]:
    """Times (seconds, ascending) whose leaps are left out, so that frames behind one are looked at, too."""
    steps = np.diff(times, prepend=times[0])
    steady: list[float] = np.cumsum(np.where(steps > LONGEST_GAP_S, np.median(steps), steps)).tolist()
    return steady
