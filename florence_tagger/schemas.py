"""Data types that the stages exchange: frozen, without behavior."""

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]
File = str | os.PathLike[str] | bytes  # a path, or what is in the file
Content = str | bytes  # a file in base64, as requests have it, or as it is
Box = tuple[float, float, float, float]
Tiles = int | Literal["auto"]  # per side of a picture; "auto" derives them from the detections in the full picture

AUTO: Literal["auto"] = "auto"
MAX_TILES = 6  # per side


class Task(StrEnum):
    """A task of Florence-2, by its name."""

    OBJECT_DETECTION = "OD"
    DENSE_REGION_CAPTION = "DENSE_REGION_CAPTION"
    REGION_PROPOSAL = "REGION_PROPOSAL"
    OPEN_VOCABULARY_DETECTION = "OPEN_VOCABULARY_DETECTION"
    PHRASE_GROUNDING = "CAPTION_TO_PHRASE_GROUNDING"

    @property
    def takes_text(self) -> bool:
        """True for tasks whose prompt includes a text of the user."""
        return self in (Task.OPEN_VOCABULARY_DETECTION, Task.PHRASE_GROUNDING)

    @property
    def names_things(self) -> bool:
        """True for tasks whose labels are names, equal for equal objects, and not captions."""
        return self is not Task.DENSE_REGION_CAPTION


@dataclass(frozen=True)
class Prompt:
    """A task and, for tasks that take one, its text."""

    task: Task
    text: str = ""


class VideoCount(StrEnum):
    """Definition of a label's count in a video."""

    PEAK = "peak"  # the maximum over all frames
    DISTINCT = "distinct"  # the number of tracked objects


@dataclass(frozen=True)
class Rules:
    """Rules by which detections are counted.

    Attributes:
        classes: names of the only labels to count, also with a count of 0; empty for all labels.
        merge_iou: boxes of a frame, of any labels, with at least this overlap (IoU) are one object; 0 is off.
        video_count: of videos and animations.
    """

    classes: tuple[str, ...] = ()
    merge_iou: float = 0.0
    video_count: VideoCount = VideoCount.PEAK


OBJECT_DETECTION = Prompt(Task.OBJECT_DETECTION)  # the default


@dataclass(frozen=True)
class Frame:
    """An input of the model: a picture, a page, a frame of a video, or a tile of one of these.

    Attributes:
        pixels: uint8 (H, W, 3), RGB, at the model's input size.
        width, height: of the picture as displayed, pixels.
        page: number of the page in a file with several, from 1.
        time_s: since the start of a video or animation, seconds.
        repeats: the frame is a near duplicate of the one before, whose detections are used for it, too.
        is_extra: the frame is the last of a video, added beyond the evenly spaced timestamps.
        tile: the part of the picture in `pixels`, in pixels of the picture; None for the full picture. The frames of a
            picture's tiles follow the frame of the full picture.
    """

    pixels: UInt8Array
    width: int
    height: int
    page: int | None = None
    time_s: float | None = None
    repeats: bool = False
    is_extra: bool = False
    tile: Box | None = None


@dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        label: name of the object, or its caption.
        box: x1, y1, x2, y2 in pixels of the picture as displayed.
        score: confidence of the model, 0 to 1.
        track: number of the object in a video, from 1; None if it is not tracked, or not part of a counted track.
    """

    label: str
    box: Box
    score: float
    track: int | None = None


@dataclass(frozen=True)
class FrameResult:
    """All detections of one picture, page or frame; `width`, `height`, `page` and `time_s` as in `Frame`.

    Attributes:
        detections: in the order of the generated answer.
        truncated: the answer was cut off at `max_new_tokens`, so that objects may be missing.
        tokens: length of the answer.
        tiles: boxes, in pixels of the picture, that were processed in addition to the full picture.
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
    """All frames of a processed document.

    Attributes:
        frames: results of the pages or sampled frames, in order.
        incomplete: the file is damaged, or decoding it took too long, so that sampled frames are missing.
    """

    frames: tuple[FrameResult, ...]
    incomplete: bool = False

    @property
    def truncated(self) -> bool:
        """True if an answer of the model was cut off, so that objects may be missing."""
        return any(frame.truncated for frame in self.frames)

    @property
    def tracks(self) -> int:
        """Number of distinct objects, if they were tracked."""
        return len({detection.track for frame in self.frames for detection in frame.detections} - {None})
