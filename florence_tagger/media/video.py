"""Videos, and animations other than WebP, to frames of the model's input size. The only user of PyAV (ffmpeg).

The packets of the video are read before anything is decoded: their times say which frames are wanted, since headers may
have no duration or a wrong one. Decoding then jumps to the last key frame before each wanted frame, and skips between
what nothing depends on; with all packets at hand no container has to be able to seek.
"""

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any, NoReturn

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from florence_tagger.errors import DocumentError
from florence_tagger.media.images import fit
from florence_tagger.media.limits import Limits, Sampling, check_pixels
from florence_tagger.media.memory import at_most
from florence_tagger.schemas import Frame

# What a file may make ffmpeg run: the codecs of the videos that people have.
CODECS = {
    *("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v2"),
    *("mjpeg", "wmv1", "wmv2", "wmv3", "vc1", "flv", "h263", "theora", "prores", "dvvideo", "qtrle", "rawvideo"),
    *("vp6f", "gif", "apng", "dnxhd", "cinepak", "svq1", "svq3"),
    # of screen recordings
    *("flashsv", "flashsv2", "png", "mss1", "mss2", "camtasia", "tscc2", "zmbv", "msvideo1", "msrle", "ffv1"),
    "huffyuv",
}

# Decoders of VP8 and VP9 that know their transparency, unlike ffmpeg's own, which do with less memory.
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

Orientation = tuple[int, int, int, int]

UPRIGHT = (1, 0, 0, 1)

# Bytes of packets that are read to learn about the streams, half of ffmpeg's default; and of memory meanwhile, since
# ffmpeg keeps what it reads: packets may be tiny, a million of them in an endless file.
PROBING = {"probesize": "2500000"}
PROBING_BYTES = 230_000_000
MOST_PACKETS = 250_000  # two hours at 30 frames a second; no more are looked at
MOST_PIXELS = 8192 * 4320  # 8K, the largest that cameras and screens have
MOST_THREADS = 4  # each keeps frames of its own
LONGEST_GAP_S = 600  # between frames; a longer one is a fault of the clock that wrote the file


def video_frames(file: IO[bytes], container: str, limits: Limits, sampling: Sampling) -> Iterator[Frame]:
    """The sampled frames of a video in a container by ffmpeg's name.

    Raises:
        DocumentError: it has no video, or one that is damaged, too large or of an unknown codec.
    """
    with opened(file, container) as source:
        stream = video_stream(source, limits)
        packets = list(islice(source.demux(stream), MOST_PACKETS))
        unit = float(stream.time_base or 1)
        join(packets)
        times = sorted(time for packet in packets if (time := time_of(packet)) is not None)
        if not times:
            raise DocumentError("The video has no frames.")
        wanted = [times[place] for place in sampling.choose(without_leaps([time * unit for time in times]))]
        orientation, scaler = None, VideoReformatter()  # of one's own each frame would have threads of its own
        for time, frame in decode(decoder_of(stream), packets, wanted):
            check_pixels(frame.width, frame.height, most_pixels(limits))  # it may change on the way
            orientation = orientation or orientation_of(frame)
            size = (frame.height, frame.width) if turns(orientation) else (frame.width, frame.height)
            pixels = fit(displayed(to_picture(frame, scaler, limits), orientation), limits.image_size)
            yield Frame(pixels, *size, time_s=max((time - times[0]) * unit, 0.0))
            del frame  # as in `decode`
        if orientation is None:
            raise DocumentError("No frame of the video can be decoded.")


@contextmanager
def opened(file: IO[bytes], container: str) -> Iterator[InputContainer]:
    """A file as nothing but the given container, which can open no other files; DocumentError of damage."""
    file.seek(0)
    try:
        with at_most(PROBING_BYTES):
            source = av.open(file, "r", format=container, container_options=PROBING, io_open=refuse)
        with source:
            yield source
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError, OverflowError) as exc:
        what = exc.strerror if isinstance(exc, av.FFmpegError) else exc
        raise DocumentError(f"The video is damaged: {what}.") from exc


def refuse(*arguments: Any) -> NoReturn:
    """What ffmpeg gets where a file refers to others."""
    raise PermissionError("A video may open no files.")


