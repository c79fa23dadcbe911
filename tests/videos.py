"""Variants of videos and animations, written with PyAV, that the service must count, or refuse with a reason."""

import io
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tests import metadata
from tests.pictures import COUNTS, counted_variants, refused_variant, see_through
from tests.variants import PARK, QUEUE, SIDE, STREET, YARD, Scene, Variant, peak, picture, saved

RATE = 8  # frames per second; each scene is shown for one second
SCENES = (YARD, QUEUE, PARK)  # each has the largest count of some label
PEAK = peak(*SCENES)

# Invalid tags: not UTF-8, but Latin-1.
LATIN = {"title": b"Caf\xe9 ol\xe9", "artist": b"\xdcbung"}
NOISE = np.random.default_rng(17).bytes(60_000)

QUIET = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"svtav1-params": "lp=1", "preset": "12"}}


class Unseekable(io.RawIOBase):
    """A file that a muxer can't seek in, like a pipe."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Append data."""
        self.written += data
        return len(data)


@contextmanager
def same_priority() -> Iterator[None]:
    """Restore the thread's scheduling: SVT-AV1 as root gives its caller real-time priority, which children inherit."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


@same_priority()
def video(
    container: str,
    codec: str,
    pixels: str = "yuv420p",
    scenes: Sequence[Scene] = SCENES,
    size: tuple[int, int] = (SIDE, SIDE),
    rate: int = RATE,
    rotation: int = 0,
    times: Sequence[float] = (),
    flags: int = 0,
    pipe: bool = False,
    target: Any = None,
    container_options: dict[str, str] | None = None,
    flagged: bool = False,
    tags: dict[str, bytes] | None = None,
    **options: str,
) -> bytes:
    """Return a video that shows each scene for a second.

    Args:
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the encoder.
        pixels: pixel format.
        scenes: the scenes in order.
        size: width and height.
        rate: frames per second.
        rotation: rotation at display in degrees, counter-clockwise.
        times: times of the frames in seconds; if there are as many scenes, each frame shows the next scene.
        flags: further flags of the encoder.
        pipe: write to a file without seeking.
        target: a file to write to; the result is empty then.
        container_options: options of the muxer.
        flagged: mark all packets as key frames.
        tags: metadata, possibly not UTF-8.
        options: options of the encoder.
    """
    target = target or (Unseekable() if pipe else io.BytesIO())
    moments = list(times) or [index / rate for index in range(rate * len(scenes))]
    settings = {"container_options": container_options or {}, "metadata_errors": "surrogateescape"}
    with av.open(target, "w", format=container, **settings) as output:
        output.metadata.update({name: text.decode(errors="surrogateescape") for name, text in (tags or {}).items()})
        stream = output.add_stream(codec, rate=rate, options={"g": "12"} | QUIET.get(codec, {}) | options)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.bit_rate = 2_000_000
        stream.codec_context.flags |= flags
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, moment in enumerate(moments):
            scene = scenes[index if len(times) == len(scenes) else min(int(moment), len(scenes) - 1)]
            stored = stored_image(scene, size, rotation)
            frame = av.VideoFrame.from_ndarray(np.asarray(stored), "rgba" if stored.mode == "RGBA" else "rgb24")
            frame.pts = round(moment * 1000) if times else index
            frame.time_base = Fraction(1, 1000) if times else Fraction(1, rate)
            output.mux([mark_key_frame(packet, flagged) for packet in stream.encode(frame)])
        output.mux([mark_key_frame(packet, flagged) for packet in stream.encode()])
    return bytes(target.written) if pipe else target.getvalue() if isinstance(target, io.BytesIO) else b""


def mark_key_frame(packet: av.Packet, flagged: bool) -> av.Packet:
    """Mark a packet as a key frame if `flagged`, even if it is not one; return it."""
    packet.is_keyframe |= flagged
    return packet


def stored_image(scene: Scene, size: tuple[int, int], rotation: int) -> Image.Image:
    """Return a scene as stored in a video that is rotated at display by `rotation` degrees, counter-clockwise."""
    return picture("RGBA" if scene.pixels.shape[2] == 4 else "RGB", scene).rotate(-rotation).resize(size)


def sound_only(container: str, codec: str) -> bytes:
    """Return a file of silence."""
    target = io.BytesIO()
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream(codec, rate=44_100)
        for index in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 44_100, 1024 * index
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return target.getvalue()


def without_duration() -> bytes:
    """Return an MP4 whose headers have the duration 0."""
    return with_duration(0)


def with_duration(units: int) -> bytes:
    """Return an MP4 whose three headers (of movie, track and media) have a duration of `units`."""
    content = bytearray(video("mp4", "libx264"))
    for name, field_offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        offset = content.index(name) + field_offset
        content[offset : offset + 4] = struct.pack(">I", units)
    return bytes(content)


def billion_frames() -> bytes:
    """Return an MP4 that claims 10^9 frames of equal duration and size."""
    content = bytearray(video("mp4", "mpeg4"))
    offset = content.index(b"stts") + 12
    content[offset : offset + 4] = struct.pack(">I", 10**9)
    return bytes(content)


def animation(kind: str, modes: str = "RGB", duration: int = 1000, **options: Any) -> bytes:
    """Return an animation of the scenes, each for `duration` milliseconds."""
    images = [picture(modes, scene=scene) for scene in SCENES]
    return saved(images[0], kind, save_all=True, append_images=images[1:], duration=duration, loop=0, **options)


def index_first() -> bytes:
    """Return an MP4 that can be played during its download; its muxer needs a file."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        video("mp4", "libx264", target=file.name, container_options={"movflags": "faststart"})
        content = file.read()
    assert content.index(b"moov") < content.index(b"mdat")
    return content


