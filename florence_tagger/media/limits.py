"""What a document may cost, and how a video is sampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from florence_tagger.errors import DocumentError
from florence_tagger.tiling import WHOLE

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
        reduced: large JPEGs are decoded at a smaller scale, each side still twice the model's input or more, that of a
            tile too.
        tiles: a side of each picture, page or frame that is looked at, the last for all further ones.
    """

    image_size: tuple[int, int]
    pixels: int
    pages: int = 100
    reduced: bool = False
    tiles: tuple[int, ...] = WHOLE

    def tiles_of(self, place: int) -> int:
        """Return the tiles a side of a picture by its number from 0."""
        return self.tiles[min(place, len(self.tiles) - 1)]

    @property
    def least_side(self) -> int:
        """Least pixels of each side of what is decoded at a smaller scale."""
        return 2 * max(self.image_size) * max(self.tiles)


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

    def choose(self, times: Sequence[float]) -> "Choice":
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
                return Choice(places)
            if len(places) < self.max_frames:
                return Choice([*places, last], closing=True)
        return Choice(shown_at(times, np.linspace(0, seconds, self.max_frames)))


@dataclass(frozen=True)
class Choice:
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


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """DocumentError where so many pixels are too many."""
    size = f"The picture has {width} x {height} pixels"
    if width * height > max_pixels:
        raise DocumentError(f"{size}, more than the {max_pixels:,} accepted (FLORENCE_MAX_PIXELS).")
    if max(width, height) > MOST_SIDE:
        raise DocumentError(f"{size}; a side of {MOST_SIDE:,} is accepted.")