def video_stream(source: InputContainer, limits: Limits) -> VideoStream:
    """The video of a file, of several the one with the most frames, ready to be decoded."""
    covers = av.stream.Disposition.attached_pic
    streams = [stream for stream in source.streams.video if not stream.disposition & covers]
    if not streams:
        kinds = sorted({stream.type for stream in source.streams} - {"video"})
        raise DocumentError(f"The file has no video{', only ' + ' and '.join(kinds) if kinds else ''}.")
    stream = max(streams, key=lambda one: one.frames)
    codec = stream.codec_context
    if codec is None or codec.codec.name not in CODECS:
        name = codec.name if codec is not None else "unknown"
        raise DocumentError(f"The video's codec is {name}; accepted are {', '.join(sorted(CODECS))}.")
    check_pixels(codec.width, codec.height, most_pixels(limits))
    return stream


def decoder_of(stream: VideoStream) -> VideoCodecContext:
    """What decodes a stream, with its transparency."""
    codec: Any = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and codec.name in WITH_ALPHA:
        codec = VideoCodecContext.create(WITH_ALPHA[codec.name], "r")
    codec.thread_type = "AUTO"
    codec.thread_count = min(MOST_THREADS, os.cpu_count() or 1)
    return codec  # type: ignore[no-any-return]


def most_pixels(limits: Limits) -> int:
    """The most pixels of a frame: a decoder keeps many of them."""
    return min(limits.pixels, MOST_PIXELS)


def time_of(item: "Packet[VideoStream] | VideoFrame") -> int | None:
    """When a packet or frame is shown, in units of its stream; when it is decoded where the file says no more."""
    return item.dts if item.pts is None else item.pts


def join(packets: "Sequence[Packet[VideoStream]]") -> None:
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


def decode(
    codec: VideoCodecContext, packets: "Sequence[Packet[VideoStream]]", wanted: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """The frames shown at the wanted times, ascending.

    Raises:
        av.FFmpegError: of packets that could not be decoded, after all that could.
    """
    starts = sorted(
        (time, index)
        for index, packet in enumerate(packets)
        if packet.is_keyframe and (time := time_of(packet)) is not None
    )
    exact = set(wanted)
    place, index, damage = 0, 0, None
    while place < len(wanted) and index < len(packets):
        key = bisect_right(starts, (wanted[place], len(packets))) - 1
        if key >= 0 and starts[key][1] > index:
            index = starts[key][1]
            codec.flush_buffers()
        packet = packets[index]
        # What no other frame needs is decoded only where it is wanted itself.
        codec.skip_frame = "DEFAULT" if time_of(packet) in exact or packet.pts is None else "NONREF"
        try:
            frames = codec.decode(packet)
        except av.FFmpegError as exc:
            frames, damage = [], exc
        while frames:  # None is kept: beside one that is, ffmpeg has to copy a GIF's picture before it draws on.
            frame = frames.pop(0)
            time = time_of(frame)
            if place < len(wanted) and (time is None or time >= wanted[place]):
                yield wanted[place], frame
                place = place + 1 if time is None else bisect_right(wanted, time)
            del frame
        index += 1
    if damage is not None:
        raise damage


def to_picture(frame: VideoFrame, scaler: VideoReformatter, limits: Limits) -> Image.Image:
    """A frame in RGB, or RGBA where it may be transparent; large ones reduced as JPEGs are."""
    alpha = any(component.is_alpha for component in frame.format.components) or frame.format.has_palette
    factor = 1
    while limits.reduced and min(frame.width, frame.height) >= 4 * factor * max(limits.image_size):
        factor *= 2
    scaled = scaler.reformat(
        frame,
        width=frame.width // factor,
        height=frame.height // factor,
        format="rgba" if alpha else "rgb24",
        interpolation="AREA" if factor > 1 else "BICUBIC",
    )
    return Image.fromarray(scaled.to_ndarray())


def orientation_of(frame: VideoFrame) -> Orientation:
    """How the frames of a video are to be shown, a b c d: x, y at a x + c y, b x + d y, each -1, 0 or 1.

    It is asked of the first one: a frame whose side data were looked at is part of a cycle, and is freed late.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d = struct.unpack_from("5i", matrix)  # 16.16 fixed point, the third of each row for perspective
    if max(abs(a), abs(d)) >= max(abs(b), abs(c)):
        return sign(a), 0, 0, sign(d)
    return 0, sign(b), sign(c), 0


def sign(value: int) -> int:
    return -1 if value < 0 else 1


def turns(orientation: Orientation) -> bool:
    """Whether width and height are exchanged."""
    return not orientation[0]


def displayed(picture: Image.Image, orientation: Orientation) -> Image.Image:
    """A picture turned and mirrored as it is to be shown."""
    a, b, c, d = orientation
    if turns(orientation):
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    if a + c < 0:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if b + d < 0:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return picture
