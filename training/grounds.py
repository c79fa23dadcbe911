"""What scenes stand on: plain and patterned grounds, and photographs. Canvases are float32 (H, W, 3), 0 to 255."""

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Canvas = NDArray[np.float32]
Colour = NDArray[np.float64]
Unclipped = NDArray[Any]  # (H, W, 3), of values that may be below 0 and above 255
Shape = tuple[int, int]  # height, width

TEXTURE_FOLDER = Path(__file__).parent / "textures"
SMALLEST_CROP = 0.35  # of a photograph's side


def draw_ground(rng: Generator, shape: Shape, photographs: float) -> Canvas:
    """A photograph with that probability, else plain, a gradient, grain, blobs (twice as often), or ground and sky."""
    if rng.random() < photographs:
        return photograph(rng, shape)
    kind = rng.integers(0, 6)
    colour = rng.uniform(0, 255, 3)
    if rng.random() < 0.4:  # pale, as photographs of rooms and streets are
        colour = 255 - (255 - colour) * 0.35
    draw = (plain, gradient, grain, blobs, blobs, ground_and_sky)[kind]
    return np.clip(draw(rng, shape, colour), 0, 255).astype(np.float32)


def plain(_: Generator, shape: Shape, colour: Colour) -> Unclipped:
    return np.broadcast_to(colour, (*shape, 3))


def gradient(rng: Generator, shape: Shape, colour: Colour) -> Unclipped:
    other = rng.uniform(0, 255, 3)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (
        axis.astype(np.float32) / size - 0.5 for axis, size in zip(np.mgrid[: shape[0], : shape[1]], shape, strict=True)
    )
    share = ((x * np.cos(angle) + y * np.sin(angle)) / 1.42 + 0.5)[..., None]
    return np.asarray(colour * (1 - share) + other * share)


def grain(rng: Generator, shape: Shape, colour: Colour) -> Unclipped:
    coarseness = int(rng.choice([1, 2, 4]))
    cells = (shape[0] // coarseness, shape[1] // coarseness)
    noise = rng.standard_normal((*cells, 3 if rng.random() < 0.5 else 1)) * rng.uniform(4, 28)
    noise = (np.zeros((*cells, 3)) + noise).astype(np.float32)
    return np.asarray(colour + cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_LINEAR))


def blobs(rng: Generator, shape: Shape, colour: Colour) -> Unclipped:
    cells = int(rng.integers(3, 9))
    spots = colour + rng.uniform(-1, 1, (cells, cells, 3)) * rng.uniform(20, 110)
    return np.asarray(cv2.resize(spots.astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC))


def ground_and_sky(rng: Generator, shape: Shape, colour: Colour) -> Unclipped:
    ground = rng.uniform(0, 255, 3)
    horizon = int(rng.uniform(0.3, 0.7) * shape[0])
    canvas = np.empty((*shape, 3), np.float32)
    canvas[:horizon], canvas[horizon:] = colour, ground
    blurred = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.5, 6)))
    return np.asarray(blurred + rng.standard_normal((*shape, 1)) * rng.uniform(0, 6))


@cache
def load_photographs() -> tuple[NDArray[np.uint8], ...]:
    """The photographs, uint8 (S, S, 3)."""
    return tuple(np.array(Image.open(path).convert("RGB")) for path in sorted(TEXTURE_FOLDER.glob("*.jpg")))


def photograph(rng: Generator, shape: Shape) -> Canvas:
    """A part of a photograph, mirrored or not, in a light of its own."""
    photographs = load_photographs()
    whole = photographs[int(rng.integers(len(photographs)))]
    share = np.array(shape) / max(shape) * rng.uniform(SMALLEST_CROP, 1) * len(whole)
    height, width = (max(2, int(side)) for side in share)
    y, x = (int(rng.integers(len(whole) - side + 1)) for side in (height, width))
    part = whole[y : y + height, x : x + width]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    canvas = cv2.resize(np.ascontiguousarray(part), shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    tint = rng.uniform(0.7, 1.15, 3 if rng.random() < 0.5 else 1)
    return np.clip(canvas * tint + rng.uniform(-25, 25), 0, 255).astype(np.float32)
