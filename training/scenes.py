"""Scenes with known objects: drawn sprites on varied backgrounds, the world of the bundled model.

`python -m training.scenes --output DIR --count 100 --seed 1` writes pictures and `truth.json`.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Canvas = NDArray[np.float32]
Sprites = Mapping[str, Sequence[Pixels]]
Rectangle = tuple[int, int, int, int]

SPRITE_FOLDER = Path(__file__).parent / "sprites"
LABELS = tuple(sorted(path.stem for path in SPRITE_FOLDER.glob("*.png")))
ANGLES = tuple(range(-12, 13, 3))
VISIBLE_ALPHA = 60
MOST_OVERLAP = 0.12
ATTEMPTS = 25
PATIENT_ATTEMPTS = 8


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene: its label and its box (x1, y1, x2, y2) in pixels."""

    label: str
    box: Rectangle


@dataclass(frozen=True)
class Scene:
    """A square picture, uint8 (S, S, 3) RGB, and what is in it, by label and then from left to right."""

    pixels: Pixels
    objects: tuple[SceneObject, ...]

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(one.label for one in self.objects))


@dataclass(frozen=True)
class World:
    """What scenes may have.

    Attributes:
        side: of the picture, pixels.
        least, most: objects.
        smallest, largest: longer side of an object, as a share of the picture's.
        stretch: of objects in width, as if a picture of this aspect had been squashed to a square: √(height / width).
    """

    side: int = 192
    least: int = 0
    most: int = 12
    smallest: float = 0.11
    largest: float = 0.30
    stretch: float = 1.0


@cache
def load_sprites() -> Sprites:
    """The drawings of each label, turned and mirrored: uint8 (h, w, 4), cropped, colours multiplied by alpha."""
    return {label: variants_of(SPRITE_FOLDER / f"{label}.png") for label in LABELS}


