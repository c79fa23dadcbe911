"""Clips of a known number of objects that enter, cross, hide for a while and leave.

Each object is visible for at least `VISIBLE_S` in all, and hidden for at most `MAX_HIDDEN_S` at a stretch in between.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.grounds import Canvas, draw_ground
from training.scenes import (
    LABELS,
    Pixels,
    Rectangle,
    World,
    apply_camera,
    blend,
    choose_sprite,
    draw_shape,
    render_sprite,
)

PASSING = World(min_size=0.12, max_size=0.26, max_aspect=4 / 3)
MIN_OBJECTS, MAX_OBJECTS = 4, 12  # per clip
ATTEMPTS = 60
VISIBLE_S, MAX_HIDDEN_S = 1.0, 1.0
MIN_APPEARANCE_S = 0.25  # for which an object is visible each time it appears
MIN_VISIBLE_SHARE = 0.75  # of an object's own pixels, in a frame in which it counts as visible
OPAQUE = 128  # alpha
NUM_PILLARS = (0, 0, 1, 2)  # per clip, each with the same probability
PILLAR_WIDTHS = 0.10, 0.22  # as shares of the picture's width

Point = tuple[int, int]
Pillars = list[slice]  # columns


@dataclass(frozen=True)
class Passer:
    """A moving object.

    Attributes:
        label: of the object.
        sprite: rendered, (h, w, 4).
        positions: of its top left corner in each frame, possibly outside the picture.
    """

    label: str
    sprite: Canvas
    positions: tuple[Point, ...]


@dataclass(frozen=True)
class Clip:
    """Frames, uint8 (H, W, 3) RGB, and the number of different objects with each label in all of them."""

    frames: tuple[Pixels, ...]
    counts: dict[str, int]


def draw_passing(
    rng: Generator,
    frames: int,
    fps: float,
    speeds: tuple[float, float] = (0.5, 4.0),
    objects: tuple[int, int] = (MIN_OBJECTS, MAX_OBJECTS),
    world: World = PASSING,
    visible_s: float = VISIBLE_S,
) -> Clip:
    """Draw a clip of moving objects, with even sides, as MPEG-4 requires.

    Args:
        rng: source of all random choices.
        frames: number of frames.
        fps: frames per second.
        speeds: minimum and maximum speed of an object, in its longer sides per second.
        objects: minimum and maximum number of objects; fewer if no attempt meets the limits of visibility.
        world: the distribution of objects and grounds.
        visible_s: minimum time for which each object is visible, in all.
    """
    height, width = (side - side % 2 for side in draw_shape(rng, world))
    ground = draw_ground(rng, (height, width), world.photographs)
    pillars = choose_pillars(rng, width)
    labels: Sequence[str] = LABELS
    if rng.random() < 0.6:  # many objects that look alike
        labels = [labels[i] for i in rng.choice(len(labels), int(rng.integers(1, 5)), replace=False)]
    passers: list[Passer] = []
    for _ in range(int(rng.integers(objects[0], objects[1] + 1))):
        for _ in range(ATTEMPTS):
            candidates = [*passers, draw_passer(rng, world, labels, (height, width), frames, fps, speeds)]
            shares = visible_shares(candidates, pillars, (height, width), frames)
            if all(is_countable(visible, fps, visible_s) for visible in shares):
                passers = candidates
                break
    camera = int(rng.integers(2**32))  # the same for all frames
    drawn = (draw_frame(np.random.default_rng(camera), world, ground, passers, pillars, i) for i in range(frames))
    return Clip(tuple(drawn), dict(Counter(passer.label for passer in passers)))


def choose_pillars(rng: Generator, width: int) -> Pillars:
    """Return upright bands that hide all objects; they look like the ground, so that the model does not count them."""
    pillars = []
    for _ in range(NUM_PILLARS[int(rng.integers(len(NUM_PILLARS)))]):
        pillar_width = round(rng.uniform(*PILLAR_WIDTHS) * width)
        x = int(rng.integers(width - pillar_width + 1))
        pillars.append(slice(x, x + pillar_width))
    return pillars


def draw_passer(
    rng: Generator,
    world: World,
    labels: Sequence[str],
    shape: tuple[int, int],
    frames: int,
    fps: float,
    speeds: tuple[float, float],
) -> Passer:
    """Draw an object on a straight line at constant speed, through a random point at a random time of the clip."""
    label, sprite = choose_sprite(rng, world, labels)
    scale = rng.uniform(world.min_size, world.max_size) * world.side / max(sprite.shape[:2])
    size = np.maximum(1, np.round(np.array(sprite.shape[1::-1]) * scale)).astype(int)
    angle = rng.choice([0, np.pi]) + rng.normal(0, 0.4)
    step = rng.uniform(*speeds) * size.max() / fps * np.array([np.cos(angle), np.sin(angle)])
    point = rng.uniform(0, 1, 2) * (np.array(shape[::-1]) - size)
    frame_at_point = rng.uniform(0, frames)
    positions = np.round(point + (np.arange(frames)[:, None] - frame_at_point) * step).astype(int)
    rendered = render_sprite(rng, sprite, (int(size[0]), int(size[1])), world.recolored)
    return Passer(label, rendered, tuple((int(x), int(y)) for x, y in positions))


def visible_shares(
    passers: Sequence[Passer], pillars: Pillars, shape: tuple[int, int], frames: int
) -> NDArray[np.float64]:
    """Return the visible share of each object's own pixels in each frame: float64 (objects, frames)."""
    shares = np.zeros((len(passers), frames))
    for frame_index in range(frames):
        front = np.full(shape, -1)
        for index, passer in enumerate(passers):
            clipped = clip_to_picture(passer, frame_index, shape)
            if clipped is not None:
                (x1, y1, x2, y2), part = clipped
                front[y1:y2, x1:x2][part[..., 3] > OPAQUE] = index
        for pillar in pillars:
            front[:, pillar] = -1
        for index, passer in enumerate(passers):
            shares[index, frame_index] = (front == index).sum() / max((passer.sprite[..., 3] > OPAQUE).sum(), 1)
    return shares


