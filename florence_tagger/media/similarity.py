"""Whether a frame shows the same as the one before, so that the model need not look again."""

import numpy as np
from numpy.typing import NDArray

from florence_tagger.schemas import UInt8Array

BLOCK = 8  # pixels of the model's input; the smallest things it can count are larger

# Of 255, the most that a block's mean may change in any channel. In a still scene with a camera's noise it changes by
# up to 7 in H.264 at CRF 28, and by up to 8 at CRF 33; where the smallest drawing appears that the bundled model
# counts, of 13 to 18 pixels, it changes by more in 995 of 1,000 cases at least (tests/test_sampling.py has both).
MAX_CHANGE = 10.0


def block_means(pixels: UInt8Array) -> NDArray[np.float32]:
    """The means of the blocks of uint8 pixels (H, W, 3): float32 (H / 8, W / 8, 3), an incomplete last one left out."""
    height, width = (side // BLOCK * BLOCK for side in pixels.shape[:2])
    rows = pixels[:height, :width].reshape(height // BLOCK, BLOCK, width, 3).sum(axis=1, dtype=np.uint16)
    blocks = rows.reshape(height // BLOCK, width // BLOCK, BLOCK, 3).sum(axis=2, dtype=np.uint16)
    means: NDArray[np.float32] = blocks.astype(np.float32) / BLOCK**2
    return means


def near_identical(means: NDArray[np.float32], others: NDArray[np.float32]) -> bool:
    """Whether no block has changed."""
    return not means.size or float(np.abs(means - others).max()) <= MAX_CHANGE
