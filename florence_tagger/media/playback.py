"""Packets of a video and the requested timestamps -> the frames displayed then.

The decoder seeks to the last key frame before each timestamp and skips non-reference frames. The result is right only
if the file marks its key frames and times correctly, which many files do not. A frame is therefore used only if the
decoder itself reports that it started at a key frame and that the frame has exactly the requested time. At the first
doubt the rest is decoded sequentially from the start, as players do.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import av
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame

from florence_tagger.errors import DocumentError
from florence_tagger.media.timeline import MAX_HIDDEN_FRAMES, Timeline

# Picture types of a frame that needs no other; some decoders report none.
KEY_TYPES = (PictureType.NONE, PictureType.I)


def decode_at(
    codec: VideoCodecContext, timeline: Timeline, timestamps: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield each timestamp with the frame that is displayed then.

    Args:
        codec: decoder of the packets.
        timeline: of the video.
        timestamps: ascending, each of them a frame's.

    Raises:
        av.FFmpegError: packets could not be decoded; raised after all frames that could.
        DocumentError: nothing could be decoded for some timestamps; raised after all frames that could.
    """
    decoder = SeekingDecoder(codec, timeline, timestamps)
    for num_done, timestamp in enumerate(timestamps):
        frame = decoder.frame_at(timestamp) if timeline.reliable_pts else None
        if frame is None:
            yield from decode_sequentially(codec, timeline, timestamps[num_done:])
            return
        yield timestamp, frame
        del frame  # as in `SeekingDecoder.frame_at`


class SeekingDecoder:
    """Decoder that seeks to the requested frames and skips the frames that they do not need."""

    def __init__(self, codec: VideoCodecContext, timeline: Timeline, timestamps: Sequence[int]) -> None:
        self._codec = codec
        self._timeline = timeline
        self._timestamps = set(timestamps)
        self._key_frames = sorted(
            (time, index)
            for index, (packet, time) in enumerate(zip(timeline.packets, timeline.times, strict=True))
            if packet.is_keyframe and not packet.is_discard
        )
        self._packet_index = 0  # of the packet to decode next
        self._start_time = timeline.first_pts  # of the frame that decoding started with, until it is decoded
        self._has_seeked = False
        self._frames: list[VideoFrame] = []  # decoded, in display order
        self._last_time: int | None = None  # of the frame before

    def frame_at(self, timestamp: int) -> VideoFrame | None:
        """Return the frame of a timestamp, which must be later than the previous one; None if it is in doubt."""
        self._seek(timestamp)
        while self._frames or self._decode_packet():
            if not self._frames:
                continue
            # No reference is kept: if one were, FFmpeg would have to copy a GIF's picture before drawing on it.
            frame = self._frames.pop(0)
            if not self._is_valid(frame):
                return None
            if self._last_time is not None and self._last_time >= timestamp:
                return frame if self._last_time == timestamp else None
            del frame
        return None

    def _seek(self, timestamp: int) -> None:
        """Seek to the last key frame before a timestamp, unless decoding is already past it."""
        index = bisect_right(self._key_frames, (timestamp, len(self._timeline.packets))) - 1
        if index >= 0 and self._key_frames[index][1] > self._packet_index:
            self._start_time, self._packet_index = self._key_frames[index]
            self._has_seeked = True
            self._codec.flush_buffers()
            self._frames.clear()
            self._last_time = None

    def _decode_packet(self) -> bool:
        """Decode the next packet; return False at the end or if it can't be decoded."""
        packets = self._timeline.packets
        if self._packet_index > len(packets):
            return False
        packet = packets[self._packet_index] if self._packet_index < len(packets) else None  # None drains the decoder
        # A non-reference frame is decoded only if it is requested itself.
        required = packet is None or self._timeline.times[self._packet_index] in self._timestamps
        self._codec.skip_frame = "DEFAULT" if required else "NONREF"
        self._packet_index += 1
        try:
            self._frames = self._codec.decode(packet)
        except av.FFmpegError:
            return False
        return True

    def _is_valid(self, frame: VideoFrame) -> bool:
        """Return True if a frame is undamaged and in order, and the first one after a seek is a key frame."""
        time = frame.pts
        if time is None or frame.is_corrupt or (self._last_time is not None and time <= self._last_time):
            return False
        self._last_time = time
        if self._start_time is not None and time >= self._start_time:  # earlier frames belong to an open GOP
            start_time, self._start_time = self._start_time, None
            is_key_frame = frame.pict_type in KEY_TYPES and (frame.key_frame or not self._has_seeked)
            return time == start_time and is_key_frame
        return True


