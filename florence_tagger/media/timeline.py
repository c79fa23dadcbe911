"""Packets of a video -> display times of their frames.

Containers do not always have complete times: bare streams have none, AVI has decoding times only, clocks jump, and the
times of files that were cut or joined start over.
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

# Codecs with hierarchical B-frames, for which FFmpeg computes wrong times if the container has none (AVI).
HIERARCHICAL_CODECS = ("h264", "hevc")

# Consecutive packets that may have no displayed frame without harm: those before the first key frame of an open GOP
# depend on a missing frame, and encoders hide frames that only serve as references.
MAX_HIDDEN_FRAMES = 8

MIN_KNOWN_SHARE = 0.75  # of packets that have a time, for the container's times to be used
MAX_DELAY_PACKETS = 64  # upper bound of the packets until the first frame is returned; FFmpeg keeps some per thread

VP8_SHOW_FRAME = 0x10  # flag in a packet's first byte: its frame is displayed (RFC 6386, section 9.1)
MAX_GAP_S = 600  # between frames; a longer one is an error of the recorder's clock


@dataclass(frozen=True)
class Timeline:
    """Display times of the frames of a video, in units of its stream's time base.

    Attributes:
        packets: in decoding order.
        times: of the packets' frames.
        display_times: times of the frames that are displayed, ascending.
        reliable_pts: decoded frames carry these times; otherwise the times are assigned in display order.
    """

    packets: Sequence[VideoPacket]
    times: Sequence[int]
    display_times: Sequence[int]
    reliable_pts: bool

    @property
    def first_pts(self) -> int | None:
        """Time that the first packet's frame carries; None if it is not displayed."""
        packet = self.packets[0]
        return None if packet.is_discard else packet.pts

    def is_distant(self, timestamp: int, time: int) -> bool:
        """Return True if a frame of a time is too far from a timestamp to be the one displayed then."""
        start, end = sorted((timestamp, time))
        num_between = bisect_right(self.display_times, end) - bisect_right(self.display_times, start)
        return num_between > MAX_HIDDEN_FRAMES


def build_timeline(codec: VideoCodecContext, packets: Sequence[VideoPacket]) -> Timeline:
    """Return the timeline of packets that have data.

    Packets before the start of an edit list are decoded only as references. Packets without a time among packets with
    one are from before the start, too (Matroska).
    """
    known_times = [packet.pts for packet in packets if packet.pts is not None]
    has_times = len(known_times) >= MIN_KNOWN_SHARE * len(packets)
    times = fill_missing_times(packets) if has_times else decoding_times(packets)
    unordered = codec.name in HIERARCHICAL_CODECS and codec.has_b_frames and known_times == sorted(known_times)
    display_times = sorted(
        time
        for packet, time in zip(packets, times, strict=True)
        if is_displayed(codec, packet) and (packet.pts is not None or not has_times)
    )
    if not has_times:
        for index, packet in enumerate(packets):
            packet.pts = index  # copied to its frame, which identifies the packet that the frame comes from
    elif display_times and display_times[0] < times[0]:
        display_times = display_times[bisect_left(display_times, first_display_time(codec, packets)) :]
    return Timeline(packets, times, display_times, has_times and not unordered)


def fill_missing_times(packets: Sequence[VideoPacket]) -> list[int]:
    """Return the times of packets; a packet without a time gets that of the packet before."""
    times: list[int] = []
    for packet in packets:
        times.append(packet.pts if packet.pts is not None else times[-1] if times else 0)
    return times


def decoding_times(packets: Sequence[VideoPacket]) -> list[int]:
    """Return the decoding times of packets, ascending, estimated by durations if the stream does not have them."""
    times: list[int] = []
    next_time = 0
    for packet in packets:
        known_time = packet.pts if packet.dts is None else packet.dts
        times.append(next_time if known_time is None else known_time)
        next_time = times[-1] + max(packet.duration or 0, 1)
    return sorted(times)


def first_display_time(codec: VideoCodecContext, packets: Sequence[VideoPacket]) -> int:
    """Return the time of the first frame that can be displayed, at the latest that of the first packet.

    Frames of an open GOP at the start may reference frames that are missing.
    """
    first_time = packets[0].pts or 0
    with suppress(av.FFmpegError):
        for packet in packets[:MAX_DELAY_PACKETS]:
            for frame in codec.decode(packet):
                codec.flush_buffers()
                return first_time if frame.pts is None else min(frame.pts, first_time)
    codec.flush_buffers()
    return first_time


def is_displayed(codec: VideoCodecContext, packet: VideoPacket) -> bool:
    """Return True if a packet's frame is to be displayed."""
    return not packet.is_discard and (codec.name != "vp8" or bool(memoryview(packet)[0] & VP8_SHOW_FRAME))


def make_continuous(packets: Sequence[VideoPacket]) -> None:
    """Shift the times of packets to continue where they start over, as in files joined end to end.

    Args:
        packets: in the order of the file, which is that of their decoding times.
    """
    shift, last_time, step = 0, None, 1
    for packet in packets:
        if packet.dts is not None:
            if last_time is not None and packet.dts + shift < last_time - step:
                shift = last_time + step - packet.dts
            elif last_time is not None:
                step = max(packet.dts + shift - last_time, 1)
            last_time = packet.dts = packet.dts + shift
        if packet.pts is not None:
            packet.pts += shift


def remove_gaps(times: Sequence[float]) -> list[float]:
    """Return times (seconds, ascending) without gaps over `MAX_GAP_S`, so that frames after a gap are sampled, too."""
    steps = np.diff(times, prepend=times[0])
    continuous: list[float] = np.cumsum(np.where(steps > MAX_GAP_S, np.median(steps), steps)).tolist()
    return continuous
