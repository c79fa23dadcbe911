"""Packets of a video and the moments that are wanted -> the frames shown then.

Decoding jumps to the last key frame before each moment, and skips between what nothing depends on. That gives the right
frame only where the file tells the truth about its key frames and times, which many do not: each frame is taken only if
the decoder itself says that it began at a key frame, and has exactly the wanted time. At the first doubt the rest is
decoded from the start, without jumping and skipping, as players do it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import av
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame

from florence_tagger.errors import DocumentError
from florence_tagger.media.timeline import MAX_HIDDEN, Timeline

# Of a frame that needs no other; some decoders do not say.
KEY_TYPES = (PictureType.NONE, PictureType.I)


def decode(codec: VideoCodecContext, timeline: Timeline, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Decode what is shown at the wanted times, ascending, each of them a frame's.

    Raises:
        av.FFmpegError: of packets that could not be decoded, after all that could.
        DocumentError: at some of the times nothing could be decoded, after all that could.
    """
    leaper = Leaper(codec, timeline, wanted)
    for done, moment in enumerate(wanted):
        frame = leaper.frame_at(moment) if timeline.exact else None
        if frame is None:
            yield from play(codec, timeline, wanted[done:])
            return
        yield moment, frame
        del frame  # as in `Leaper.frame_at`


class Leaper:
    """Decodes the wanted frames and little else."""

    def __init__(self, codec: VideoCodecContext, timeline: Timeline, wanted: Sequence[int]) -> None:
        self._codec = codec
        self._timeline = timeline
        self._wanted = set(wanted)
        self._starts = sorted(
            (time, index)
            for index, (packet, time) in enumerate(zip(timeline.packets, timeline.times, strict=True))
            if packet.is_keyframe and not packet.is_discard
        )
        self._index = 0  # of the packet that is decoded next
        self._landing = timeline.first  # time of the frame that decoding began with, until it is seen
        self._jumped = False
        self._frames: list[VideoFrame] = []  # decoded, in the order in which they are shown
        self._last: int | None = None  # time of the frame before

    def frame_at(self, moment: int) -> VideoFrame | None:
        """Return the frame of a time, which is later than the one before; None where it is in doubt."""
        self._leap(moment)
        while self._frames or self._advance():
            if not self._frames:
                continue
            # It is not kept: beside one that is, ffmpeg has to copy a GIF's picture before it draws on.
            frame = self._frames.pop(0)
            if not self._is_sound(frame):
                return None
            if self._last is not None and self._last >= moment:
                return frame if self._last == moment else None
            del frame
        return None

    def _leap(self, moment: int) -> None:
        """Go to the last key frame before a moment, unless decoding is there already."""
        place = bisect_right(self._starts, (moment, len(self._timeline.packets))) - 1
        if place >= 0 and self._starts[place][1] > self._index:
            self._landing, self._index = self._starts[place]
            self._jumped = True
            self._codec.flush_buffers()
            self._frames.clear()
            self._last = None

    def _advance(self) -> bool:
        """Decode another packet; False at the end and where it can't be decoded."""
        packets = self._timeline.packets
        if self._index > len(packets):
            return False
        packet = packets[self._index] if self._index < len(packets) else None  # which has the decoder give the rest
        # What no other frame needs is decoded only where it is wanted itself.
        needed = packet is None or self._timeline.times[self._index] in self._wanted
        self._codec.skip_frame = "DEFAULT" if needed else "NONREF"
        self._index += 1
        try:
            self._frames = self._codec.decode(packet)
        except av.FFmpegError:
            return False
        return True

    def _is_sound(self, frame: VideoFrame) -> bool:
        """Tell whether a frame is undamaged and in its place, and the first one needs no other."""
        time = frame.pts
        if time is None or frame.is_corrupt or (self._last is not None and time <= self._last):
            return False
        self._last = time
        if self._landing is not None and time >= self._landing:  # before, it is one of an open group of pictures
            landed, self._landing = self._landing, None
            return time == landed and frame.pict_type in KEY_TYPES and (frame.key_frame or not self._jumped)
        return True


def play(codec: VideoCodecContext, timeline: Timeline, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Decode as `decode` does, everything from the start; what has no frame of its own shows the one before."""
    player = Player(codec, timeline)
    before: tuple[int, VideoFrame] | None = None
    place = 0
    given: VideoFrame | None = None
    for after in player.frames():
        while place < len(wanted) and (after is None or after[0] > wanted[place]):
            chosen = after if before is None or (player.broken and after is not None) else before
            if chosen is None:
                break
            time, frame = chosen
            player.lost |= timeline.hides(wanted[place], time)
            if frame is not given:
                given = frame
                yield wanted[place], frame
            place += 1
        if place == len(wanted):
            break
        before = after
    if player.damage is not None:
        raise player.damage
    if player.lost:
        raise DocumentError("Some moments of the video can't be decoded.")


class Player:
    """Decodes everything from the start.

    Attributes:
        damage: of the packets that could not be decoded, the last one's.
        broken: there was one after the frame before.
        lost: there are moments of which nothing can be decoded.
    """

    def __init__(self, codec: VideoCodecContext, timeline: Timeline) -> None:
        self._codec = codec
        self._timeline = timeline
        self._count = 0
        self._time = timeline.shown[0]
        self._first = timeline.first  # until its frame is seen
        self.damage: av.FFmpegError | None = None
        self.broken = False
        self.lost = False

    def frames(self) -> Iterator[tuple[int, VideoFrame] | None]:
        """Decode the frames with their times, ascending; None is the end."""
        self._codec.flush_buffers()
        self._codec.skip_frame = "DEFAULT"
        for packet in [*self._timeline.packets, None]:
            try:
                frames = self._codec.decode(packet)
            except av.FFmpegError as exc:
                self.damage, self.broken = exc, True
                continue
            for frame in frames:
                self._check_start(frame)
                self.lost |= frame.is_corrupt  # others that need it show what it does
                yield self._time_of(frame), frame
                self.broken = False
        if not self._timeline.exact:
            self.lost |= self._first is not None or self._count < len(self._timeline.shown) - MAX_HIDDEN
        yield None

    def _time_of(self, frame: VideoFrame) -> int:
        """Return when a frame is shown, which is never before the last one."""
        shown = self._timeline.shown
        counted = shown[min(self._count, len(shown) - 1)]
        self._count += 1
        time = frame.pts if self._timeline.exact else counted
        self._time = self._time if time is None else max(self._time, time)
        return self._time

    def _check_start(self, frame: VideoFrame) -> None:
        """Note where the first packet's frame is not shown, or needs others: the beginning is cut off.

        Only frames of an open group of pictures, which are decoded after it, may be shown before it.
        """
        if self._first is None or frame.pts is None or (self._timeline.exact and frame.pts < self._first):
            return
        if self._timeline.exact or frame.pts == self._first or self._count > MAX_HIDDEN:
            self.lost |= frame.pts != self._first or frame.pict_type not in KEY_TYPES
            self._first = None
