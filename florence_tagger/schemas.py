"""What the stages hand to each other: frozen data without behaviour."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frame:
    """One picture as the model wants it.

    Attributes:
        pixels: uint8 (H, W, 3), RGB, already at the model's input size.
        width, height: of the picture as displayed, pixels.
    """

    pixels: UInt8Array
    width: int
    height: int


@dataclass(frozen=True)
class Region:
    """One object.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the picture as displayed.
        score: how sure the model is of it, 0 to 1.
    """

    label: str
    box: Box
    score: float


@dataclass(frozen=True)
class Detection:
    """What the model found in one frame.

    Attributes:
        regions: in the order in which the model said them.
        truncated: the answer was cut off at the most tokens, so that objects may be missing.
    """

    regions: tuple[Region, ...]
    truncated: bool = False


@dataclass(frozen=True)
class DocumentResult:
    """A document that was treated: its counts by label, and what they were counted from."""

    counts: dict[str, int]
    detection: Detection
