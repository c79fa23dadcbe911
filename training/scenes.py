"""Scenes with known objects, on which the bundled model is trained: drawn sprites on varied grounds.

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
from training.matching import overlap_share
from training.options import SEED, Command, folder_for

Pixels = NDArray[np.uint8]
Sprites = Mapping[str, Sequence[Pixels]]
Rectangle = tuple[int, int, int, int]

SPRITE_FOLDER = Path(__file__).parent / "sprites"
LABELS = tuple(sorted(path.stem for path in (SPRITE_FOLDER / "noto").glob("*.png")))
ANGLES = tuple(range(-12, 13, 3))
VISIBLE_ALPHA = 60
ATTEMPTS = 25
ANY_SIZE_ATTEMPTS = 9  # attempts at any size; the remaining ones are at small sizes
MIN_SIDE = 6  # pixels
BLUR = 0.0016, 0.0036  # range of the standard deviation, as shares of the height


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene: its label and its box (x1, y1, x2, y2), including parts that other objects hide."""

    label: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 (H, W, 3) RGB, and its objects, in pixels, by label and then from left to right."""

    pixels: Pixels
    objects: tuple[SceneObject, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of objects of each label."""
        return dict(Counter(item.label for item in self.objects))

    @property
    def truth(self) -> dict[str, Any]:
        """The scene's entry in `truth.json`."""
        return {"counts": self.counts, "objects": [asdict(item) for item in self.objects]}

    @property
    def relative(self) -> tuple[SceneObject, ...]:
        """The objects with their boxes as shares of the picture's sides."""
        height, width = self.pixels.shape[:2]
        boxes = ((item.label, item.box) for item in self.objects)
        return tuple(
            SceneObject(label, (x1 / width, y1 / height, x2 / width, y2 / height)) for label, (x1, y1, x2, y2) in boxes
        )


@dataclass(frozen=True)
class World:
    """The distribution of scenes.

    Attributes:
        side: side of square pictures in pixels; other pictures have the same number of pixels.
        min_objects: minimum number of objects.
        max_objects: maximum number of objects.
        min_size: minimum of an object's longer side, as a share of `side`, before a slight change of aspect.
        max_size: maximum of an object's longer side, likewise.
        max_aspect: maximum ratio of a picture's sides, in landscape or portrait format.
        designs: the designs of objects.
        max_overlap: maximum common area of two objects' boxes, as a share of the smaller one's area.
        photographs: probability that the ground is a photograph.
        recolored: probability that an object has other colors than its drawing.
        grayscale: probability that the picture is gray.
        artifacts: probability of JPEG artifacts.
    """

    side: int = 256
    min_objects: int = 0
    max_objects: int = 15
    min_size: float = 0.08
    max_size: float = 0.40
    max_aspect: float = 16 / 9
    designs: tuple[str, ...] = ("noto", "twemoji", "fluent")
    max_overlap: float = 0.25
    photographs: float = 0.35
    recolored: float = 0.15
    grayscale: float = 0.08
    artifacts: float = 0.3


UNSEEN_DESIGN = "openmoji"  # never used in training


@cache
def load_sprites(design: str) -> Sprites:
    """Return the drawings of each label, rotated and mirrored: uint8 (h, w, 4), cropped, with premultiplied alpha."""
    return {path.stem: load_variants(path) for path in sorted((SPRITE_FOLDER / design).glob("*.png"))}


