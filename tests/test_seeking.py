"""The frames of videos that are looked at are those of a full decode, whatever files say of key frames and times."""

import io
from dataclasses import dataclass, replace

import av
import numpy as np
import pytest
from PIL import Image

from florence_tagger.errors import DocumentError
from florence_tagger.media.frames import open_frames
from florence_tagger.media.limits import DecodeOptions
from florence_tagger.media.sampling import Sampling
from florence_tagger.schemas import Frame, UInt8Array
from tests.encodings import CHECKED, COMMON, CUT_OFF, PAIRS, TRIMMED, TWISTS, Encoding, damaged, drawing, trimmed

SIZE = (144, 176)
MAX_DIFFERENCE = 2.0  # of 255, on average
ROUNDING_S = 1e-4  # containers keep times in steps of their own

# ffmpeg's name for reading a container, where it is another one than for writing.
DEMUXERS = {"mpeg1video": "mpegvideo", "vob": "mpeg", "3gp": "mov", "mp4": "mov", "webm": "matroska"}


@dataclass(frozen=True)
class Shown:
    """A frame of a full decode.

    Attributes:
        time_s: seconds since the first frame.
        pixels: uint8 (H, W, 3).
    """

    time_s: float
    pixels: UInt8Array


def full_decode(content: bytes, one: Encoding) -> tuple[list[Shown], bool]:
    """Decode all frames in order, each at its time, and tell whether nothing of the file was lost.

    Where the container has no times, or not those of the order in which frames are shown, they are those written.
    """
    times, pixels, whole = [], [], True
    with av.open(io.BytesIO(content), format=DEMUXERS.get(one.container, one.container)) as source:
        stream = source.streams.video[0]
        stream.codec_context.thread_count = 1
        unit = float(stream.time_base or 1)
        for packet in source.demux(stream):
            try:
                for frame in packet.decode():
                    times.append(frame.pts)
                    pixels.append(np.asarray(frame.to_image().resize(SIZE[::-1], Image.Resampling.BICUBIC)))
            except av.FFmpegError:
                whole = False
    if None not in times:
        seconds = [(time - min(times)) * unit for time in sorted(times)]
    else:
        assert len(times) == len(one.times)
        seconds = one.times
    return [Shown(time, each) for time, each in zip(seconds, pixels, strict=True)], whole


def looked_at(content: bytes, **sampling: float) -> tuple[list[Frame], bool]:
    """Return the frames that the service looks at, and whether the document is marked incomplete."""
    frames: list[Frame] = []
    try:
        for frame in open_frames(io.BytesIO(content), DecodeOptions(SIZE, 10**8), Sampling(**sampling)):  # type: ignore[arg-type]
            frames.append(frame)  # noqa: PERF402 - those before an error stay
    except DocumentError:
        return frames, True
    return frames, False


def expected(shown: list[Shown], fps: float) -> list[Shown]:
    """Return what of a full decode is shown at evenly spread moments, and its last frame."""
    last = shown[-1].time_s
    moments = np.arange(0, last + ROUNDING_S, min(1 / fps, last / 3) if last < 2 and fps >= 1 else 1 / fps)
    places = [max(index for index, one in enumerate(shown) if one.time_s <= moment + ROUNDING_S) for moment in moments]
    return [shown[place] for place in sorted({*places, len(shown) - 1})]


def difference(one: UInt8Array, other: UInt8Array) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def check(one: Encoding, content: bytes) -> None:
    """Compare what is looked at of a video with what a full decode shows at the same moments."""
    shown, whole = full_decode(content, one)
    if not shown:  # what is cut off may be what describes the rest
        assert looked_at(content) == ([], True)
        return
    for fps in (1, 0.4):
        wanted = expected(shown, fps)
        frames, incomplete = looked_at(content, fps=fps, max_frames=1000)
        if incomplete:
            assert not whole
            continue
        assert frames
        assert [frame.time_s for frame in frames] == pytest.approx([each.time_s for each in wanted], abs=ROUNDING_S)
        worst = max(difference(frame.pixels, each.pixels) for frame, each in zip(frames, wanted, strict=True))
        assert worst < MAX_DIFFERENCE


def test_the_comparison_can_fail() -> None:
    """Neighbouring frames differ by more than what is allowed."""
    differences = [difference(drawing(index), drawing(index + 1)) for index in range(60)]
    assert min(differences) > MAX_DIFFERENCE


def test_there_are_enough_pairs_of_codec_and_container() -> None:
    assert len({(one.container, one.codec) for one in PAIRS}) >= 60
    assert len({str(one) for one in (*PAIRS, *TWISTS)}) == len(PAIRS) + len(TWISTS)


@pytest.mark.parametrize("one", COMMON, ids=str)
def test_sampled_frames_of_common_videos_are_those_of_a_full_decode(one: Encoding) -> None:
    check(one, one.make())


@pytest.mark.long
@pytest.mark.parametrize("one", [*PAIRS, *TWISTS], ids=str)
def test_sampled_frames_are_those_of_a_full_decode(one: Encoding) -> None:
    check(one, one.make())


@pytest.mark.parametrize("one", CHECKED, ids=str)
def test_damage_is_marked_or_changes_nothing(one: Encoding) -> None:
    content, marked = one.make(), 0
    whole = looked_at(content)[0]
    for seed in range(8):
        frames, incomplete = looked_at(damaged(content, seed))
        marked += incomplete
        if not incomplete:
            assert len(frames) == len(whole)
            assert max(difference(a.pixels, b.pixels) for a, b in zip(frames, whole, strict=True)) < MAX_DIFFERENCE
    assert marked


@pytest.mark.parametrize("one", CUT_OFF, ids=str)
def test_half_a_frame_at_the_end_is_not_counted(one: Encoding) -> None:
    content = one.make()
    whole, incomplete = looked_at(content, fps=100, max_frames=1000)
    assert not incomplete
    times, marked = [frame.time_s or 0 for frame in whole], 0
    for share in (0.31, 0.5, 0.68, 0.83, 0.97):
        packets = int(len(content) * share) // 188
        frames, incomplete = looked_at(content[: packets * 188 + (0 if one.container == "mpegts" else 55)])
        marked += incomplete
        for frame in frames:
            same = whole[int(np.abs(np.array(times) - frame.time_s).argmin())]
            assert difference(frame.pixels, same.pixels) < MAX_DIFFERENCE
    assert marked >= 3  # by chance it may be cut off between two frames


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.55, 1.3, 2.0])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("one", TRIMMED, ids=str)
def test_trimmed_videos_begin_with_what_can_be_shown(one: Encoding, container: str, seconds: float) -> None:
    """Before it are frames that an edit list leaves out, or that depend on what was cut off."""
    content = trimmed(one.make(), container, seconds)
    check(replace(one, container=container), content)