def huge_quicktime() -> bytes:
    """Return a QuickTime file that claims 12,000 x 9,000 pixels."""
    content = bytearray(video("mov", "qtrle", "rgb24"))
    offset = content.index(b"rle ") + 28
    assert content[offset : offset + 4] == struct.pack(">HH", SIDE, SIDE)
    content[offset : offset + 4] = struct.pack(">HH", 12_000, 9_000)
    return bytes(content)


def damaged_frame() -> bytes:
    """Return an AVI of JPEGs, one of which, a sampled one, consists of zeros."""
    content = bytearray(video("avi", "mjpeg", "yuvj420p"))
    offset = content.index(b"movi")
    for _ in range(2 * RATE + 1):  # up to the first frame of the third scene
        offset = content.index(b"00dc", offset) + 8
    size = struct.unpack("<I", content[offset - 4 : offset])[0]
    content[offset : offset + size] = bytes(size)
    return bytes(content)


def cut_start() -> bytes:
    """Return a transport stream without its first packets, and so without its first key frame."""
    return video("mpegts", "libx264")[188 * 10 :]


def screen_recording() -> bytes:
    """Return an MP4 of few frames at irregular times, most of which are shown for long."""
    return video("mp4", "libx264", times=(0, 0.1, 0.4, 1.0, 1.3, 2.05, 2.1, 5.5), rate=30)


def slides(container: str) -> bytes:
    """Return a video of the scenes, each for 1.7 seconds, so that no sampled moment shows the last one."""
    return video(container, "libx264", times=(0, 1.7, 3.4), rate=30)


def joined(container: str, codec: str) -> bytes:
    """Return two concatenated files, as recorders and partial downloads leave them: the second's times restart at 0."""
    return b"".join(video(container, codec, scenes=part, rate=25) for part in ([YARD, QUEUE], [PARK]))


def mirrored() -> bytes:
    """Return a QuickTime file that is stored mirrored and upside down, with the matrix that undoes it."""
    scenes = [Scene(scene.pixels[:, ::-1], ()) for scene in SCENES]
    content = bytearray(video("mov", "mjpeg", "yuvj420p", scenes=scenes, rotation=180))
    offset = content.index(b"tkhd") + 44
    assert struct.unpack(">9i", content[offset : offset + 36])[:5:4] == (-65536, -65536)
    content[offset : offset + 4] = struct.pack(">i", 65536)
    return bytes(content)


def transparent() -> bytes:
    """Return a video of the scenes with partly transparent ground."""
    scenes = [Scene(np.asarray(see_through(scene)), ()) for scene in SCENES]
    return video("webm", "libvpx-vp9", "yuva420p", scenes=scenes, deadline="realtime", **{"cpu-used": "8"})


