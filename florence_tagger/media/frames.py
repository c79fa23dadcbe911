"""Decoding of a file of any accepted format to frames, as run by a decoder process."""

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
from florence_tagger.media.images import open_checked, single_picture_frames, still_frames
from florence_tagger.media.limits import DecodeOptions
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.similarity import block_means, near_identical
from florence_tagger.media.video import av1_picture_frames, video_frames
from florence_tagger.schemas import Frame

# Picture formats that may be animated: Pillow's name -> FFmpeg's name, empty if only Pillow decodes the animation.
ANIMATED = {"GIF": "gif", "PNG": "apng", "AVIF": "mov", "WEBP": ""}


def open_frames(file: IO[bytes], options: DecodeOptions, sampling: Sampling) -> Iterator[Frame]:
    """Yield the frames of a file, each decoded on request: its picture, its pages, or samples over its duration.

    Raises:
        DocumentError: the file is not accepted or damaged, possibly after some frames.
    """
    for frame in sampled_frames(file, options, sampling):
        if not (frame.is_extra and frame.repeats):
            yield frame


def sampled_frames(file: IO[bytes], options: DecodeOptions, sampling: Sampling) -> Generator[Frame]:
    """Decode as `open_frames` does, and yield the last frame of a video even if it repeats the one before."""
    file_format = find_format(file.read(HEAD_BYTES))
    file.seek(0)
    if file_format == JPEG and is_motion_jpeg(file):
        file_format = MOTION_JPEG
    if file_format.kind == "video":
        return mark_repeats(video_frames(file, file_format.decoder, options, sampling))
    return picture_frames(file, file_format, options, sampling)


def frame_at(content: bytes, index: int, options: DecodeOptions, sampling: Sampling) -> Frame:
    """Decode one frame of a trusted file in this process.

    Args:
        content: bytes of the file.
        index: of the frame among the sampled ones.
        options: for decoding.
        sampling: frames of a video or animation, from which `index` counts.

    Raises:
        DocumentError: the file is not accepted, is damaged before this frame, or has fewer frames.
    """
    # At another size the repeated frames may differ; keeping the last one keeps the indices.
    frames = sampled_frames(BytesIO(content), options, sampling)
    with closing(frames):
        frame = next(islice(frames, index, None), None)
    if frame is None:
        raise DocumentError(f"The file has no frame {index}.")
    return frame


def picture_frames(
    file: IO[bytes], file_format: Format, options: DecodeOptions, sampling: Sampling
) -> Generator[Frame]:
    """Yield the frames of a file of a picture format; FFmpeg decodes AV1 pictures that Pillow refuses."""
    frames = pillow_picture_frames(file, file_format, options, sampling)
    try:
        first = next(frames)
    except DocumentError as exc:
        if file_format not in (AVIF, HEIC) or exc.__cause__ is None:  # too large, not a decoder's error
            raise
        with suppress(DocumentError):
            yield from av1_picture_frames(file, options)
            return
        raise
    yield first
    yield from frames


def pillow_picture_frames(
    file: IO[bytes], file_format: Format, options: DecodeOptions, sampling: Sampling
) -> Generator[Frame]:
    """Yield the frames of a file that Pillow can at least open."""
    if file_format.decoder not in ANIMATED:
        yield from still_frames(file, file_format, options)
        return
    if file_format == WEBP:
        check_webp(file, options.max_pixels)
    with open_checked(file, file_format.decoder, options) as picture:
        content = getattr(picture, "fp", None) or file  # for PNG, the cleaned file that Pillow reads
        if not is_animated(picture):
            yield from single_picture_frames(picture, options)
        elif requires_pillow(picture, content):
            yield from mark_repeats(pillow_frames(picture, content, options, sampling))
        else:
            yield from mark_repeats(video_frames(content, ANIMATED[file_format.decoder], options, sampling))


def requires_pillow(picture: Image.Image, file: IO[bytes]) -> bool:
    """Return True if FFmpeg can't decode an animation correctly.

    It can't read animated WebP, drops the alpha of AVIF and can't blend PNG of 16 bits with alpha.
    """
    file.seek(0)
    deep_alpha = file.read(26)[24:] in (b"\x10\4", b"\x10\6")  # bit depth and color type
    file.seek(0)
    return {"WEBP": True, "AVIF": picture.mode == "RGBA", "PNG": deep_alpha}.get(str(picture.format), False)


def is_animated(picture: Image.Image) -> bool:
    """Return True if a picture has further frames or pages that can be found."""
    with suppress(EOFError):
        return bool(getattr(picture, "is_animated", False))
    return False


def mark_repeats(frames: Iterator[Frame]) -> Generator[Frame]:
    """Mark the frames of a video that repeat the one before, and drop their tiles."""
    reference_means, repeats = None, False
    for frame in frames:
        if frame.tile is not None:
            if not repeats:
                yield frame
            continue
        means = block_means(frame.pixels)
        repeats = reference_means is not None and near_identical(means, reference_means)
        if not repeats:
            reference_means = means  # of the last processed frame, so that slow changes add up
        yield replace(frame, repeats=repeats)
