"""Choice of the frames of a video or an animation that are processed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDING_S = 1e-4  # containers round times to their own units
SHORT_S = 2.0  # a shorter video is sampled at four timestamps, its start and its end among them


@dataclass(frozen=True)
class Sampling:
    """Sampling of the frames of a video or an animation.

    Attributes:
        fps: frames a second.
        max_frames: maximum number of frames; if reached, they are spread evenly over the time.
        max_seconds: only the first seconds up to this time are sampled.
    """

    fps: float = 1.0
    max_frames: int = 32
    max_seconds: float = 3600.0

    def choose(self, times: Sequence[float]) -> "SampledFrames":
        """Choose the frames that are shown at evenly spaced timestamps, and the last one.

        The first timestamp is the start. A frame that is shown at several of them, as in screen recordings, is chosen
        once. One frame a second of a short animation would be its first frame alone, which often shows less than the
        others.

        Args:
            times: start of each frame's display, seconds, ascending, at least one.
        """
        duration = min(times[-1] - times[0], self.max_seconds)
        short = 0 < duration < SHORT_S and self.fps >= 1
        step = min(1 / self.fps, duration / 3) if short else 1 / self.fps
        num_samples = int((duration + ROUNDING_S) / step) + 1
        last_index = displayed_indices(times, np.array([duration]))[0]
        if num_samples <= self.max_frames:
            indices = displayed_indices(times, step * np.arange(num_samples))
            if indices[-1] == last_index:
                return SampledFrames(indices)
            if len(indices) < self.max_frames:
                return SampledFrames([*indices, last_index], last_is_extra=True)
        return SampledFrames(displayed_indices(times, np.linspace(0, duration, self.max_frames)))


@dataclass(frozen=True)
class SampledFrames:
    """Indices of the sampled frames of a video.

    Attributes:
        indices: of the frames among all frames of the video, ascending.
        last_is_extra: the last index is the video's last frame, added beyond the evenly spaced timestamps; the frame
            is dropped if it repeats the one before.
    """

    indices: list[int]
    last_is_extra: bool = False


def displayed_indices(times: Sequence[float], timestamps: NDArray[np.floating]) -> list[int]:
    """Return the indices in `times` of the frames displayed at `timestamps` (seconds since the first), each once."""
    displayed = np.searchsorted(times, times[0] + timestamps + ROUNDING_S, side="right") - 1
    indices: list[int] = np.unique(displayed).tolist()
    return indices