def is_countable(shares: NDArray[np.float64], fps: float, visible_s: float) -> bool:
    """Return whether an object is visible for long enough, in all and each time it appears, and not hidden too long.

    Args:
        shares: visible share in each frame, (frames,).
        fps: frames per second.
        visible_s: minimum time for which it is visible.
    """
    visible = np.flatnonzero(shares >= MIN_VISIBLE_SHARE)
    partly_visible = np.flatnonzero(shares > 0)
    appearances = np.split(partly_visible, np.flatnonzero(np.diff(partly_visible) > 1) + 1)
    min_frames = min(MIN_APPEARANCE_S, visible_s) * fps
    return (
        len(visible) >= max(visible_s * fps, 1)
        and bool(np.all(np.diff(visible) <= MAX_HIDDEN_S * fps))
        and all((shares[indices] >= MIN_VISIBLE_SHARE).sum() >= min_frames for indices in appearances)
    )


def clip_to_picture(passer: Passer, frame_index: int, shape: tuple[int, int]) -> tuple[Rectangle, Canvas] | None:
    """Return the box and the pixels of the part of an object that is inside the picture; None if it is outside."""
    (x, y), (height, width) = passer.positions[frame_index], passer.sprite.shape[:2]
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + width, shape[1]), min(y + height, shape[0])
    if y1 >= y2 or x1 >= x2:
        return None
    return (x1, y1, x2, y2), passer.sprite[y1 - y : y2 - y, x1 - x : x2 - x]


def draw_frame(
    rng: Generator,
    world: World,
    ground: Canvas,
    passers: Sequence[Passer],
    pillars: Pillars,
    frame_index: int,
) -> Pixels:
    """Draw a frame: the ground, the objects in order, each in front of those before it, and the pillars in front."""
    canvas = ground.copy()
    for passer in passers:
        clipped = clip_to_picture(passer, frame_index, (canvas.shape[0], canvas.shape[1]))
        if clipped is not None:
            box, part = clipped
            blend(canvas, part, box)
    for pillar in pillars:
        canvas[:, pillar] = ground[:, pillar]
    return apply_camera(rng, canvas, world)
