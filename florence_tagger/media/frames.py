"""A file to its frames, whatever it is: what a decoder process runs."""

from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from io import BytesIO
from itertools import islice
from typing import IO

from PIL import Image

from florence_tagger.errors import DocumentError
from florence_tagger.media.animations import check_webp, is_motion_jpeg, pillow_frames
from florence_tagger.media.formats import AVIF, HEAD_BYTES, HEIC, JPEG, MOTION_JPEG, WEBP, Format, find_format
from florence_tagger.media.images import opened, still, stills
from florence_tagger.media.limits import DecodeOptions
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.similarity import block_means, near_identical
from florence_tagger.media.video import av1_picture, video_frames
from florence_tagger.schemas import Frame

# Pictures that may move, by Pillow's name of the format: ffmpeg's name; none where Pillow alone decodes them.
ANIMATED = {"GIF": "gif", "PNG": "apng", "AVIF": "mov", "WEBP": ""}


def open_frames(file: IO[bytes], limits: DecodeOptions, sampling: Sampling) -> Iterator[Frame]:
    """Decode what is looked at of a file, when it is asked for: its picture, its pages, or a sample over its time.

    Raises:
        DocumentError: the file is not accepted or damaged, possibly after some frames.
    """
    for frame in sampled_frames(file, limits, sampling):
        if not (frame.closing and frame.repeats):
            yield frame


def sampled_frames(file: IO[bytes], limits: DecodeOptions, sampling: Sampling) -> Generator[Frame]:
    """Decode as `open_frames` does, with the last frame of a video in any case."""
    found = find_format(file.read(HEAD_BYTES))
    file.seek(0)
    if found == JPEG and is_motion_jpeg(file):
        found = MOTION_JPEG
    if found.kind == "video":
        return marked(video_frames(file, found.decoder, limits, sampling))
    return picture_frames(file, found, limits, sampling)


def frame_at(content: bytes, place: int, limits: DecodeOptions, sampling: Sampling) -> Frame:
    """A frame of a file that can be trusted, here and now; `place` is its number from 0.

    Raises:
        DocumentError: the file is not accepted, is damaged before this frame, or has none there.
    """
    # In another size a frame may repeat the one before or not: the last one is not left out.
    frames = sampled_frames(BytesIO(content), limits, sampling)
    with closing(frames):
        frame = next(islice(frames, place, None), None)
    if frame is None:
        raise DocumentError(f"The file has no frame {place}.")
    return frame


def picture_frames(file: IO[bytes], found: Format, limits: DecodeOptions, sampling: Sampling) -> Generator[Frame]:
    """The frames of a file of one of the formats for pictures; of AV1 what Pillow refuses FFmpeg may read."""
    frames = pillow_picture_frames(file, found, limits, sampling)
    try:
        first = next(frames)
    except DocumentError as exc:
        if found not in (AVIF, HEIC) or exc.__cause__ is None:  # it is no decoder's error, but a picture too large
            raise
        with suppress(DocumentError):
            yield from av1_picture(file, limits)
            return
        raise
    yield first
    yield from frames


def pillow_picture_frames(
    file: IO[bytes], found: Format, limits: DecodeOptions, sampling: Sampling
) -> Generator[Frame]:
    """The frames of a file that Pillow can at least open."""
    if found.decoder not in ANIMATED:
        yield from stills(file, found, limits)
        return
    if found == WEBP:
        check_webp(file, limits.pixels)
    with opened(file, found.decoder, limits) as picture:
        content = getattr(picture, "fp", None) or file  # of a PNG what its pixels need
        if not is_animated(picture):
            yield from still(picture, limits)
        elif is_left_to_pillow(picture, content):
            yield from marked(pillow_frames(picture, content, limits, sampling))
        else:
            yield from marked(video_frames(content, ANIMATED[found.decoder], limits, sampling))


def is_left_to_pillow(picture: Image.Image, file: IO[bytes]) -> bool:
    """Whether FFmpeg can't read an animation (WebP), leaves out its alpha (AVIF) or can't blend it (PNG of 16 bits)."""
    file.seek(0)
    deep_alpha = file.read(26)[24:] in (b"\x10\4", b"\x10\6")  # bits of a sample, and the type of colour
    file.seek(0)
    return {"WEBP": True, "AVIF": picture.mode == "RGBA", "PNG": deep_alpha}.get(str(picture.format), False)


def is_animated(picture: Image.Image) -> bool:
    """Whether a picture has further frames or pages that can be found."""
    with suppress(EOFError):
        return bool(getattr(picture, "is_animated", False))
    return False


def marked(frames: Iterator[Frame]) -> Generator[Frame]:
    """Mark the frames of a video that repeat what was there before; their tiles are left out."""
    seen, repeats = None, False
    for frame in frames:
        if frame.tile is not None:
            if not repeats:
                yield frame
            continue
        means = block_means(frame.pixels)
        repeats = seen is not None and near_identical(means, seen)
        if not repeats:
            seen = means  # the last that was looked at, so that slow changes add up
        yield replace(frame, repeats=repeats)
