"""Videos, and animations other than WebP, to frames of the model's input size.

All packets of the video are read before any is decoded. Their times determine the sampled frames, since headers may
lack a duration or state a wrong one; and no container needs to support seeking (`playback`). PyAV decodes with FFmpeg.
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
from florence_tagger.media.images import NO_PIXELS, frames_with_tiles
from florence_tagger.media.limits import DecodeOptions, check_pixels
from florence_tagger.media.playback import decode_at
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.rlimits import address_space_limit
from florence_tagger.media.timeline import VideoPacket, build_timeline, make_continuous, remove_gaps
from florence_tagger.schemas import Frame

# Codecs that FFmpeg may run for a file: those of common videos.
CODECS = {
    *("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v2"),
    *("mjpeg", "wmv1", "wmv2", "wmv3", "vc1", "flv", "h263", "theora", "prores", "dvvideo", "qtrle", "rawvideo"),
    *("vp6f", "gif", "apng", "dnxhd", "cinepak", "svq1", "svq3"),
    # screen recordings
    *("flashsv", "flashsv2", "png", "mss1", "mss2", "camtasia", "tscc2", "zmbv", "msvideo1", "msrle", "ffv1"),
    "huffyuv",
}

AV1 = ("av1", "libdav1d")

# Decoders of VP8 and VP9 that support transparency; FFmpeg's own do not, but need less memory.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

# Descriptions of FFmpeg's errors; any other one means that the video is damaged.
ERROR_DESCRIPTIONS: dict[type[Exception], str] = {
    av.error.EOFError: "is damaged: it ends too early",
    av.error.PatchWelcomeError: "can't be decoded: it has a feature that the decoder does not know",
}

Orientation = tuple[int, int, int, int]

UPRIGHT = (1, 0, 0, 1)

# Bytes read to detect the streams, half of FFmpeg's default, and the memory that this may take: FFmpeg keeps the
# packets, which may be tiny, a million of them in an endless file.
PROBE_OPTIONS = {"probesize": "2500000"}
MAX_PROBE_BYTES = 230_000_000
MAX_PACKETS = 250_000  # two hours at 30 frames a second; further ones are not read
MAX_PIXELS = 8192 * 4320  # 8K, the largest size of cameras and screens
MAX_THREADS = 4  # each keeps its own frames


def video_frames(file: IO[bytes], container: str, options: DecodeOptions, sampling: Sampling) -> Iterator[Frame]:
    """Yield the sampled frames of a video.

    Args:
        file: with the video.
        container: FFmpeg's name of its format.
        options: for decoding.
        sampling: frames to decode.

    Raises:
        DocumentError: it has no video, or one that is damaged, too large or of an unknown codec.
    """
    with open_container(file, container) as source:
        stream, packets, has_more = select_stream(source, options)
        truncated = bool(packets) and (packets[-1].is_corrupt or ends_early(file, container))
        if truncated:
            packets.pop()
        make_continuous(packets)
        codec = create_decoder(stream)
        timeline = build_timeline(codec, packets)
        if not timeline.display_times:
            raise DocumentError("The video has no frames.")
        time_base, start = float(stream.time_base or 1), timeline.display_times[0]
        seconds = remove_gaps([time * time_base for time in timeline.display_times])
        sampled = sampling.choose(seconds)
        timestamps = sorted({timeline.display_times[index] for index in sampled.indices})
        orientation, scaler = None, VideoReformatter()  # shared, since each has its own threads
        for number, (time, frame) in enumerate(decode_at(codec, timeline, timestamps)):
            check_pixels(frame.width, frame.height, max_frame_pixels(options))  # the size may change within a video
            orientation = orientation or display_orientation(frame)
            size = (frame.height, frame.width) if swaps_sides(orientation) else (frame.width, frame.height)
            picture = apply_orientation(to_picture(frame, scaler, options), orientation)
            is_extra = sampled.last_is_extra and time == timestamps[-1]
            result = Frame(NO_PIXELS, *size, time_s=max((time - start) * time_base, 0.0), is_extra=is_extra)
            yield from frames_with_tiles(picture, result, options, number)
            del frame, picture  # as in `SeekingDecoder.frame_at`; it also frees memory for the next frame
        if orientation is None:
            raise DocumentError("No frame of the video can be decoded.")
        if is_sampled_to_end(seconds, sampling):
            check_end(truncated, has_more)


def check_end(truncated: bool, has_more: bool) -> None:
    """Raise DocumentError if a video whose end is sampled is truncated, or has more packets than are read."""
    if truncated:
        raise DocumentError("The video is cut off: its last frame is not whole.")
    if has_more:
        raise DocumentError(f"The video has more than the {MAX_PACKETS:,} frames that are known of.")


def av1_picture_frames(file: IO[bytes], options: DecodeOptions) -> Iterator[Frame]:
    """Return the frames of an AVIF's picture, its alpha on white; boxes other than those of its data may be damaged.

    Raises:
        DocumentError: it is damaged, consists of parts (a grid), or is not AV1.
    """
    with open_container(file, "mov") as source:
        streams = source.streams.video
        for stream in streams:
            check_stream(stream, options)
        if any(stream.codec_context.name not in AV1 for stream in streams):
            raise ValueError("not of AV1")
        frames: dict[int, VideoFrame] = {}
        for packet in source.demux(streams):
            for frame in packet.decode():
                index = packet.stream.index  # the packet that drains a decoder has no index of its own
                if packet.is_corrupt or frame.is_corrupt or index in frames:
                    raise ValueError("damaged, or moving")
                frames[index] = frame
        picture, orientation = merge_alpha([frames[index] for index in sorted(frames)], options)
    upright = apply_orientation(picture, orientation)
    return frames_with_tiles(upright, Frame(NO_PIXELS, *upright.size), options)


def merge_alpha(frames: Sequence[VideoFrame], options: DecodeOptions) -> tuple[Image.Image, Orientation]:
    """Return the picture of a frame, with the gray second frame as its alpha if there is one, and its orientation.

    Raises:
        ValueError: the frames are parts of a picture.
    """
    if not frames or len(frames) > 2 or len({(frame.width, frame.height) for frame in frames}) > 1:
        raise ValueError("a picture in parts")
    is_gray = [frame.format.name.startswith("gray") for frame in frames]
    if is_gray[1:] and is_gray != [False, True]:
        raise ValueError("a picture in parts")
    full_size = replace(options, reduced=False)  # the same for both frames
    picture, *alpha = [to_picture(frame, VideoReformatter(), full_size) for frame in frames]
    if alpha:
        picture.putalpha(alpha[0].convert("L"))
    return picture, display_orientation(frames[0])


def is_sampled_to_end(seconds: Sequence[float], sampling: Sampling) -> bool:
    """Return True if frames at these times, as far as they are known, are sampled to the end."""
    return seconds[-1] - seconds[0] < sampling.max_seconds


def unknown_side_data(cls: type[SideDataType], value: object) -> SideDataType:
    """Return a member for a kind of side data without a name in PyAV, which would raise ValueError for its frame."""
    member: Any = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member  # type: ignore[no-any-return]


SideDataType._missing_ = classmethod(unknown_side_data)  # type: ignore[assignment, method-assign]


@contextmanager
def open_container(file: IO[bytes], container: str) -> Iterator[InputContainer]:
    """Open a file as the given container, which can open no other files; raise DocumentError if it is damaged."""
    file.seek(0)
    try:
        with address_space_limit(MAX_PROBE_BYTES):
            source = av.open(
                file,
                "r",
                format=container,
                container_options=PROBE_OPTIONS,
                io_open=refuse_to_open,
                metadata_errors="replace",
            )
        with source:
            yield source
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError, OverflowError) as exc:
        raise DocumentError(f"The video {describe_error(exc)}.") from exc


def describe_error(exc: Exception) -> str:
    """Return a description of a decoder's error."""
    return next((words for kind, words in ERROR_DESCRIPTIONS.items() if isinstance(exc, kind)), "is damaged")


