"""Small videos in all accepted combinations of codec and container that can be written here; all frames differ."""

import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from florence_tagger.schemas import UInt8Array
from tests.videos import Unseekable, same_priority

SIZE = (176, 144)
MAX_GROUP = "12"  # frames between key frames
SECONDS = 6

FAST_OPTIONS = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "dnxhd": {"profile": "dnxhr_sq"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
}
PIXEL_FORMATS = {
    "mjpeg": "yuvj420p",
    "prores": "yuv422p10le",
    "svq1": "yuv410p",
    "gif": "rgb8",
    "zmbv": "bgr0",
    "msvideo1": "rgb555le",
    **dict.fromkeys(("dnxhd", "huffyuv"), "yuv422p"),
    **dict.fromkeys(("qtrle", "png", "apng", "cinepak"), "rgb24"),
    **dict.fromkeys(("rawvideo", "flashsv", "flashsv2"), "bgr24"),
}
SIZES = {"dvvideo": (720, 576), "dnxhd": (352, 288)}
# Frames per second of codecs that support no other rates, or are slow to encode.
RATES = {"mpeg1video": 25, "mpeg2video": 25, "dvvideo": 25, "h263": 30, "cinepak": 2}


@dataclass(frozen=True)
class Encoding:
    """An encoding of a video.

    Attributes:
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the encoder.
        rate: frames per second; 0 is a variable rate.
        lying: every packet is marked as a key frame.
        pipe: the muxer can't seek back to write an index.
        tool: written with Debian's ffmpeg, because PyAV refuses it or has no encoder.
        options: options of the encoder.
    """

    container: str
    codec: str
    rate: float = 10
    lying: bool = False
    pipe: bool = False
    tool: bool = False
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        notes = [f"{key}={value}" for key, value in self.options.items()]
        notes += [name for name in ("lying", "pipe") if getattr(self, name)]
        return " ".join([self.container, self.codec, f"{self.rate:g}/s", *notes])

    @property
    def times(self) -> list[float]:
        """Times of the frames in seconds."""
        if not self.rate:
            return np.cumsum([0, *np.random.default_rng(5).choice([0.05, 0.1, 0.4, 1.3], 20)]).round(2).tolist()
        return [index / self.rate for index in range(max(int(SECONDS * self.rate), 4))]

    def make(self) -> bytes:
        """Return the content of the file."""
        return encode_with_ffmpeg(self) if self.tool else encode_with_pyav(self)


def drawing(index: int, size: tuple[int, int] = SIZE) -> UInt8Array:
    """Return a frame, uint8 (H, W, 3); all frames differ, and successive ones are similar."""
    width, height = SIZE
    rows, columns = np.mgrid[0:height, 0:width]
    canvas = np.stack([(columns + 3 * index) % 256, (rows + 2 * index) % 256, (rows + columns) % 256], -1)
    canvas = canvas.astype(np.uint8) // 2 + 40
    x, y = 11 * index % (width - 40), 7 * index % (height - 40)
    canvas[y : y + 40, x : x + 40] = (250, 60 * index % 256, 20)
    if size == SIZE:
        return canvas
    return np.asarray(Image.fromarray(canvas).resize(size))


@same_priority()
def encode_with_pyav(encoding: Encoding) -> bytes:
    """Encode a video with PyAV."""
    target = Unseekable() if encoding.pipe else io.BytesIO()
    size = SIZES.get(encoding.codec, SIZE)
    with av.open(target, "w", format=encoding.container) as output:
        options = {"g": MAX_GROUP} | FAST_OPTIONS.get(encoding.codec, {}) | encoding.options
        stream = output.add_stream(
            encoding.codec, rate=Fraction(encoding.rate or 25).limit_denominator(1001), options=options
        )
        stream.width, stream.height = size
        stream.pix_fmt = PIXEL_FORMATS.get(encoding.codec, "yuv420p")
        stream.bit_rate = 1_500_000
        if not encoding.rate:
            stream.codec_context.time_base = Fraction(1, 1000)
        for packet in packets(stream, encoding, size):
            packet.is_keyframe |= encoding.lying
            output.mux(packet)
    return bytes(target.written) if isinstance(target, Unseekable) else target.getvalue()


def packets(stream: av.VideoStream, encoding: Encoding, size: tuple[int, int]) -> Iterator[av.Packet]:
    """Yield the packets of a video."""
    for index, time in enumerate(encoding.times):
        frame = av.VideoFrame.from_ndarray(drawing(index, size), "rgb24")
        if not encoding.rate:
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
        yield from stream.encode(frame)
    yield from stream.encode()


