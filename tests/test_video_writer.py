"""Pictures to a video file, which PyAV reads again."""

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from florence_tagger.media.video_writer import MAX_SIDE, to_milliseconds, write_video
from florence_tagger.schemas import UInt8Array

NEAR = 24  # of 255: colours are stored at half the resolution, and with losses


def frames_of(path: Path) -> tuple[list[float], list[UInt8Array], float]:
    """When the frames of a video are shown, uint8 RGB (H, W, 3) of each, and how long it is, in seconds."""
    with av.open(str(path)) as file:
        decoded = list(file.decode(video=0))
        times = [float(frame.time or 0) for frame in decoded]
        return times, [frame.to_ndarray(format="rgb24") for frame in decoded], (file.duration or 0) / 1e6


def is_near(pixel: UInt8Array, colour: Sequence[int]) -> bool:
    return int(np.abs(pixel.astype(int) - colour).max()) <= NEAR


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((1, 1), (1, 1)),
        ((19, 17), (19, 17)),
        ((30, 2 * MAX_SIDE), (15, MAX_SIDE)),
        ((2 * MAX_SIDE, 1), (MAX_SIDE, 1)),
    ],
)
def test_a_video_is_as_large_as_its_first_picture_up_to_a_limit(
    tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    pictures = [np.full((*size, 3), 200, np.uint8), np.full((40, 60, 3), 100, np.uint8)]
    with (tmp_path / "a.webm").open("wb") as file:
        write_video(file, pictures, [0, 1, 2])
    times, frames, seconds = frames_of(tmp_path / "a.webm")
    assert (times, seconds) == ([0.0, 1.0], 2.0)
    assert [frame.shape[:2] for frame in frames] == [shown, shown]
    assert [is_near(frame[0, 0], [value] * 3) for frame, value in zip(frames, (200, 100), strict=True)] == [True, True]


def test_times_ascend_whatever_they_are() -> None:
    assert to_milliseconds([0.0, 0.0001, 0.0002, 5.0]) == [0, 1, 2, 5000]


def test_no_picture_is_kept_while_the_next_ones_are_made(tmp_path: Path) -> None:
    made: list[weakref.ref[UInt8Array]] = []

    def pictures() -> Iterator[UInt8Array]:
        for index in range(20):
            assert sum(one() is not None for one in made) <= 1, "of those before"
            picture = np.full((64, 64, 3), index, np.uint8)
            made.append(weakref.ref(picture))
            yield picture
            del picture

    with (tmp_path / "a.webm").open("wb") as file:
        write_video(file, pictures(), range(21))
    assert len(frames_of(tmp_path / "a.webm")[0]) == 20
