"""Videos, and animations other than WebP, to frames of the model's input size. The only user of PyAV (ffmpeg).

The packets of the video are read before anything is decoded: their times say which frames are wanted, since headers may
have no duration or a wrong one. Decoding then jumps to the last key frame before each wanted frame, and skips between
what nothing depends on; with all packets at hand no container has to be able to seek.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any, NoReturn

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from florence_tagger.errors import DocumentError
from florence_tagger.media.images import check_pixels, fit
from florence_tagger.media.limits import Limits, Sampling
from florence_tagger.media.memory import at_most
from florence_tagger.schemas import Frame

# What a file may make ffmpeg run: the codecs of the videos that people have.
CODECS = {
    *("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v2"),
    *("mjpeg", "wmv1", "wmv2", "wmv3", "vc1", "flv", "h263", "theora", "prores", "dvvideo", "qtrle", "rawvideo"),
    *("vp6f", "gif", "apng"),
}

TURNS = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}

# Bytes of packets that are read to learn about the streams, half of ffmpeg's default; and of memory meanwhile, since
# ffmpeg keeps what it reads: packets may be tiny, a million of them in an endless file.
PROBING = {"probesize": "2500000"}
PROBING_BYTES = 230_000_000
MOST_PACKETS = 250_000  # two hours at 30 frames a second; no more are looked at
MOST_PIXELS = 8192 * 4320  # 8K, the largest that cameras and screens have
MOST_THREADS = 4  # each keeps frames of its own


def video_frames(file: IO[bytes], container: str, limits: Limits, sampling: Sampling) -> Iterator[Frame]:
    """The sampled frames of a video in a container by ffmpeg's name.

    Raises:
        DocumentError: it has no video, or one that is damaged, too large or of an unknown codec.
    """
    with opened(file, container) as source:
        stream = video_stream(source, limits)
        packets = list(islice(source.demux(stream), MOST_PACKETS))
        times = sorted(time for packet in packets if (time := time_of(packet)) is not None)
        if not times:
            raise DocumentError("The video has no frames.")
        unit = float(stream.time_base or 1)
        wanted = [times[place] for place in sampling.choose([time * unit for time in times])]
        decoded = False
        for time, frame in decode(stream, packets, wanted):
            check_pixels(frame.width, frame.height, most_pixels(limits))  # it may change on the way
            quarters = round(frame.rotation / 90) % 4
            size = (frame.height, frame.width) if quarters % 2 else (frame.width, frame.height)
            pixels = fit(turned(to_picture(frame, limits), quarters), limits.image_size)
            yield Frame(pixels, *size, time_s=max((time - times[0]) * unit, 0.0))
            decoded = True
        if not decoded:
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
        kinds = sorted({stream.type for stream in source.streams})
        raise DocumentError(f"The file has no video{', only ' + ' and '.join(kinds) if kinds else ''}.")
    stream = max(streams, key=lambda one: one.frames)
    codec = stream.codec_context
    if codec is None or codec.codec.name not in CODECS:
        name = codec.name if codec is not None else "unknown"
        raise DocumentError(f"The video's codec is {name}; accepted are {', '.join(sorted(CODECS))}.")
    check_pixels(codec.width, codec.height, most_pixels(limits))
    codec.thread_type = "AUTO"
    codec.thread_count = min(MOST_THREADS, os.cpu_count() or 1)
    return stream


def most_pixels(limits: Limits) -> int:
    """The most pixels of a frame: a decoder keeps many of them."""
    return min(limits.pixels, MOST_PIXELS)


def time_of(item: "Packet[VideoStream] | VideoFrame") -> int | None:
    """When a packet or frame is shown, in units of its stream; when it is decoded where the file says no more."""
    return item.dts if item.pts is None else item.pts


def decode(
    stream: VideoStream, packets: "Sequence[Packet[VideoStream]]", wanted: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """The frames shown at the wanted times, ascending.

    Raises:
        av.FFmpegError: of packets that could not be decoded, after all that could.
    """
    codec = stream.codec_context
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
            frames = packet.decode()
        except av.FFmpegError as exc:
            frames, damage = [], exc
        for frame in frames:
            time = time_of(frame)
            if place < len(wanted) and (time is None or time >= wanted[place]):
                yield wanted[place], frame
                place = place + 1 if time is None else bisect_right(wanted, time)
        index += 1
    if damage is not None:
        raise damage


def to_picture(frame: VideoFrame, limits: Limits) -> Image.Image:
    """A frame in RGB, or RGBA where it may be transparent; large ones reduced as JPEGs are."""
    alpha = any(component.is_alpha for component in frame.format.components) or frame.format.has_palette
    factor = 1
    while limits.reduced and min(frame.width, frame.height) >= 4 * factor * max(limits.image_size):
        factor *= 2
    pixels = frame.to_ndarray(
        format="rgba" if alpha else "rgb24",
        width=frame.width // factor,
        height=frame.height // factor,
        interpolation="AREA" if factor > 1 else "BICUBIC",
    )
    return Image.fromarray(pixels)


def turned(picture: Image.Image, quarters: int) -> Image.Image:
    """A picture turned by so many quarters, counter-clockwise."""
    return picture.transpose(TURNS[quarters]) if quarters else picture
