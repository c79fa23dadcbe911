"""Pictures and when each is shown -> a video file, VP9 in WebM. PyAV encodes, because OpenCV knows only constant rates.

VP9 is free of royalties, its encoder (libvpx) has a permissive licence, browsers and VLC play it, and sides may be odd,
which H.264 does not allow with colours at half the resolution.
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

LONGEST_SIDE = 1920  # pixels; a frame of 8K takes the encoder 2.4 GB
MILLISECOND = Fraction(1, 1000)  # the unit of times in WebM
MAX_THREADS = 4

# Of libvpx: constant quality, as fast as for a live stream, and a packet for each frame at once.
OPTIONS = {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "7", "row-mt": "1", "lag-in-frames": "0"}


def write_video(file: IO[bytes], pictures: Iterable[UInt8Array], edges: Sequence[float]) -> None:
    """Write a video of pictures, one after the other as they come, to an open file.

    Args:
        file: of the file system, which is written from its start.
        pictures: uint8 RGB (H, W, 3), at least one; all are shown at the size of the first, reduced to `LONGEST_SIDE`.
        edges: seconds, ascending: picture i is shown from `edges[i]` to `edges[i + 1]`.

    Raises:
        DocumentError: the encoder refuses the pictures.
        OSError: the file can't be written.
    """
    times = milliseconds(edges)
    try:
        # By its descriptor: a name may be of any bytes, or look like a protocol of ffmpeg's.
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
            stream = stream_for(output, pixels, rate)
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
            packet.duration = end - start  # of the last one the file's length follows
            output.mux(packet)
    if stream is not None:
        output.mux(stream.encode())


def stream_for(output: OutputContainer, pixels: UInt8Array, rate: Fraction) -> VideoStream:
    """Add a stream for pictures as large as these; `rate`, frames a second, is what players are told, no more."""
    told = max(rate.limit_denominator(1000), MILLISECOND)
    stream = output.add_stream("libvpx-vp9", rate=told, options=OPTIONS)
    stream.height, stream.width = reduced_size(*pixels.shape[:2])
    stream.pix_fmt = "yuv420p"
    codec = stream.codec_context
    codec.time_base = MILLISECOND
    codec.thread_count = min(MAX_THREADS, os.cpu_count() or 1)
    codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG  # or players guess by the size
    codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def reduced_size(height: int, width: int) -> tuple[int, int]:
    """Return the height and width of a picture with neither beyond `LONGEST_SIDE`, in the same proportion."""
    factor = min(LONGEST_SIDE / max(height, width), 1)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def milliseconds(edges: Sequence[float]) -> list[int]:
    """Return seconds as milliseconds, each later than the one before, which encoders insist on."""
    times: list[int] = []
    for edge in edges:
        times.append(max(round(edge * 1000), times[-1] + 1 if times else 0))
    return times
