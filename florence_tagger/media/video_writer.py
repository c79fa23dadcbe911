"""Pictures and their display times -> a video file, VP9 in WebM.

PyAV encodes, because OpenCV supports constant frame rates only. VP9 is royalty-free, its encoder (libvpx) has a
permissive license, browsers and VLC play it, and sides may be odd, which H.264 does not allow with 4:2:0 chroma
subsampling.
"""

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import IO

import av
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream

from florence_tagger.errors import DocumentError
from florence_tagger.schemas import UInt8Array

MAX_SIDE = 1920  # pixels; for a frame of 8K the encoder needs 2.4 GB
MILLISECOND = Fraction(1, 1000)  # time base of WebM
MAX_THREADS = 4

# Options of libvpx: constant quality, the speed of a live stream, and a packet for each frame without delay.
OPTIONS = {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "7", "row-mt": "1", "lag-in-frames": "0"}


def write_video(file: IO[bytes], pictures: Iterable[UInt8Array], edges: Sequence[float]) -> None:
    """Write a video of pictures to an open file, each encoded as it arrives.

    Args:
        file: of the file system, written from its start.
        pictures: uint8 RGB (H, W, 3), at least one; all are resized to the first, reduced to `MAX_SIDE`.
        edges: seconds, ascending: picture i is displayed from `edges[i]` to `edges[i + 1]`.

    Raises:
        DocumentError: the encoder refuses the pictures.
        OSError: the file can't be written.
    """
    times = to_milliseconds(edges)
    try:
        # By its descriptor: a path may have any bytes, or look like a protocol of FFmpeg.
        with av.open(f"/dev/fd/{file.fileno()}", "w", format="webm") as output:
            encode(output, pictures, times)
    except OSError:
        raise
    except av.FFmpegError as exc:
        raise DocumentError("A video of its frames can't be encoded.") from exc


def encode(output: OutputContainer, pictures: Iterable[UInt8Array], times: Sequence[int]) -> None:
    """Encode pictures into an open container; `times` in milliseconds."""
    scaler = VideoReformatter()
    stream: VideoStream | None = None
    for pixels, (start, end) in zip(pictures, pairwise(times), strict=True):
        if stream is None:
            rate = Fraction(1000 * (len(times) - 1), times[-1] - times[0])
            stream = add_video_stream(output, pixels, rate)
        frame = scaler.reformat(
            VideoFrame.from_ndarray(pixels, "rgb24"),
            stream.width,
            stream.height,
            "yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation="AREA",
        )
        frame.pts, frame.time_base = start, MILLISECOND
        for packet in stream.encode(frame):
            packet.duration = end - start  # that of the last packet determines the duration of the file
            output.mux(packet)
    if stream is not None:
        output.mux(stream.encode())


def add_video_stream(output: OutputContainer, pixels: UInt8Array, rate: Fraction) -> VideoStream:
    """Add a stream for pictures of this size; `rate`, frames a second, is metadata for players only."""
    nominal_rate = max(rate.limit_denominator(1000), MILLISECOND)
    stream = output.add_stream("libvpx-vp9", rate=nominal_rate, options=OPTIONS)
    stream.height, stream.width = reduced_size(*pixels.shape[:2])
    stream.pix_fmt = "yuv420p"
    codec = stream.codec_context
    codec.time_base = MILLISECOND
    codec.thread_count = min(MAX_THREADS, os.cpu_count() or 1)
    codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG  # else players guess by the size
    codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def reduced_size(height: int, width: int) -> tuple[int, int]:
    """Return the height and width of a picture, reduced in proportion to at most `MAX_SIDE`."""
    factor = min(MAX_SIDE / max(height, width), 1)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def to_milliseconds(edges: Sequence[float]) -> list[int]:
    """Convert seconds to milliseconds, strictly ascending, as encoders require."""
    times: list[int] = []
    for edge in edges:
        times.append(max(round(edge * 1000), times[-1] + 1 if times else 0))
    return times