def decode_sequentially(
    codec: VideoCodecContext, timeline: Timeline, timestamps: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Decode as `decode_at` does, but from the start; a timestamp without a frame of its own repeats the one before."""
    decoder = SequentialDecoder(codec, timeline)
    previous: tuple[int, VideoFrame] | None = None
    index = 0
    yielded: VideoFrame | None = None
    for following in decoder.frames():
        while index < len(timestamps) and (following is None or following[0] > timestamps[index]):
            chosen = following if previous is None or (decoder.after_error and following is not None) else previous
            if chosen is None:
                break
            time, frame = chosen
            decoder.incomplete |= timeline.is_distant(timestamps[index], time)
            if frame is not yielded:
                yielded = frame
                yield timestamps[index], frame
            index += 1
        if index == len(timestamps):
            break
        previous = following
    if decoder.error is not None:
        raise decoder.error
    if decoder.incomplete:
        raise DocumentError("Some moments of the video can't be decoded.")


class SequentialDecoder:
    """Decoder of all frames from the start.

    Attributes:
        error: of the last packet that could not be decoded.
        after_error: a packet since the previous frame could not be decoded.
        incomplete: there are timestamps for which nothing can be decoded.
    """

    def __init__(self, codec: VideoCodecContext, timeline: Timeline) -> None:
        self._codec = codec
        self._timeline = timeline
        self._num_frames = 0
        self._time = timeline.display_times[0]
        self._first_pts = timeline.first_pts  # until its frame is decoded
        self.error: av.FFmpegError | None = None
        self.after_error = False
        self.incomplete = False

    def frames(self) -> Iterator[tuple[int, VideoFrame] | None]:
        """Yield the frames with their display times, ascending; None marks the end."""
        self._codec.flush_buffers()
        self._codec.skip_frame = "DEFAULT"
        for packet in [*self._timeline.packets, None]:
            try:
                frames = self._codec.decode(packet)
            except av.FFmpegError as exc:
                self.error, self.after_error = exc, True
                continue
            for frame in frames:
                self._check_start(frame)
                self.incomplete |= frame.is_corrupt  # frames that reference it show the same damage
                yield self._display_time(frame), frame
                self.after_error = False
        if not self._timeline.reliable_pts:
            num_missing = len(self._timeline.display_times) - self._num_frames
            self.incomplete |= self._first_pts is not None or num_missing > MAX_HIDDEN_FRAMES
        yield None

    def _display_time(self, frame: VideoFrame) -> int:
        """Return the display time of a frame, never earlier than that of the previous one."""
        display_times = self._timeline.display_times
        time_by_order = display_times[min(self._num_frames, len(display_times) - 1)]
        self._num_frames += 1
        time = frame.pts if self._timeline.reliable_pts else time_by_order
        self._time = self._time if time is None else max(self._time, time)
        return self._time

    def _check_start(self, frame: VideoFrame) -> None:
        """Set `incomplete` if the beginning is cut off: the first packet's frame is missing or is no key frame.

        Only frames of an open GOP, which are decoded after it, may be displayed before it.
        """
        reliable_pts = self._timeline.reliable_pts
        if self._first_pts is None or frame.pts is None or (reliable_pts and frame.pts < self._first_pts):
            return
        if reliable_pts or frame.pts == self._first_pts or self._num_frames > MAX_HIDDEN_FRAMES:
            self.incomplete |= frame.pts != self._first_pts or frame.pict_type not in KEY_TYPES
            self._first_pts = None