def refuse_to_open(*arguments: Any) -> NoReturn:
    """Refuse to open another file that a video refers to."""
    raise PermissionError("A video may open no files.")


def select_stream(source: InputContainer, options: DecodeOptions) -> tuple[VideoStream, list[VideoPacket], bool]:
    """Return the video stream of a file, its packets, and True if further packets were not read.

    Of several streams the one with the most packets is taken: headers may not state the number of frames, and cover
    pictures may not be marked.
    """
    covers = av.stream.Disposition.attached_pic
    streams = [stream for stream in source.streams.video if not stream.disposition & covers]
    if not streams:
        kinds = sorted({stream.type for stream in source.streams} - {"video"})
        raise DocumentError(f"The file has no video{', only ' + ' and '.join(kinds) if kinds else ''}.")
    if len(streams) == 1:
        check_stream(streams[0], options)
    packets: dict[int, list[VideoPacket]] = {stream.index: [] for stream in streams}
    num_packets = 0
    for packet in islice(source.demux(streams), MAX_PACKETS):
        num_packets += 1
        if packet.size:  # a packet without data repeats the frame before
            packets[packet.stream_index].append(packet)  # type: ignore[arg-type]
    stream = max(streams, key=lambda stream: len(packets[stream.index]))
    check_stream(stream, options)
    return stream, packets[stream.index], num_packets == MAX_PACKETS


