"""Videos, and animations other than WebP, to frames of the model's input size. The only user of PyAV (ffmpeg).

The packets of the video are read before anything is decoded: their times say which frames are wanted, since headers may
have no duration or a wrong one; with all packets at hand no container has to be able to seek (`playback`).
"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import IO, Any, NoReturn

import av
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from florence_tagger.errors import DocumentError
from florence_tagger.media.endings import ends_early
from florence_tagger.media.images import NO_PIXELS, frames_of
from florence_tagger.media.limits import DecodeOptions, check_pixels
from florence_tagger.media.playback import decode
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.rlimits import at_most
from florence_tagger.media.timeline import VideoPacket, join, timeline_of, without_leaps
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

AV1 = ("av1", "libdav1d")

# Decoders of VP8 and VP9 that know their transparency, unlike ffmpeg's own, which do with less memory.
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

# What is said of a video where ffmpeg raises something else than that it is damaged.
FAULTS: dict[type[Exception], str] = {
    av.error.EOFError: "is damaged: it ends too early",
    av.error.PatchWelcomeError: "can't be decoded: it has a feature that the decoder does not know",
}

Orientation = tuple[int, int, int, int]

UPRIGHT = (1, 0, 0, 1)

# Bytes of packets that are read to learn about the streams, half of ffmpeg's default; and of memory meanwhile, since
# ffmpeg keeps what it reads: packets may be tiny, a million of them in an endless file.
PROBING = {"probesize": "2500000"}
PROBING_BYTES = 230_000_000
MAX_PACKETS = 250_000  # two hours at 30 frames a second; no more are looked at
MAX_PIXELS = 8192 * 4320  # 8K, the largest that cameras and screens have
MAX_THREADS = 4  # each keeps frames of its own


def video_frames(file: IO[bytes], container: str, limits: DecodeOptions, sampling: Sampling) -> Iterator[Frame]:
    """The sampled frames of a video in a container by ffmpeg's name.

    Raises:
        DocumentError: it has no video, or one that is damaged, too large or of an unknown codec.
    """
    with opened(file, container) as source:
        stream, packets, cut = video_stream(source, limits)
        broken_off = packets and (packets[-1].is_corrupt or ends_early(file, container))
        if broken_off:
            packets.pop()
        join(packets)
        codec = decoder_of(stream)
        timeline = timeline_of(codec, packets)
        if not timeline.shown:
            raise DocumentError("The video has no frames.")
        unit, start = float(stream.time_base or 1), timeline.shown[0]
        seconds = without_leaps([time * unit for time in timeline.shown])
        choice = sampling.choose(seconds)
        wanted = sorted({timeline.shown[place] for place in choice.places})
        orientation, scaler = None, VideoReformatter()  # of one's own each frame would have threads of its own
        for number, (time, frame) in enumerate(decode(codec, timeline, wanted)):
            check_pixels(frame.width, frame.height, most_pixels(limits))  # it may change on the way
            orientation = orientation or orientation_of(frame)
            size = (frame.height, frame.width) if turns(orientation) else (frame.width, frame.height)
            picture = displayed(to_picture(frame, scaler, limits), orientation)
            closing = choice.closing and time == wanted[-1]
            shown = Frame(NO_PIXELS, *size, time_s=max((time - start) * unit, 0.0), closing=closing)
            yield from frames_of(picture, shown, limits, number)
            del frame, picture  # as in `Leaper.frame_at`; and while the next one is made there is room for it
        if orientation is None:
            raise DocumentError("No frame of the video can be decoded.")
        if broken_off and is_to_the_end(seconds, sampling):
            raise DocumentError("The video is cut off: its last frame is not whole.")
        if cut and is_to_the_end(seconds, sampling):
            raise DocumentError(f"The video has more than the {MAX_PACKETS:,} frames that are known of.")


def av1_picture(file: IO[bytes], limits: DecodeOptions) -> Iterator[Frame]:
    """Return the frames of an AVIF's picture, its alpha on white, whatever its boxes say beside where its data are.

    Raises:
        DocumentError: it is damaged, in parts (a grid), or none of AV1.
    """
    with opened(file, "mov") as source:
        streams = source.streams.video
        for stream in streams:
            check_stream(stream, limits)
        if any(stream.codec_context.name not in AV1 for stream in streams):
            raise ValueError("not of AV1")
        frames: dict[int, VideoFrame] = {}
        for packet in source.demux(streams):
            for frame in packet.decode():
                place = packet.stream.index  # the packet itself does not say it where a decoder gives the rest
                if packet.is_corrupt or frame.is_corrupt or place in frames:
                    raise ValueError("damaged, or moving")
                frames[place] = frame
        picture, orientation = with_alpha([frames[place] for place in sorted(frames)], limits)
    shown = displayed(picture, orientation)
    return frames_of(shown, Frame(NO_PIXELS, *shown.size), limits)


def with_alpha(frames: Sequence[VideoFrame], limits: DecodeOptions) -> tuple[Image.Image, Orientation]:
    """Return the picture of one frame, or of a second one, in grey, that has its alpha; and how it is to be shown."""
    if not frames or len(frames) > 2 or len({(frame.width, frame.height) for frame in frames}) > 1:
        raise ValueError("a picture in parts")
    grey = [frame.format.name.startswith("gray") for frame in frames]
    if grey[1:] and grey != [False, True]:
        raise ValueError("a picture in parts")
    exact = replace(limits, reduced=False)  # both alike
    picture, *alpha = [to_picture(frame, VideoReformatter(), exact) for frame in frames]
    if alpha:
        picture.putalpha(alpha[0].convert("L"))
    return picture, orientation_of(frames[0])


def is_to_the_end(seconds: Sequence[float], sampling: Sampling) -> bool:
    """Tell whether frames at these times, as far as they are known, are all looked at."""
    return seconds[-1] - seconds[0] < sampling.max_seconds


def unknown_side_data(cls: type[SideDataType], value: object) -> SideDataType:
    """Return a kind of side data that PyAV has no name of: it would raise ValueError for a frame that has one."""
    member: Any = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member  # type: ignore[no-any-return]


SideDataType._missing_ = classmethod(unknown_side_data)  # type: ignore[assignment, method-assign]


@contextmanager
def opened(file: IO[bytes], container: str) -> Iterator[InputContainer]:
    """A file as nothing but the given container, which can open no other files; DocumentError of damage."""
    file.seek(0)
    try:
        with at_most(PROBING_BYTES):
            source = av.open(
                file, "r", format=container, container_options=PROBING, io_open=refuse, metadata_errors="replace"
            )
        with source:
            yield source
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError, OverflowError) as exc:
        raise DocumentError(f"The video {fault(exc)}.") from exc


def fault(exc: Exception) -> str:
    """Return what is wrong with a video, by the kind of error that a decoder raised."""
    return next((words for kind, words in FAULTS.items() if isinstance(exc, kind)), "is damaged")


def refuse(*arguments: Any) -> NoReturn:
    """What ffmpeg gets where a file refers to others."""
    raise PermissionError("A video may open no files.")


def video_stream(source: InputContainer, limits: DecodeOptions) -> tuple[VideoStream, list[VideoPacket], bool]:
    """Return the video of a file, of several the one with the most frames, its packets, and whether they were cut off.

    Headers may not tell how many frames there are, and covers may not be marked.
    """
    covers = av.stream.Disposition.attached_pic
    streams = [stream for stream in source.streams.video if not stream.disposition & covers]
    if not streams:
        kinds = sorted({stream.type for stream in source.streams} - {"video"})
        raise DocumentError(f"The file has no video{', only ' + ' and '.join(kinds) if kinds else ''}.")
    if len(streams) == 1:
        check_stream(streams[0], limits)
    packets: dict[int, list[VideoPacket]] = {stream.index: [] for stream in streams}
    number = 0
    for packet in islice(source.demux(streams), MAX_PACKETS):
        number += 1
        if packet.size:  # what has no data says that the frame before stays
            packets[packet.stream_index].append(packet)  # type: ignore[arg-type]
    stream = max(streams, key=lambda one: len(packets[one.index]))
    check_stream(stream, limits)
    return stream, packets[stream.index], number == MAX_PACKETS


def check_stream(stream: VideoStream, limits: DecodeOptions) -> None:
    """Raise DocumentError where a stream is of an unknown codec, or too large by its header."""
    codec = stream.codec_context
    if codec is None or codec.codec.name not in CODECS:
        name = codec.name if codec is not None else "unknown"
        raise DocumentError(f"The video's codec is {name}; accepted are {', '.join(sorted(CODECS))}.")
    check_pixels(codec.width, codec.height, most_pixels(limits))


def decoder_of(stream: VideoStream) -> VideoCodecContext:
    """What decodes a stream, with its transparency."""
    codec: Any = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and codec.name in WITH_ALPHA:
        codec = VideoCodecContext.create(WITH_ALPHA[codec.name], "r")
    codec.thread_type = "AUTO"
    codec.thread_count = min(MAX_THREADS, os.cpu_count() or 1)
    return codec  # type: ignore[no-any-return]


def most_pixels(limits: DecodeOptions) -> int:
    """The most pixels of a frame: a decoder keeps many of them."""
    return min(limits.pixels, MAX_PIXELS)


def to_picture(frame: VideoFrame, scaler: VideoReformatter, limits: DecodeOptions) -> Image.Image:
    """A frame in RGB, or RGBA where it may be transparent; large ones reduced as JPEGs are."""
    alpha = any(component.is_alpha for component in frame.format.components) or frame.format.has_palette
    factor = 1
    while limits.reduced and min(frame.width, frame.height) >= 2 * factor * limits.least_side:
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
    """Return how the frames of a video are to be shown, a b c d: x, y at a x + c y, b x + d y, each -1, 0 or 1.

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
