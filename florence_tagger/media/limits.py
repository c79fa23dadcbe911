"""What a document may cost, and how a video is sampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from florence_tagger.errors import DocumentError

MOST_SIDE = 65_535  # pixels; JPEG's own limit. Pillow's resize needs memory that grows with the longer side alone
OWN_SIZE = (0, 0)  # of frames that are to stay as large as they are; not together with `reduced`
LOOK_SECONDS = 0.25  # how often one who waits looks whether it is still wanted
ROUNDING_S = 1e-4  # containers keep times in steps of their own
SHORT_S = 2.0  # what is shorter is looked at at four moments, its start and its end among them


@dataclass(frozen=True)
class Limits:
    """Of one document.

    Attributes:
        image_size: (height, width) of the model's input, pixels, which every frame is resized to; `OWN_SIZE` for none.
        pixels: most of a picture, page or frame.
        pages: most of a TIFF file.
        reduced: large JPEGs are decoded at a smaller scale, each side still twice the model's input or more.
    """

    image_size: tuple[int, int]
    pixels: int
    pages: int = 100
    reduced: bool = False


@dataclass(frozen=True)
class Confinement:
    """Of a decoder process.

    Attributes:
        limits: of the documents that it decodes.
        memory: bytes that it may take beyond what it has after its start.
        seconds: that it may work on a document.
    """

    limits: Limits
    memory: int
    seconds: float


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

    def choose(self, times: Sequence[float]) -> list[int]:
        """The places in `times` (seconds, ascending, at least one) of what is shown at evenly spread moments.

        The first moment is the start. What is shown at several of them, as in screen recordings, is named once. Of a
        short animation one frame a second would be the first one alone, which often shows less than the others.
        """
        start, seconds = times[0], min(times[-1] - times[0], self.max_seconds)
        wanted = min(1 / self.fps, seconds / 3) if 0 < seconds < SHORT_S and self.fps >= 1 else 1 / self.fps
        step = max(wanted, seconds / self.max_frames)
        number = min(int((seconds + ROUNDING_S) / step) + 1, self.max_frames)
        moments = start + step * np.arange(number) + ROUNDING_S
        places: list[int] = np.unique(np.searchsorted(times, moments, side="right") - 1).tolist()
        return places


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """DocumentError where so many pixels are too many."""
    size = f"The picture has {width} x {height} pixels"
    if width * height > max_pixels:
        raise DocumentError(f"{size}, more than the {max_pixels:,} accepted (FLORENCE_MAX_PIXELS).")
    if max(width, height) > MOST_SIDE:
        raise DocumentError(f"{size}; a side of {MOST_SIDE:,} is accepted.")
