"""Clips of things that pass, with the number of different ones known: they come in, cross, hide for a while and leave.

Each object is seen for `SEEN_S` in all, and never hidden for longer than `HIDDEN_S` between two times that it is seen.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.grounds import Canvas, draw_ground
from training.scenes import LABELS, Pixels, World, apply_camera, blend, choose_sprite, draw_shape, render_sprite

PASSING = World(min_size=0.12, max_size=0.26, max_aspect=4 / 3)
FEWEST, MOST = 4, 12  # objects of a clip
ATTEMPTS = 60
SEEN_S, HIDDEN_S = 1.0, 1.0
GLIMPSE_S = 0.25  # that an object is seen for each time that it shows
SEEN = 0.75  # of an object's own pixels, in a frame that it is seen in
OPAQUE = 128  # alpha
PILLARS = (0, 0, 1, 2)  # that a clip may have
PILLAR_WIDTHS = 0.10, 0.22  # of the picture's

Place = tuple[int, int]
Pillars = list[slice]  # columns


@dataclass(frozen=True)
class Passer:
    """An object as it is drawn, (h, w, 4), and the place of its top left corner in each frame, perhaps outside."""

    label: str
    drawn: Canvas
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Clip:
    """Frames, uint8 (H, W, 3) RGB, and how many different objects of each label pass in them."""

    frames: tuple[Pixels, ...]
    counts: dict[str, int]


def draw_passing(
    rng: Generator,
    frames: int,
    fps: float,
    speeds: tuple[float, float] = (0.5, 4.0),
    objects: tuple[int, int] = (FEWEST, MOST),
    world: World = PASSING,
    seen_s: float = SEEN_S,
) -> Clip:
    """Draw a clip of objects that move by `speeds` of their longer sides a second, each seen for `seen_s` in all."""
    height, width = (side - side % 2 for side in draw_shape(rng, world))
    ground = draw_ground(rng, (height, width), world.photographs)
    pillars = choose_pillars(rng, width)
    labels: Sequence[str] = LABELS
    if rng.random() < 0.6:  # many pass that look alike
        labels = [labels[i] for i in rng.choice(len(labels), int(rng.integers(1, 5)), replace=False)]
    passers: list[Passer] = []
    for _ in range(int(rng.integers(objects[0], objects[1] + 1))):
        for _ in range(ATTEMPTS):
            more = [*passers, draw_passer(rng, world, labels, (height, width), frames, fps, speeds)]
            if all(is_fair(seen, fps, seen_s) for seen in shares_seen(more, pillars, (height, width), frames)):
                passers = more
                break
    camera = int(rng.integers(2**32))  # one for all frames
    drawn = (draw_frame(np.random.default_rng(camera), world, ground, passers, pillars, i) for i in range(frames))
    return Clip(tuple(drawn), dict(Counter(one.label for one in passers)))


def choose_pillars(rng: Generator, width: int) -> Pillars:
    """Choose upright bands that hide everything; they look like the ground: others would be counted."""
    pillars = []
    for _ in range(PILLARS[int(rng.integers(len(PILLARS)))]):
        wide = round(rng.uniform(*PILLAR_WIDTHS) * width)
        x = int(rng.integers(width - wide + 1))
        pillars.append(slice(x, x + wide))
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
    """An object on a straight way at an even speed, through a point of the picture at some moment of the clip."""
    label, sprite = choose_sprite(rng, world, labels)
    scale = rng.uniform(world.min_size, world.max_size) * world.side / max(sprite.shape[:2])
    size = np.maximum(1, np.round(np.array(sprite.shape[1::-1]) * scale)).astype(int)
    angle = rng.choice([0, np.pi]) + rng.normal(0, 0.4)
    step = rng.uniform(*speeds) * size.max() / fps * np.array([np.cos(angle), np.sin(angle)])
    middle = rng.uniform(0, 1, 2) * (np.array(shape[::-1]) - size)
    moment = rng.uniform(0, frames)
    places = np.round(middle + (np.arange(frames)[:, None] - moment) * step).astype(int)
    drawn = render_sprite(rng, sprite, (int(size[0]), int(size[1])), world.recolored)
    return Passer(label, drawn, tuple((int(x), int(y)) for x, y in places))


def shares_seen(
    passers: Sequence[Passer], pillars: Pillars, shape: tuple[int, int], frames: int
) -> NDArray[np.float64]:
    """The share of each object's own pixels that is seen in each frame: float64 (objects, frames)."""
    shares = np.zeros((len(passers), frames))
    for index in range(frames):
        front = np.full(shape, -1)
        for number, one in enumerate(passers):
            cut = part_of(one, index, shape)
            if cut is not None:
                (y1, y2, x1, x2), part = cut
                front[y1:y2, x1:x2][part[..., 3] > OPAQUE] = number
        for pillar in pillars:
            front[:, pillar] = -1
        for number, one in enumerate(passers):
            shares[number, index] = (front == number).sum() / max((one.drawn[..., 3] > OPAQUE).sum(), 1)
    return shares


def is_fair(seen: NDArray[np.float64], fps: float, seen_s: float) -> bool:
    """Whether an object is seen for long enough, each time that it shows, and hidden for no longer than may be."""
    when = np.flatnonzero(seen >= SEEN)
    shows = np.flatnonzero(seen > 0)
    times = np.split(shows, np.flatnonzero(np.diff(shows) > 1) + 1)
    return (
        len(when) >= max(seen_s * fps, 1)
        and bool(np.all(np.diff(when) <= HIDDEN_S * fps))
        and all((seen[one] >= SEEN).sum() >= min(GLIMPSE_S, seen_s) * fps for one in times)
    )


def part_of(one: Passer, index: int, shape: tuple[int, int]) -> tuple[tuple[int, int, int, int], Canvas] | None:
    """What of an object is within the picture in a frame: rows and columns, and the part; None for nothing."""
    (x, y), (height, width) = one.places[index], one.drawn.shape[:2]
    y1, y2, x1, x2 = max(y, 0), min(y + height, shape[0]), max(x, 0), min(x + width, shape[1])
    if y1 >= y2 or x1 >= x2:
        return None
    return (y1, y2, x1, x2), one.drawn[y1 - y : y2 - y, x1 - x : x2 - x]


def draw_frame(
    rng: Generator,
    world: World,
    ground: Canvas,
    passers: Sequence[Passer],
    pillars: Pillars,
    index: int,
) -> Pixels:
    """The ground with what passes in a frame, the later before the earlier, and the pillars before all."""
    canvas = ground.copy()
    for one in passers:
        cut = part_of(one, index, (canvas.shape[0], canvas.shape[1]))
        if cut is not None:
            (y1, y2, x1, x2), part = cut
            blend(canvas, part, (x1, y1, x2, y2))
    for pillar in pillars:
        canvas[:, pillar] = ground[:, pillar]
    return apply_camera(rng, canvas, world)
