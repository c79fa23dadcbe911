"""Grounds of scenes: plain, patterned, and photographs; canvases are float32 (H, W, 3), from 0 to 255."""

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Canvas = NDArray[np.float32]
Color = NDArray[np.float64]
Unclipped = NDArray[Any]  # (H, W, 3), values may be below 0 and above 255
Shape = tuple[int, int]  # height, width

TEXTURE_FOLDER = Path(__file__).parent / "textures"
MIN_CROP = 0.35  # as a share of a photograph's side


def draw_ground(rng: Generator, shape: Shape, photographs: float) -> Canvas:
    """Draw a ground: a photograph with probability `photographs`, else a pattern; blobs are twice as likely."""
    if rng.random() < photographs:
        return photograph(rng, shape)
    kind = rng.integers(0, 6)
    color = rng.uniform(0, 255, 3)
    if rng.random() < 0.4:  # pale, like photographs of rooms and streets
        color = 255 - (255 - color) * 0.35
    draw = (plain, gradient, grain, blobs, blobs, ground_and_sky)[kind]
    return np.clip(draw(rng, shape, color), 0, 255).astype(np.float32)


def plain(_: Generator, shape: Shape, color: Color) -> Unclipped:
    """Draw a ground of one color."""
    return np.broadcast_to(color, (*shape, 3))


def gradient(rng: Generator, shape: Shape, color: Color) -> Unclipped:
    """Draw a linear gradient to a random color in a random direction."""
    end_color = rng.uniform(0, 255, 3)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (
        axis.astype(np.float32) / size - 0.5 for axis, size in zip(np.mgrid[: shape[0], : shape[1]], shape, strict=True)
    )
    share = ((x * np.cos(angle) + y * np.sin(angle)) / 1.42 + 0.5)[..., None]
    return np.asarray(color * (1 - share) + end_color * share)


def grain(rng: Generator, shape: Shape, color: Color) -> Unclipped:
    """Draw gray or colored noise on one color."""
    coarseness = int(rng.choice([1, 2, 4]))
    cells = (shape[0] // coarseness, shape[1] // coarseness)
    noise = rng.standard_normal((*cells, 3 if rng.random() < 0.5 else 1)) * rng.uniform(4, 28)
    noise = (np.zeros((*cells, 3)) + noise).astype(np.float32)
    return np.asarray(color + cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_LINEAR))


def blobs(rng: Generator, shape: Shape, color: Color) -> Unclipped:
    """Draw soft spots in variations of a color."""
    cells = int(rng.integers(3, 9))
    spots = color + rng.uniform(-1, 1, (cells, cells, 3)) * rng.uniform(20, 110)
    return np.asarray(cv2.resize(spots.astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC))


def ground_and_sky(rng: Generator, shape: Shape, color: Color) -> Unclipped:
    """Draw a sky over a ground of a random color, with a blurred horizon and noise."""
    ground = rng.uniform(0, 255, 3)
    horizon = int(rng.uniform(0.3, 0.7) * shape[0])
    canvas = np.empty((*shape, 3), np.float32)
    canvas[:horizon], canvas[horizon:] = color, ground
    blurred = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.5, 6)))
    return np.asarray(blurred + rng.standard_normal((*shape, 1)) * rng.uniform(0, 6))


@cache
def load_photographs() -> tuple[NDArray[np.uint8], ...]:
    """Return the photographs, uint8 (S, S, 3)."""
    return tuple(np.array(Image.open(path).convert("RGB")) for path in sorted(TEXTURE_FOLDER.glob("*.jpg")))


def photograph(rng: Generator, shape: Shape) -> Canvas:
    """Return a random part of a photograph, possibly mirrored, with random lighting."""
    photographs = load_photographs()
    source = photographs[int(rng.integers(len(photographs)))]
    share = np.array(shape) / max(shape) * rng.uniform(MIN_CROP, 1) * len(source)
    height, width = (max(2, int(side)) for side in share)
    y, x = (int(rng.integers(len(source) - side + 1)) for side in (height, width))
    part = source[y : y + height, x : x + width]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    canvas = cv2.resize(np.ascontiguousarray(part), shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    tint = rng.uniform(0.7, 1.15, 3 if rng.random() < 0.5 else 1)
    return np.clip(canvas * tint + rng.uniform(-25, 25), 0, 255).astype(np.float32)
