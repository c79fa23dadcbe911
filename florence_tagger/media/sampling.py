"""Which frames of a video or an animation are looked at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDING_S = 1e-4  # containers keep times in steps of their own
SHORT_S = 2.0  # a shorter video is sampled at four moments, its start and its end among them


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video or an animation are looked at.

    Attributes:
        fps: frames a second.
        max_frames: at most so many, which then are further apart.
        max_seconds: only the first so many seconds are looked at.
    """

    fps: float = 1.0
    max_frames: int = 32
    max_seconds: float = 3600.0

    def choose(self, times: Sequence[float]) -> "SampledFrames":
        """Choose the frames that are shown at evenly spread moments, and the last one.

        The first moment is the start. What is shown at several of them, as in screen recordings, is chosen once. Of a
        short animation one frame a second would be the first one alone, which often shows less than the others.

        Args:
            times: when each frame begins to be shown, seconds, ascending, at least one.
        """
        seconds = min(times[-1] - times[0], self.max_seconds)
        short = 0 < seconds < SHORT_S and self.fps >= 1
        step = min(1 / self.fps, seconds / 3) if short else 1 / self.fps
        number = int((seconds + ROUNDING_S) / step) + 1
        last = shown_at(times, np.array([seconds]))[0]
        if number <= self.max_frames:
            places = shown_at(times, step * np.arange(number))
            if places[-1] == last:
                return SampledFrames(places)
            if len(places) < self.max_frames:
                return SampledFrames([*places, last], closing=True)
        return SampledFrames(shown_at(times, np.linspace(0, seconds, self.max_frames)))


@dataclass(frozen=True)
class SampledFrames:
    """The frames of a video that are looked at.

    Attributes:
        places: their numbers among all frames, ascending.
        closing: the last of them is the last of the video and shown at none of the moments; it counts only if it shows
            something new.
    """

    places: list[int]
    closing: bool = False


def shown_at(times: Sequence[float], moments: NDArray[np.floating]) -> list[int]:
    """Return the places in `times` of what is shown at some moments (seconds since the first), each once."""
    places: list[int] = np.unique(np.searchsorted(times, times[0] + moments + ROUNDING_S, side="right") - 1).tolist()
    return places
