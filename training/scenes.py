"""Scenes with known objects: drawn sprites on varied grounds, the world of the bundled model.

`python -m training.scenes --output DIR --count 100 --seed 1` writes pictures and `truth.json`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

from florence_tagger.schemas import Box
from training.grounds import Canvas, draw_ground
from training.matching import covered
from training.options import SEED, Command, folder_for

Pixels = NDArray[np.uint8]
Sprites = Mapping[str, Sequence[Pixels]]
Rectangle = tuple[int, int, int, int]

SPRITE_FOLDER = Path(__file__).parent / "sprites"
LABELS = tuple(sorted(path.stem for path in (SPRITE_FOLDER / "noto").glob("*.png")))
ANGLES = tuple(range(-12, 13, 3))
VISIBLE_ALPHA = 60
ATTEMPTS = 25
PATIENT_ATTEMPTS = 9
MIN_SIDE = 6  # pixels
BLUR = 0.0016, 0.0036  # standard deviation, shares of the height


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene: its label and its box (x1, y1, x2, y2), with what others hide of it."""

    label: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 (H, W, 3) RGB, and what is in it, in pixels, by label and then from left to right."""

    pixels: Pixels
    objects: tuple[SceneObject, ...]

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(one.label for one in self.objects))

    @property
    def truth(self) -> dict[str, Any]:
        """What is in it as `truth.json` has it."""
        return {"counts": self.counts, "objects": [asdict(one) for one in self.objects]}

    @property
    def relative(self) -> tuple[SceneObject, ...]:
        """The objects with their boxes in shares of the picture's sides."""
        height, width = self.pixels.shape[:2]
        boxes = ((one, one.box) for one in self.objects)
        return tuple(
            SceneObject(one.label, (x1 / width, y1 / height, x2 / width, y2 / height))
            for one, (x1, y1, x2, y2) in boxes
        )


@dataclass(frozen=True)
class World:
    """What scenes may have.

    Attributes:
        side: of the picture if it is square, pixels; other pictures have as many pixels.
        least, most: objects.
        smallest, largest: longer side of an object, as a share of `side`, before it is stretched a little.
        widest: the most that a picture's sides differ by, wide or upright.
        designs: of objects.
        hidden: the most that the boxes of two objects share, of the smaller one's area.
        photographs, recoloured, greys, artefacts: the shares of grounds that are photographs, of objects in other
            colours, of pictures in grey, and of pictures that have been through JPEG.
    """

    side: int = 256
    least: int = 0
    most: int = 15
    smallest: float = 0.08
    largest: float = 0.40
    widest: float = 16 / 9
    designs: tuple[str, ...] = ("noto", "twemoji", "fluent")
    hidden: float = 0.25
    photographs: float = 0.35
    recoloured: float = 0.15
    greys: float = 0.08
    artefacts: float = 0.3


UNSEEN_DESIGN = "openmoji"  # never trained on


@cache
def load_sprites(design: str) -> Sprites:
    """The drawings of each label, turned and mirrored: uint8 (h, w, 4), cropped, colours multiplied by alpha."""
    return {path.stem: variants_of(path) for path in sorted((SPRITE_FOLDER / design).glob("*.png"))}


def variants_of(path: Path) -> list[Pixels]:
    """A drawing as it is and mirrored, each at all angles."""
    drawing = Image.open(path).convert("RGBA")
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
    canvas = draw_ground(rng, draw_shape(rng, world), world.photographs)
    number = int(rng.integers(world.least, world.most + 1)) if objects is None else objects
    labels: Sequence[str] = LABELS
    if rng.random() < 0.6:  # most pictures show few kinds of things
        labels = [labels[i] for i in rng.choice(len(labels), int(rng.integers(1, 5)), replace=False)]
    placed: list[SceneObject] = []
    for _ in range(number):
        label, sprite = choose_sprite(rng, world, labels)
        box = find_place(rng, world, canvas, sprite, [one.box for one in placed])
        if box is not None:
            paste(rng, canvas, sprite, box, world.recoloured)
            placed.append(SceneObject(label, box))
    return Scene(finish(rng, canvas, world), in_order(placed))


def choose_sprite(rng: Generator, world: World, labels: Sequence[str]) -> tuple[str, Pixels]:
    """One of the labels, and a drawing of it, uint8 (h, w, 4)."""
    label = labels[int(rng.integers(len(labels)))]
    variants = load_sprites(world.designs[int(rng.integers(len(world.designs)))])[label]
    return label, variants[int(rng.integers(len(variants)))]


def in_order(objects: Iterable[SceneObject]) -> tuple[SceneObject, ...]:
    """By label and then from left to right, which is the order that the model answers in."""
    return tuple(sorted(objects, key=lambda one: (one.label, *one.box[:2])))