def check_stream(stream: VideoStream, options: DecodeOptions) -> None:
    """Raise DocumentError if a stream's codec is unknown, or its frames are too large by its header."""
    codec = stream.codec_context
    if codec is None or codec.codec.name not in CODECS:
        name = codec.name if codec is not None else "unknown"
        raise DocumentError(f"The video's codec is {name}; accepted are {', '.join(sorted(CODECS))}.")
    check_pixels(codec.width, codec.height, max_frame_pixels(options))


def create_decoder(stream: VideoStream) -> VideoCodecContext:
    """Return the decoder of a stream, one that keeps transparency if the stream has any."""
    codec: Any = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and codec.name in ALPHA_DECODERS:
        codec = VideoCodecContext.create(ALPHA_DECODERS[codec.name], "r")
    codec.thread_type = "AUTO"
    codec.thread_count = min(MAX_THREADS, os.cpu_count() or 1)
    return codec  # type: ignore[no-any-return]


def max_frame_pixels(options: DecodeOptions) -> int:
    """Return the maximum pixels of a video's frame, which is lower than a picture's: a decoder keeps many frames."""
    return min(options.max_pixels, MAX_PIXELS)


def to_picture(frame: VideoFrame, scaler: VideoReformatter, options: DecodeOptions) -> Image.Image:
    """Return a frame in RGB, or RGBA if it may be transparent; large frames are downscaled as JPEGs are."""
    alpha = any(component.is_alpha for component in frame.format.components) or frame.format.has_palette
    factor = 1
    while options.reduced and min(frame.width, frame.height) >= 2 * factor * options.min_reduced_side:
        factor *= 2
    scaled = scaler.reformat(
        frame,
        width=frame.width // factor,
        height=frame.height // factor,
        format="rgba" if alpha else "rgb24",
        interpolation="AREA" if factor > 1 else "BICUBIC",
    )
    return Image.fromarray(scaled.to_ndarray())


def display_orientation(frame: VideoFrame) -> Orientation:
    """Return the orientation (a, b, c, d) of a video's frames: x, y is displayed at a x + c y, b x + d y.

    Each value is -1, 0 or 1. Read it from the first frame only: a frame whose side data were read is part of a
    reference cycle and is freed late.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d = struct.unpack_from("5i", matrix)  # 16.16 fixed point; the third column is for perspective
    if max(abs(a), abs(d)) >= max(abs(b), abs(c)):
        return sign(a), 0, 0, sign(d)
    return 0, sign(b), sign(c), 0


def sign(value: int) -> int:
    """Return -1 if a value is negative, else 1."""
    return -1 if value < 0 else 1


def swaps_sides(orientation: Orientation) -> bool:
    """Return True if an orientation exchanges width and height."""
    return not orientation[0]


def apply_orientation(picture: Image.Image, orientation: Orientation) -> Image.Image:
    """Return a picture rotated and mirrored to its displayed orientation."""
    a, b, c, d = orientation
    if swaps_sides(orientation):
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    if a + c < 0:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if b + d < 0:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return picture