def encode_with_ffmpeg(encoding: Encoding) -> bytes:
    """Encode a video with Debian's ffmpeg."""
    width, height = SIZE
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{encoding.rate:g}", "-i", "-"]
    options = [text for key, value in encoding.options.items() for text in (f"-{key}", value)]
    target = ["-c:v", encoding.codec, "-g", MAX_GROUP, "-b:v", "1500k", *options, "-f", encoding.container, "-"]
    frames = b"".join(drawing(index).tobytes() for index in range(len(encoding.times)))
    command = [ffmpeg_path(), "-v", "error", *source, *target]
    return subprocess.run(command, input=frames, stdout=subprocess.PIPE, check=True).stdout


def trimmed(content: bytes, container: str, seconds: float) -> bytes:
    """Cut off the start of a video with Debian's ffmpeg, without decoding, keeping the packets that decoders need."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before"), Path(folder, "after")
        before.write_bytes(content)
        source, target = ["-ss", f"{seconds:g}", "-i", str(before)], ["-c", "copy", "-f", container, str(after)]
        subprocess.run([ffmpeg_path(), "-v", "error", *source, *target], check=True)
        return after.read_bytes()


def damaged(content: bytes, seed: int) -> bytes:
    """Change some bytes of a file after its headers."""
    rng, changed = np.random.default_rng(seed), bytearray(content)
    for offset in rng.integers(len(content) // 6, len(content) * 9 // 10, 4):
        changed[offset] ^= int(rng.integers(1, 256))
    return bytes(changed)


def ffmpeg_path() -> str:
    """Return the path of ffmpeg, after installing it if possible and necessary; FileNotFoundError if there is none."""
    if shutil.which("ffmpeg") is None and shutil.which("apt-get"):
        subprocess.run(["apt-get", "-qq", "update"], check=False)
        subprocess.run(["apt-get", "-qq", "install", "--no-install-recommends", "ffmpeg"], check=False)
    path = shutil.which("ffmpeg")
    if path is None:
        raise FileNotFoundError(
            "The long tests write videos by ffmpeg, which can't be installed: apt-get install ffmpeg"
        )
    return path


def each(container: str, *codecs: str, rate: float = 10, tool: bool = False, **options: str) -> list[Encoding]:
    """Return the encodings of several codecs in a container."""
    return [Encoding(container, codec, RATES.get(codec, rate), tool=tool, options=options) for codec in codecs]


H264, HEVC = "libx264", "libx265"
BOTH = (H264, HEVC)
OPEN = {"bf": "3", "x264-params": "open-gop=1"}
OPEN_HEVC = {"x265-params": "log-level=none:open-gop=1:bframes=4"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=24"}
LAYERS = {"x265-params": "log-level=none:temporal-layers=3:bframes=4:b-pyramid=1"}

# Every codec in every container that supports it.
PAIRS = [
    *each("mp4", *BOTH, "libvpx-vp9", "libsvtav1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg"),
    *each("mov", *BOTH, "mpeg4", "mjpeg", "prores", "dnxhd", "qtrle", "png", "rawvideo", "cinepak", "svq1"),
    *each("mov", "dvvideo", "h263", "mpeg2video", "gif"),
    *each("matroska", *BOTH, "libvpx", "libvpx-vp9", "libsvtav1", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4"),
    *each("matroska", "mjpeg", "prores", "ffv1"),
    *each("matroska", "h263", "flv", "wmv1", "wmv2", "msmpeg4v2", "huffyuv", "zmbv", "svq1", tool=True),
    *each("webm", "libvpx", "libvpx-vp9", "libsvtav1"),
    *each("avi", H264, "mpeg4", "msmpeg4", "msmpeg4v2", "mjpeg", "h263", "flv", "wmv1", "wmv2", "mpeg1video"),
    *each("avi", "mpeg2video", "libvpx", "ffv1", "huffyuv", "rawvideo", "cinepak", "msvideo1", "zmbv", "dvvideo"),
    *each("avi", "png", "svq1"),
    *each("mpegts", *BOTH, "mpeg1video", "mpeg2video", "mpeg4"),
    *each("mpeg", "mpeg1video", "mpeg2video", H264),
    *each("vob", "mpeg2video"),
    *each("asf", "wmv1", "wmv2", "mpeg4", "msmpeg4", "mjpeg", H264),
    *each("flv", "flv", H264, "flashsv", "flashsv2"),
    *each("3gp", "h263", H264, "mpeg4"),
    *each("ogg", "libvpx"),
    *each("ogg", "libtheora", tool=True),
    *each("gif", "gif"),
    *each("apng", "apng"),
    *each("h264", H264),
    *each("hevc", HEVC),
    *each("m4v", "mpeg4"),
    *each("mpeg1video", "mpeg1video"),
    *each("mjpeg", "mjpeg"),
]

# Containers that flag the packets of key frames.
FLAGGED = ("mp4", "mov", "matroska", "webm", "avi", "flv", "asf", "3gp")

# Unusual features of files.
TWISTS = [
    *(replace(pair, lying=True) for pair in PAIRS if pair.container in FLAGGED and not pair.tool),
    *each("mp4", H264, **OPEN),
    *each("matroska", H264, **OPEN),
    *each("mpegts", H264, **OPEN),
    *each("avi", H264, **OPEN),
    *each("h264", H264, **OPEN),
    *each("mp4", HEVC, **OPEN_HEVC),
    *each("mpegts", HEVC, **OPEN_HEVC),
    *each("hevc", HEVC, **OPEN_HEVC),
    *each("mp4", HEVC, **LAYERS),
    *each("matroska", HEVC, **LAYERS),
    *each("mp4", H264, **REFRESH),
    *each("mpegts", H264, **REFRESH),
    *each("avi", H264, **REFRESH),
    *each("h264", H264, **REFRESH),
    *each("webm", "libvpx", "libvpx-vp9", **HIDDEN),
    *each("matroska", "libsvtav1", "libvpx", rate=30),
    *each("mp4", "mpeg4", "mpeg2video", bf="3"),
    *each("avi", "mpeg4", "mpeg2video", bf="3"),
    *each("mpegts", "mpeg4", "mpeg2video", bf="3"),
    *each("m4v", "mpeg4", bf="3"),
    *each("asf", "mpeg4", bf="2"),
    *(Encoding("matroska", codec, rate) for codec in BOTH for rate in (0, 0.3, 0.5, 1, 24, 29.97, 60)),
    *(Encoding("mp4", codec, rate) for codec in (*BOTH, "libvpx-vp9", "libsvtav1") for rate in (0, 0.3, 60)),
    *(Encoding("avi", codec, rate) for codec in (H264, "mpeg4") for rate in (0.5, 30)),
    *(Encoding("flv", codec, rate) for codec in (H264, "flv") for rate in (0, 0.5, 50)),
    *(Encoding("webm", codec, rate) for codec in ("libvpx", "libvpx-vp9") for rate in (0, 0.3, 60)),
    *(Encoding("mpegts", codec, rate) for codec in BOTH for rate in (0.5, 50)),
    *(Encoding("gif", "gif", rate) for rate in (0.5, 25)),
    *(Encoding("matroska", codec, pipe=True) for codec in (*BOTH, "libvpx", "libvpx-vp9", "mpeg4")),
    Encoding("avi", "mpeg4", pipe=True),
    Encoding("flv", H264, pipe=True),
    *(Encoding("mov", "mjpeg", rate) for rate in (0.3, 60)),
]

# A selection for quick tests.
COMMON = [
    *(Encoding("mp4", codec) for codec in (*BOTH, "libsvtav1", "libvpx-vp9", "mpeg4")),
    *(Encoding(container, H264, lying=True) for container in ("mp4", "matroska")),
    *(Encoding(container, HEVC, lying=True) for container in ("mp4", "matroska")),
    *(Encoding("avi", codec, lying=True) for codec in ("h263", "mpeg4", "wmv2", "msvideo1")),
    Encoding("flv", "flv", lying=True),
    *each("mp4", H264, **OPEN),
    *each("avi", H264, **OPEN),
    *each("mp4", HEVC, **LAYERS),
    *each("mp4", H264, **REFRESH),
    *each("h264", H264),
    *each("hevc", HEVC),
    *each("mjpeg", "mjpeg"),
    *(Encoding("matroska", H264, rate) for rate in (0, 0.3)),
    Encoding("matroska", "libvpx", pipe=True),
    Encoding("mpegts", "mpeg2video", 25),
    Encoding("gif", "gif", 0.5),
]

# Encodings whose decoders detect most damage.
CHECKED = [Encoding("mp4", H264), Encoding("avi", "mpeg4"), Encoding("avi", "h263", 30), Encoding("flv", "flv")]

# Containers in which a frame may be truncated, with codecs whose decoders do not always detect it.
CUT_OFF = [
    *(Encoding("avi", codec) for codec in ("libvpx", "mpeg4", "mjpeg")),
    *(Encoding("asf", codec) for codec in ("wmv2", "mjpeg")),
    *(Encoding("mpegts", codec) for codec in BOTH),
    *(Encoding(container, "mpeg2video", 25) for container in ("mpegts", "vob")),
    *(Encoding(container, container) for container in ("flv", "mjpeg", "gif")),
]

TRIMMED = [Encoding("mp4", H264), *each("mp4", H264, **OPEN), Encoding("mp4", HEVC), *each("mp4", "mpeg4", bf="2")]