def variants_of(path: Path) -> list[Pixels]:
    """A drawing as it is and mirrored, each at all angles."""
    drawing = Image.open(path)
    variants = []
    for facing in (drawing, drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        for angle in ANGLES:
            turned = np.array(facing.rotate(angle, Image.Resampling.BICUBIC), np.float32)
            turned[..., :3] *= turned[..., 3:] / 255
            variants.append(cropped(turned.round().clip(0, 255).astype(np.uint8)))
    return variants


def cropped(sprite: Pixels) -> Pixels:
    """The smallest part of a sprite that has all that is visible."""
    rows, columns = np.where(sprite[..., 3] > VISIBLE_ALPHA)
    return np.ascontiguousarray(sprite[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])


def draw_scene(rng: Generator, world: World, objects: int | None = None) -> Scene:
    """Draws a scene of `objects` objects, or of a number that the world allows; fewer where there is no room."""
    canvas = draw_background(rng, world.side)
    number = int(rng.integers(world.least, world.most + 1)) if objects is None else objects
    labels: Sequence[str] = LABELS
    if rng.random() < 0.6:  # most pictures show few kinds of things
        labels = [LABELS[i] for i in rng.choice(len(LABELS), int(rng.integers(1, 5)), replace=False)]
    placed: list[SceneObject] = []
    for _ in range(number):
        label = labels[int(rng.integers(0, len(labels)))]
        variants = load_sprites()[label]
        sprite = variants[int(rng.integers(0, len(variants)))]
        box = find_place(rng, world, sprite, [one.box for one in placed])
        if box is not None:
            paste(rng, canvas, sprite, box)
            placed.append(SceneObject(label, box))
    placed.sort(key=lambda one: (one.label, *one.box[:2]))
    return Scene(finish(rng, canvas), tuple(placed))


def find_place(rng: Generator, world: World, sprite: Pixels, taken: Sequence[Rectangle]) -> Rectangle | None:
    """A box for a sprite that hardly covers the boxes already taken, or None; after some attempts small ones only."""
    height, width = sprite.shape[:2]
    for attempt in range(ATTEMPTS):
        size = rng.uniform(world.smallest, world.largest) * world.side
        if attempt > PATIENT_ATTEMPTS:
            size = world.smallest * world.side * rng.uniform(1.0, 1.3)
        scale = size / max(height, width)
        aspect = world.stretch * np.exp(rng.uniform(-0.13, 0.13))
        w, h = max(6, round(width * scale * aspect)), max(6, round(height * scale / aspect))
        if w >= world.side - 1 or h >= world.side - 1:
            continue
        x, y = int(rng.integers(0, world.side - w + 1)), int(rng.integers(0, world.side - h + 1))
        box = (x, y, x + w, y + h)
        if all(overlap(box, other) <= MOST_OVERLAP for other in taken):
            return box
    return None


def overlap(a: Rectangle, b: Rectangle) -> float:
    """The common area of two boxes as a share of the smaller one's."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def paste(rng: Generator, canvas: Canvas, sprite: Pixels, box: Rectangle) -> None:
    """Draws a sprite into its box, in a light of its own."""
    x1, y1, x2, y2 = box
    drawn = cv2.resize(sprite, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA).astype(np.float32)
    alpha = drawn[..., 3:] / 255
    colours = drawn[..., :3] * rng.uniform(0.72, 1.0)
    if rng.random() < 0.4:
        colours = colours + alpha * rng.uniform(0, 40)
    part = canvas[y1:y2, x1:x2]
    part *= 1 - alpha
    part += colours


def finish(rng: Generator, canvas: Canvas) -> Pixels:
    """Contrast, noise and blur of a camera, each on some pictures."""
    taken: NDArray[Any] = canvas
    if rng.random() < 0.5:
        taken = (taken - 128) * rng.uniform(0.8, 1.1) + 128 + rng.uniform(-15, 15)
    if rng.random() < 0.3:
        taken = taken + rng.standard_normal((*taken.shape[:2], 1)) * rng.uniform(1, 6)
    if rng.random() < 0.15:
        taken = cv2.GaussianBlur(taken, (0, 0), float(rng.uniform(0.3, 0.7) * len(taken) / 192))
    return np.asarray(np.clip(taken, 0, 255), np.uint8)


def draw_background(rng: Generator, side: int) -> Canvas:
    """One of six kinds of ground: plain, gradient, grain, blobs (twice as often), or ground and sky."""
    kind = rng.integers(0, 6)
    colour = rng.uniform(0, 255, 3)
    if rng.random() < 0.4:  # pale, as photographs of rooms and streets are
        colour = 255 - (255 - colour) * 0.35
    draw = (plain, gradient, grain, blobs, blobs, ground_and_sky)[kind]
    return np.clip(draw(rng, side, colour), 0, 255).astype(np.float32)


def plain(rng: Generator, side: int, colour: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.broadcast_to(colour, (side, side, 3))


def gradient(rng: Generator, side: int, colour: NDArray[np.float64]) -> NDArray[np.float64]:
    other = rng.uniform(0, 255, 3)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    share = ((x * np.cos(angle) + y * np.sin(angle)) / 1.42 + 0.5)[..., None]
    return np.asarray(colour * (1 - share) + other * share)


def grain(rng: Generator, side: int, colour: NDArray[np.float64]) -> NDArray[np.float64]:
    cells = int(rng.choice([side, side // 2, side // 4]))
    noise = rng.standard_normal((cells, cells, 3 if rng.random() < 0.5 else 1)) * rng.uniform(4, 28)
    noise = (np.zeros((cells, cells, 3)) + noise).astype(np.float32)
    return np.asarray(colour + cv2.resize(noise, (side, side), interpolation=cv2.INTER_LINEAR))


def blobs(rng: Generator, side: int, colour: NDArray[np.float64]) -> NDArray[np.float64]:
    cells = int(rng.integers(3, 9))
    spots = colour + rng.uniform(-1, 1, (cells, cells, 3)) * rng.uniform(20, 110)
    return np.asarray(cv2.resize(spots.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC))


def ground_and_sky(rng: Generator, side: int, colour: NDArray[np.float64]) -> NDArray[np.float64]:
    ground = rng.uniform(0, 255, 3)
    horizon = int(rng.uniform(0.3, 0.7) * side)
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:horizon], canvas[horizon:] = colour, ground
    blurred = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.5, 6)))
    return np.asarray(blurred + rng.standard_normal((side, side, 1)) * rng.uniform(0, 6))


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for pictures and truth.json.")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="Scenes to draw.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other seeds draw other scenes.")
@click.option("--side", type=click.IntRange(min=64), default=384, show_default=True, help="Of a picture, pixels.")
@click.option("--most", type=click.IntRange(min=0), default=8, show_default=True, help="Most objects in a scene.")
def main(output: Path, count: int, seed: int, side: int, most: int) -> None:
    """Draws scenes with known objects."""
    rng, world = np.random.default_rng(seed), World(side=side, most=most)
    output.mkdir(parents=True, exist_ok=True)
    truth = {}
    for index in range(count):
        scene = draw_scene(rng, world)
        name = f"scene{index:04d}.png"
        Image.fromarray(scene.pixels).save(output / name)
        truth[name] = {"counts": scene.counts, "objects": [asdict(one) for one in scene.objects]}
    (output / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    main()
