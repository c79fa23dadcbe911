"""Comparison of consecutive frames: the model does not process a frame that shows the same as the one before."""

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from florence_tagger.schemas import UInt8Array

BLOCK = 8  # pixels of the model's input; the smallest objects that it can count are larger

# Maximum change of a block's mean in any channel, of 255. In a still scene with camera noise it is up to 7 in H.264 at
# CRF 28, and up to 8 at CRF 33. If the smallest drawing that the bundled model counts appears, of 13 to 18 pixels, the
# change is larger in at least 995 of 1,000 cases (tests/test_sampling.py has both).
MAX_CHANGE = 10.0


def block_means(pixels: UInt8Array) -> NDArray[np.float32]:
    """Return the means of all complete 8 x 8 blocks of uint8 pixels (H, W, 3): float32 (H // 8, W // 8, 3)."""
    rows, columns = (side // BLOCK for side in pixels.shape[:2])
    if not rows or not columns:
        return np.empty((rows, columns, 3), np.float32)
    blocks = pixels[: rows * BLOCK, : columns * BLOCK].astype(np.float32)
    return cast(NDArray[np.float32], cv2.resize(blocks, (columns, rows), interpolation=cv2.INTER_AREA))


def near_identical(means: NDArray[np.float32], other_means: NDArray[np.float32]) -> bool:
    """Return True if no block has changed by more than `MAX_CHANGE`."""
    return not means.size or float(np.abs(means - other_means).max()) <= MAX_CHANGE
