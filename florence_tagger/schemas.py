"""What the stages hand to each other: frozen data without behaviour."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]
Box = tuple[float, float, float, float]
Tiles = int | Literal["auto"]  # tiles a side of a picture; as many as a look at the whole calls for

AUTO: Literal["auto"] = "auto"
MAX_TILES = 6  # a side


class Task(StrEnum):
    """What the model can be asked to find, by the names of its tasks."""

    OBJECT_DETECTION = "OD"
    DENSE_REGION_CAPTION = "DENSE_REGION_CAPTION"
    REGION_PROPOSAL = "REGION_PROPOSAL"
    OPEN_VOCABULARY_DETECTION = "OPEN_VOCABULARY_DETECTION"
    PHRASE_GROUNDING = "CAPTION_TO_PHRASE_GROUNDING"

    @property
    def takes_text(self) -> bool:
        """Whether it asks for what a text says."""
        return self in (Task.OPEN_VOCABULARY_DETECTION, Task.PHRASE_GROUNDING)

    @property
    def names_things(self) -> bool:
        """Whether a thing has one label wherever it is seen, a name and not a caption."""
        return self is not Task.DENSE_REGION_CAPTION


@dataclass(frozen=True)
class Prompt:
    """A task, and the text of one that takes a text."""

    task: Task
    text: str = ""


class VideoCount(StrEnum):
    """What stands for a label's count in a video."""

    PEAK = "peak"  # the most in any one frame
    DISTINCT = "distinct"  # how many different ones pass


@dataclass(frozen=True)
class Rules:
    """How detections become counts.

    Attributes:
        classes: the names of what is counted, each counted with 0, too; empty for whatever is found.
        merge_iou: boxes of a frame, of any labels, that overlap so much are one thing; 0 is off.
        video_count: of videos and animations.
    """

    classes: tuple[str, ...] = ()
    merge_iou: float = 0.0
    video_count: VideoCount = VideoCount.PEAK


OBJECT_DETECTION = Prompt(Task.OBJECT_DETECTION)  # what the service is for


@dataclass(frozen=True)
class Frame:
    """One picture as the model wants it.

    Attributes:
        pixels: uint8 (H, W, 3), RGB, already at the model's input size.
        width, height: of the picture as displayed, pixels.
        tile: the part of the picture that it shows, in pixels of the picture; None for all of it. The frames of a
            picture's tiles come after the one of the whole.
        page: of a file with several, from 1.
        time_s: since the start of a video or animation, seconds.
        repeats: it shows the same as the frame before, so that what was found there goes for it, too.
        closing: it is the last of a video, and shown at none of the sampled moments.
    """

    pixels: UInt8Array
    width: int
    height: int
    page: int | None = None
    time_s: float | None = None
    repeats: bool = False
    closing: bool = False
    tile: Box | None = None


@dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the picture as displayed.
        score: how sure the model is of it, 0 to 1.
        track: its number among the objects of a video, from 1, where they are told apart and it is one that counts.
    """

    label: str
    box: Box
    score: float
    track: int | None = None


@dataclass(frozen=True)
class FrameResult:
    """All detections of one picture, page or frame; `width`, `height`, `page` and `time_s` as in `Frame`.

    Attributes:
        detections: in the order in which the model said them.
        truncated: the answer was cut off at `max_new_tokens`, so that objects may be missing.
        tokens: length of the answer.
        tiles: the parts, in pixels of the picture, that were looked at besides the whole.
    """

    detections: tuple[Detection, ...]
    truncated: bool = False
    tokens: int = 0
    page: int | None = None
    time_s: float | None = None
    width: int = 0
    height: int = 0
    tiles: tuple[Box, ...] = ()


@dataclass(frozen=True)
class DocumentResult:
    """All frames of a document that was treated.

    Attributes:
        frames: what was found in it, frame by frame.
        incomplete: the file was damaged, or decoding it took too long, so that there are moments without a frame.
    """

    frames: tuple[FrameResult, ...]
    incomplete: bool = False

    @property
    def truncated(self) -> bool:
        """Whether an answer of the model was cut off, so that objects may be missing."""
        return any(frame.truncated for frame in self.frames)

    @property
    def tracks(self) -> int:
        """The number of distinct objects, if they were tracked."""
        return len({detection.track for frame in self.frames for detection in frame.detections} - {None})
