"""Variants of files for the tables of docs/media.md, and the scenes with known objects that are stored in them."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from training.scenes import Scene, World, draw_scene

SIDE = 384
PLAIN = World(  # easy enough to be counted right in files of any kind
    min_size=0.11,
    max_size=0.30,
    max_aspect=1.0,
    max_overlap=0.12,
    photographs=0.0,
    recolored=0.0,
    grayscale=0.0,
    artifacts=0.0,
)


@dataclass(frozen=True)
class Variant:
    """A variant of a file format.

    Attributes:
        format: name of the format.
        name: name of the variant.
        make: returns the content of a file.
        counts: expected counts; None if the file is refused.
        reason: part of the reason of the refusal.
        incomplete: the file is damaged, and the decodable part is counted.
    """

    format: str
    name: str
    make: Callable[[], bytes]
    counts: dict[str, int] | None = None
    reason: str = ""
    incomplete: bool = False

    def __str__(self) -> str:
        return f"{self.format}: {self.name}"

    @property
    def row(self) -> str:
        """The variant's row of the table."""
        outcome = f"reason: “{self.reason}”" if self.counts is None else "counted"
        return f"| {self.format} | {self.name} | {outcome}{', marked incomplete' if self.incomplete else ''} |"


@cache
def draw_plain_scene(seed: int, objects: int) -> Scene:
    """Draw a scene; with the seeds below the model counts it right in color, gray and dithered black and white."""
    return draw_scene(np.random.default_rng(seed), replace(PLAIN, side=SIDE), objects)


STREET = draw_plain_scene(11, 5)  # two chairs, an airplane, a backpack, a laptop
QUEUE = draw_plain_scene(19, 6)  # three backpacks, three scissors
YARD = draw_plain_scene(27, 3)  # three clocks
PARK = draw_plain_scene(20, 5)  # two bananas, a backpack, a car, a cup


def added(*scenes: Scene) -> dict[str, int]:
    """Return the sums of the counts of several scenes."""
    labels = sorted({label for scene in scenes for label in scene.counts})
    return {label: sum(scene.counts.get(label, 0) for scene in scenes) for label in labels}


def peak(*scenes: Scene) -> dict[str, int]:
    """Return the largest count of each label in any of several scenes."""
    labels = sorted({label for scene in scenes for label in scene.counts})
    return {label: max(scene.counts.get(label, 0) for scene in scenes) for label in labels}


def picture(mode: str = "RGB", scene: Scene = STREET, enlarged: int = 1) -> Image.Image:
    """Return a scene as a picture of a Pillow mode, `enlarged` times as large."""
    return (
        Image.fromarray(scene.pixels).resize((SIDE * enlarged, SIDE * enlarged), Image.Resampling.BICUBIC).convert(mode)
    )


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