def draw_shape(rng: Generator, world: World) -> tuple[int, int]:
    """Height and width of a picture."""
    if world.widest == 1:
        return world.side, world.side
    stretch = np.sqrt(world.widest) ** rng.uniform(-1, 1)
    return round(world.side * stretch), round(world.side / stretch)


def find_place(rng: Generator, world: World, canvas: Canvas, sprite: Pixels, taken: Sequence[Box]) -> Rectangle | None:
    """A box for a sprite that hardly covers the boxes already taken, or None; after some attempts small ones only."""
    height, width = sprite.shape[:2]
    rows, columns = canvas.shape[:2]
    for attempt in range(ATTEMPTS):
        size = rng.uniform(world.smallest, world.largest) * world.side
        if attempt >= PATIENT_ATTEMPTS:
            size = world.smallest * world.side * rng.uniform(1.0, 1.3)
        scale = size / max(height, width)
        aspect = np.exp(rng.uniform(-0.13, 0.13))
        w, h = max(MIN_SIDE, round(width * scale * aspect)), max(MIN_SIDE, round(height * scale / aspect))
        if w >= columns - 1 or h >= rows - 1:
            continue
        x, y = int(rng.integers(0, columns - w + 1)), int(rng.integers(0, rows - h + 1))
        box = (x, y, x + w, y + h)
        if all(covered(box, other) <= world.hidden for other in taken):
            return box
    return None


def paste(rng: Generator, canvas: Canvas, sprite: Pixels, box: Rectangle, recoloured: float) -> None:
    """Draws a sprite into its box, in a light of its own, with that probability in colours of its own."""
    x1, y1, x2, y2 = box
    blend(canvas, lit(rng, sprite, (x2 - x1, y2 - y1), recoloured), box)


def lit(rng: Generator, sprite: Pixels, size: tuple[int, int], recoloured: float) -> Canvas:
    """A sprite of a width and height, float32 (h, w, 4), in a light of its own, and perhaps in other colours."""
    drawn = cv2.resize(sprite, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    colours: NDArray[Any] = drawn[..., :3]
    if rng.random() < recoloured:
        colours = colours[..., rng.permutation(3)]
    colours = colours * rng.uniform(0.72, 1.0)
    if rng.random() < 0.4:
        colours = colours + drawn[..., 3:] / 255 * rng.uniform(0, 40)
    return np.concatenate([colours, drawn[..., 3:]], axis=2, dtype=np.float32)


def blend(canvas: Canvas, drawn: Canvas, box: Rectangle) -> None:
    """Lays what `lit` gave over its box."""
    x1, y1, x2, y2 = box
    part = canvas[y1:y2, x1:x2]
    part *= 1 - drawn[..., 3:] / 255
    part += drawn[..., :3]


def finish(rng: Generator, canvas: Canvas, world: World) -> Pixels:
    """Contrast, noise and blur of a camera, grey scale and artefacts of JPEG, each on some pictures."""
    taken: NDArray[Any] = canvas
    if rng.random() < 0.5:
        taken = (taken - 128) * rng.uniform(0.8, 1.1) + 128 + rng.uniform(-15, 15)
    if rng.random() < 0.3:
        taken = taken + rng.standard_normal((*taken.shape[:2], 1)) * rng.uniform(1, 6)
    if rng.random() < 0.15:
        taken = cv2.GaussianBlur(taken, (0, 0), float(rng.uniform(*BLUR) * len(taken)))
    if rng.random() < world.greys:
        taken = np.repeat(taken @ np.array([[0.299], [0.587], [0.114]]), 3, axis=2)
    pixels = np.asarray(np.clip(taken, 0, 255), np.uint8)
    if rng.random() < world.artefacts:
        _, file = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 96))])
        pixels = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR_RGB), np.uint8)
    return pixels


@click.command(cls=Command)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for pictures and truth.json.")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="Scenes to draw.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Other seeds draw other scenes.")
@click.option("--side", type=click.IntRange(min=64), default=384, show_default=True, help="Of a square one, pixels.")
@click.option("--most", type=click.IntRange(min=0), default=15, show_default=True, help="Most objects in a scene.")
def main(output: Path, count: int, seed: int, side: int, most: int) -> None:
    """Draws scenes with known objects."""
    rng, world = np.random.default_rng(seed), World(side=side, most=most)
    folder, truth = folder_for(output, "scene{}.png"), {}
    for index in range(count):
        scene = draw_scene(rng, world)
        name = f"scene{index:04d}.png"
        Image.fromarray(scene.pixels).save(folder / name)
        truth[name] = scene.truth
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    main()