def load_variants(path: Path) -> list[Pixels]:
    """Return a drawing and its mirror image, each at all angles."""
    drawing = Image.open(path).convert("RGBA")
    variants = []
    for facing in (drawing, drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        for angle in ANGLES:
            rotated = np.array(facing.rotate(angle, Image.Resampling.BICUBIC), np.float32)
            rotated[..., :3] *= rotated[..., 3:] / 255
            variants.append(crop(rotated.round().clip(0, 255).astype(np.uint8)))
    return variants


def crop(sprite: Pixels) -> Pixels:
    """Return the smallest part of a sprite that contains all visible pixels."""
    rows, columns = np.where(sprite[..., 3] > VISIBLE_ALPHA)
    return np.ascontiguousarray(sprite[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])


def draw_scene(rng: Generator, world: World, objects: int | None = None) -> Scene:
    """Draw a scene of `objects` objects, by default a random number within the world's limits; fewer if space ends."""
    canvas = draw_ground(rng, draw_shape(rng, world), world.photographs)
    num_objects = int(rng.integers(world.min_objects, world.max_objects + 1)) if objects is None else objects
    labels: Sequence[str] = LABELS
    if rng.random() < 0.6:  # most pictures show few kinds of objects
        labels = [labels[i] for i in rng.choice(len(labels), int(rng.integers(1, 5)), replace=False)]
    items: list[SceneObject] = []
    for _ in range(num_objects):
        label, sprite = choose_sprite(rng, world, labels)
        box = choose_box(rng, world, canvas, sprite, [item.box for item in items])
        if box is not None:
            paste(rng, canvas, sprite, box, world.recolored)
            items.append(SceneObject(label, box))
    return Scene(apply_camera(rng, canvas, world), sort_objects(items))


def choose_sprite(rng: Generator, world: World, labels: Sequence[str]) -> tuple[str, Pixels]:
    """Return a random label and a drawing of it, uint8 (h, w, 4)."""
    label = labels[int(rng.integers(len(labels)))]
    variants = load_sprites(world.designs[int(rng.integers(len(world.designs)))])[label]
    return label, variants[int(rng.integers(len(variants)))]


def sort_objects(objects: Iterable[SceneObject]) -> tuple[SceneObject, ...]:
    """Sort objects by label and then from left to right, in the order of the model's answers."""
    return tuple(sorted(objects, key=lambda item: (item.label, *item.box[:2])))


def draw_shape(rng: Generator, world: World) -> tuple[int, int]:
    """Return a random height and width of a picture."""
    if world.max_aspect == 1:
        return world.side, world.side
    stretch = np.sqrt(world.max_aspect) ** rng.uniform(-1, 1)
    return round(world.side * stretch), round(world.side / stretch)


def choose_box(
    rng: Generator, world: World, canvas: Canvas, sprite: Pixels, occupied: Sequence[Box]
) -> Rectangle | None:
    """Return a box for a sprite that overlaps others by at most `max_overlap`; None if all attempts fail.

    After `ANY_SIZE_ATTEMPTS` only small boxes are tried.
    """
    height, width = sprite.shape[:2]
    rows, columns = canvas.shape[:2]
    for attempt in range(ATTEMPTS):
        size = rng.uniform(world.min_size, world.max_size) * world.side
        if attempt >= ANY_SIZE_ATTEMPTS:
            size = world.min_size * world.side * rng.uniform(1.0, 1.3)
        scale = size / max(height, width)
        aspect = np.exp(rng.uniform(-0.13, 0.13))
        w, h = max(MIN_SIDE, round(width * scale * aspect)), max(MIN_SIDE, round(height * scale / aspect))
        if w >= columns - 1 or h >= rows - 1:
            continue
        x, y = int(rng.integers(0, columns - w + 1)), int(rng.integers(0, rows - h + 1))
        box = (x, y, x + w, y + h)
        if all(overlap_share(box, other) <= world.max_overlap for other in occupied):
            return box
    return None


def paste(rng: Generator, canvas: Canvas, sprite: Pixels, box: Rectangle, recolored: float) -> None:
    """Draw a sprite into its box with random lighting, and with probability `recolored` in other colors."""
    x1, y1, x2, y2 = box
    blend(canvas, render_sprite(rng, sprite, (x2 - x1, y2 - y1), recolored), box)


def render_sprite(rng: Generator, sprite: Pixels, size: tuple[int, int], recolored: float) -> Canvas:
    """Resize a sprite to (width, height), with random lighting and perhaps other colors: float32 (h, w, 4)."""
    drawn = cv2.resize(sprite, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    colors: NDArray[Any] = drawn[..., :3]
    if rng.random() < recolored:
        colors = colors[..., rng.permutation(3)]
    colors = colors * rng.uniform(0.72, 1.0)
    if rng.random() < 0.4:
        colors = colors + drawn[..., 3:] / 255 * rng.uniform(0, 40)
    return np.concatenate([colors, drawn[..., 3:]], axis=2, dtype=np.float32)


def blend(canvas: Canvas, drawn: Canvas, box: Rectangle) -> None:
    """Blend a sprite from `render_sprite` over its box."""
    x1, y1, x2, y2 = box
    part = canvas[y1:y2, x1:x2]
    part *= 1 - drawn[..., 3:] / 255
    part += drawn[..., :3]


def apply_camera(rng: Generator, canvas: Canvas, world: World) -> Pixels:
    """Apply a camera's contrast, noise and blur, grayscale and JPEG artifacts, each with some probability."""
    photo: NDArray[Any] = canvas
    if rng.random() < 0.5:
        photo = (photo - 128) * rng.uniform(0.8, 1.1) + 128 + rng.uniform(-15, 15)
    if rng.random() < 0.3:
        photo = photo + rng.standard_normal((*photo.shape[:2], 1)) * rng.uniform(1, 6)
    if rng.random() < 0.15:
        photo = cv2.GaussianBlur(photo, (0, 0), float(rng.uniform(*BLUR) * len(photo)))
    if rng.random() < world.grayscale:
        photo = np.repeat(photo @ np.array([[0.299], [0.587], [0.114]]), 3, axis=2)
    pixels = np.asarray(np.clip(photo, 0, 255), np.uint8)
    if rng.random() < world.artifacts:
        _, file = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 96))])
        pixels = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR_RGB), np.uint8)
    return pixels


@click.command(cls=Command)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for pictures and truth.json.")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="Scenes to draw.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Other seeds draw other scenes.")
@click.option("--side", type=click.IntRange(min=64), default=384, show_default=True, help="Of a square one, pixels.")
@click.option(
    "--most", "max_objects", type=click.IntRange(min=0), default=15, show_default=True, help="Most objects in a scene."
)
def main(output: Path, count: int, seed: int, side: int, max_objects: int) -> None:
    """Draws scenes with known objects."""
    rng, world = np.random.default_rng(seed), World(side=side, max_objects=max_objects)
    folder, truth = folder_for(output, "scene{}.png"), {}
    for index in range(count):
        scene = draw_scene(rng, world)
        name = f"scene{index:04d}.png"
        Image.fromarray(scene.pixels).save(folder / name)
        truth[name] = scene.truth
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    main()