def cover_first() -> bytes:
    """Return a Matroska file whose first video stream is a cover picture that is not marked as one."""
    target = io.BytesIO()
    with av.open(target, "w", format="matroska") as output:
        cover = output.add_stream("mjpeg", rate=25)
        stream = output.add_stream("libx264", rate=RATE)
        for video_stream, pixels in ((cover, "yuvj420p"), (stream, "yuv420p")):
            video_stream.width = video_stream.height = SIDE
            video_stream.pix_fmt = pixels
        output.mux([*cover.encode(av.VideoFrame.from_image(picture(scene=STREET))), *cover.encode()])
        for index in range(RATE * len(SCENES)):
            frame = av.VideoFrame.from_image(picture(scene=SCENES[index // RATE]))
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return target.getvalue()


def photographed(container: str, orientation: int = 1) -> bytes:
    """Return a video of JPEGs with EXIF data, one per second, like a camera's time lapse."""
    exif = Image.Exif()
    exif[0x0110] = "camera"
    exif[0x0112] = orientation
    target = io.BytesIO()
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuvj420p"
        for index, scene in enumerate(SCENES):
            image = picture(scene=scene)
            if orientation == 7:  # mirrored and rotated
                image = image.transpose(Image.Transpose.TRANSVERSE)
            packet = av.Packet(saved(image, "JPEG", quality=90, exif=exif))
            packet.stream, packet.pts, packet.dts, packet.duration = stream, index, index, 1
            packet.time_base, packet.is_keyframe = Fraction(1), True
            output.mux(packet)
    return target.getvalue()


def end_to_end(padding: bytes = b"", rate: int = 25) -> bytes:
    """Return concatenated JPEGs, as cameras send them."""
    images = (picture(scene=scene) for scene in SCENES for _ in range(rate))
    return b"".join(saved(image, "JPEG", quality=90) + padding for image in images)


def late_refresh() -> bytes:
    """Return a video of one key frame, and a recovery point so near its end that no frame can be decoded from there."""
    return video("mp4", "libx264", rate=10, **{"x264-params": "intra-refresh=1:keyint=25:scenecut=0"}, bf="0")


def commented(content: bytes, comment: bytes) -> bytes:
    """Return a GIF with a comment before its first picture."""
    offset = content.index(b"\x21\xf9")
    return content[:offset] + b"\x21\xfe" + bytes([len(comment)]) + comment + b"\0" + content[offset:]


def exif_animation() -> bytes:
    """Return an animated PNG with EXIF data."""
    exif = Image.Exif()
    exif[0x0110] = "camera"
    return animation("PNG", exif=exif)


def repeated(content: bytes) -> bytes:
    """Return an AVI with an empty frame after every frame, which means that the previous one stays."""
    tail = content.index(b"idx1")
    head, chunks = content.index(b"movi") + 4, bytearray()
    offset = head
    while content[offset : offset + 4] == b"00dc":
        size = struct.unpack("<I", content[offset + 4 : offset + 8])[0]
        step = 8 + size + size % 2
        chunks += content[offset : offset + step] + b"00dc" + bytes(4)
        offset += step
    added_bytes = len(chunks) - (offset - head)
    list_size = struct.unpack("<I", content[head - 8 : head - 4])[0]
    parts = (content[: head - 8], struct.pack("<I", list_size + added_bytes), b"movi", chunks, content[offset:tail])
    return b"".join(parts)


def still_animation() -> bytes:
    """Return an animated GIF of one frame."""
    return saved(picture(), "GIF", save_all=True, append_images=[], duration=100)


CONTAINERS = {
    "MP4": {
        "H.264": lambda: video("mp4", "libx264"),
        "H.264, 4:4:4, odd sizes": lambda: video("mp4", "libx264", "yuv444p", size=(383, 381)),
        "H.264, 10 bits": lambda: video("mp4", "libx264", "yuv420p10le"),
        "H.264, B-frames and open GOPs": lambda: video("mp4", "libx264", bf="3", **{"x264-params": "open-gop=1"}),
        "H.264, turned by 90°": lambda: video("mp4", "libx264", rotation=90),
        "H.264, turned by 180°": lambda: video("mp4", "libx264", rotation=180),
        "H.264, turned by -90°, as phones do": lambda: video("mp4", "libx264", rotation=-90),
        "H.264, variable frame rate": screen_recording,
        "H.264, less than a second": lambda: video("mp4", "libx264", rate=30, times=[0, 0.3, 0.6]),
        "H.264, index at the start": index_first,
        "H.264, fragmented": lambda: video(
            "mp4", "libx264", container_options={"movflags": "frag_keyframe+empty_moov"}
        ),
        "H.264, no duration": without_duration,
        "H.264, a duration of two days": lambda: with_duration(2**31),
        "HEVC": lambda: video("mp4", "libx265"),
        "HEVC, 10 bits": lambda: video("mp4", "libx265", "yuv420p10le"),
        "AV1": lambda: video("mp4", "libsvtav1"),
        "VP9": lambda: video("mp4", "libvpx-vp9", deadline="realtime", **{"cpu-used": "8"}),
        "MPEG-4": lambda: video("mp4", "mpeg4"),
        "M4V (H.264)": lambda: video("ipod", "libx264"),
        "claims 10⁹ frames": billion_frames,
        "H.264, slides of 1.7 s, the last after the last moment": lambda: slides("mp4"),
        "H.264, every frame marked as a key frame": lambda: video("mp4", "libx264", flagged=True),
        "HEVC, every frame marked as a key frame": lambda: video("mp4", "libx265", flagged=True),
        "MPEG-4, every frame marked as a key frame": lambda: video("mp4", "mpeg4", flagged=True),
        "H.264, periodic intra refresh": late_refresh,
        "H.264, tags that are not UTF-8": lambda: video("mp4", "libx264", tags=LATIN),
    },
    "QuickTime": {
        "H.264": lambda: video("mov", "libx264"),
        "MJPEG": lambda: video("mov", "mjpeg", "yuvj420p"),
        "ProRes, 10 bits": lambda: video("mov", "prores", "yuv422p10le"),
        "Animation (RLE)": lambda: video("mov", "qtrle", "rgb24"),
        "PNG": lambda: video("mov", "png", "rgb24"),
        "DNxHR, 10 bits": lambda: video("mov", "dnxhd", "yuv422p10le", profile="dnxhr_hqx"),
        "mirrored": mirrored,
        "MJPEG, EXIF in each frame": lambda: photographed("mov"),
        "MJPEG, EXIF orientation 7 in each frame": lambda: photographed("mov", 7),
    },
    "3GP": {
        "H.263": lambda: video("3gp", "h263", size=(352, 288)),
        "H.264": lambda: video("3gp", "libx264"),
    },
    "AVI": {
        "MPEG-4": lambda: video("avi", "mpeg4"),
        "MPEG-4, B-frames": lambda: video("avi", "mpeg4", bf="2"),
        "MJPEG": lambda: video("avi", "mjpeg", "yuvj420p"),
        "H.264": lambda: video("avi", "libx264"),
        "MS MPEG-4 v3": lambda: video("avi", "msmpeg4v3"),
        "uncompressed": lambda: video("avi", "rawvideo", "bgr24"),
        "H.263, every frame marked as a key frame": lambda: video("avi", "h263", size=(352, 288), flagged=True),
        "H.264, B-frames": lambda: video("avi", "libx264", bf="3"),
        "MPEG-4, every other frame empty": lambda: repeated(video("avi", "mpeg4")),
        "MJPEG, tags that are not UTF-8": lambda: video("avi", "mjpeg", "yuvj420p", tags=LATIN),
    },
    "Matroska": {
        "H.264": lambda: video("matroska", "libx264"),
        "HEVC": lambda: video("matroska", "libx265"),
        "no duration, no index": lambda: video("matroska", "libx264", pipe=True),
        "a gap of ten hours": lambda: video("matroska", "libx264", times=[0, 1, 36_000, 36_001]),
        "FFV1": lambda: video("matroska", "ffv1"),
        "H.264, slides of 1.7 s, the last after the last moment": lambda: slides("matroska"),
        "H.264, every frame marked as a key frame": lambda: video("matroska", "libx264", flagged=True),
        "a cover as the first video": cover_first,
        "H.264, tags that are not UTF-8": lambda: video("matroska", "libx264", tags=LATIN),
    },
    "WebM": {
        "VP8": lambda: video("webm", "libvpx", deadline="realtime", **{"cpu-used": "8"}),
        "VP9": lambda: video("webm", "libvpx-vp9", deadline="realtime", **{"cpu-used": "8"}),
        "AV1": lambda: video("webm", "libsvtav1"),
        "VP9, transparent": transparent,
    },
    "MPEG": {
        "MPEG-1": lambda: video("mpeg", "mpeg1video", rate=25),
        "MPEG-2": lambda: video("vob", "mpeg2video", rate=25),
        "MPEG-2, interlaced": lambda: video("vob", "mpeg2video", rate=25, flags=0x20040000),
        "MPEG-1, video alone": lambda: video("mpeg1video", "mpeg1video", rate=25),
        "MPEG-2 transport stream": lambda: video("mpegts", "mpeg2video", rate=25),
        "H.264 transport stream": lambda: video("mpegts", "libx264"),
        "two transport streams, end to end": lambda: joined("mpegts", "libx264"),
        "two program streams, end to end": lambda: joined("vob", "mpeg2video"),
        "transport stream behind 1,000 other bytes": lambda: NOISE[:1000] + video("mpegts", "libx264"),
        "transport stream behind 60,000 other bytes": lambda: NOISE[:60_000] + video("mpegts", "mpeg2video", rate=25),
        "program stream behind 1,000 other bytes": lambda: NOISE[:1000] + video("vob", "mpeg2video", rate=25),
        "MPEG-1 program stream behind 1,000 other bytes": lambda: NOISE[:1000] + video("mpeg", "mpeg1video", rate=25),
        "H.264 program stream": lambda: video("vob", "libx264", bf="3"),
    },
    "H.264": {
        "bare": lambda: video("h264", "libx264"),
        "bare, B-frames and open GOPs": lambda: video("h264", "libx264", bf="3", **{"x264-params": "open-gop=1"}),
        "bare, behind a sector of zeros": lambda: bytes(2048) + video("h264", "libx264"),
        "bare, access unit delimiters": lambda: video("h264", "libx264", **{"x264-params": "aud=1"}),
    },
    "HEVC": {"bare": lambda: video("hevc", "libx265")},
    "AV1": {"bare": lambda: video("obu", "libsvtav1")},
    "IVF": {"VP8": lambda: video("ivf", "libvpx", deadline="realtime", **{"cpu-used": "8"})},
    "Ogg": {
        "Theora (OGV)": lambda: (Path(__file__).parent / "theora.ogv").read_bytes(),
        "VP8": lambda: video("ogg", "libvpx", deadline="realtime", **{"cpu-used": "8"}),
    },
    "JPEG": {
        "Motion JPEG, bare": end_to_end,
        "Motion JPEG, bare, with padding": lambda: end_to_end(bytes(50)),
        "Motion JPEG, bare, three frames": lambda: end_to_end(rate=1),
    },
    "Windows Media": {
        "WMV 8": lambda: video("asf", "wmv2"),
        "WMV 7": lambda: video("asf", "wmv1"),
    },
    "Flash Video": {
        "Sorenson H.263": lambda: video("flv", "flv"),
        "Sorenson H.263, every frame marked as a key frame": lambda: video("flv", "flv", flagged=True),
        "H.264": lambda: video("flv", "libx264"),
        "Screen Video": lambda: video("flv", "flashsv", "bgr24"),
    },
    "GIF": {
        "animated, 0.1 seconds a frame": lambda: animation("GIF", duration=100),
        "animated": lambda: animation("GIF"),
        "animated, transparent": lambda: animation("GIF", "RGBA", disposal=2),
        "animated, slides of 1.7 s": lambda: animation("GIF", duration=1700),
        "animated, a comment that is not UTF-8": lambda: commented(animation("GIF"), b"caf\xe9 ol\xe9"),
    },
    "PNG": {
        "animated (APNG)": lambda: animation("PNG"),
        "animated, 0.3 seconds a frame": lambda: animation("PNG", duration=300),
        "animated, slides of 1.7 s": lambda: animation("PNG", duration=1700),
        "animated, EXIF": exif_animation,
    },
    "WebP": {
        "animated": lambda: animation("WEBP", quality=85),
        "animated, lossless": lambda: animation("WEBP", lossless=True),
        "animated, 0.1 seconds a frame": lambda: animation("WEBP", quality=85, duration=100),
        "animated, slides of 1.7 s": lambda: animation("WEBP", quality=85, duration=1700),
    },
    "AVIF": {
        "animated": lambda: animation("AVIF", quality=80, speed=10),
        "animated, slides of 1.7 s": lambda: animation("AVIF", quality=80, speed=10, duration=1700),
    },
}
LEFT_TO_PILLOW = [
    *counted_variants("PNG", {"animated, 16 bits, alpha": lambda: metadata.deep_animation(SCENES)}, PEAK),
    *counted_variants("AVIF", {"animated, the second scene transparent": metadata.half_seen_animation}, YARD.counts),
]

VIDEOS = [
    *(variant for name, makers in CONTAINERS.items() for variant in counted_variants(name, makers, PEAK)),
    *LEFT_TO_PILLOW,
    *counted_variants("GIF", {"an animation of one frame": still_animation}, COUNTS),
    Variant("Matroska", "cut off in the third scene", lambda: video("matroska", "libx264")[:-3000], peak(YARD, QUEUE)),
    Variant("AVI", "MJPEG, one of the wanted frames damaged", damaged_frame, PEAK, incomplete=True),
    Variant("MPEG", "transport stream whose first key frame is cut off", cut_start, peak(QUEUE, PARK), incomplete=True),
    refused_variant("MP4", "cut off before its index", lambda: video("mp4", "libx264")[:-3000], "damaged"),
    refused_variant("MP4", "sound alone", lambda: sound_only("mp4", "aac"), "no video"),
    refused_variant("Matroska", "sound alone", lambda: sound_only("matroska", "aac"), "no video"),
    refused_variant("AVI", "an unusual codec", lambda: video("avi", "ffvhuff"), "codec is ffvhuff"),
    refused_variant("QuickTime", "frames of 12,000 x 9,000 pixels", huge_quicktime, "12000 x 9000 pixels"),
]
