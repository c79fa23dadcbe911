"""What the tables of docs/media.md are made of: scenes with known truth, and kinds of files to store them in."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from training.scenes import Scene, World, draw_scene

SIDE = 384
PLAIN = World(  # so easy that it is counted right whatever a kind of file does to it
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
    """A kind of file.

    Attributes:
        make: its bytes.
        counts: what is in it; None where it can't be treated.
        reason: part of the reason why not.
        incomplete: it is damaged, and counted by what there is.
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
        """Its row of the table."""
        outcome = f"reason: “{self.reason}”" if self.counts is None else "counted"
        return f"| {self.format} | {self.name} | {outcome}{', marked incomplete' if self.incomplete else ''} |"


@cache
def scene(seed: int, objects: int) -> Scene:
    """A scene that the model counts right in colour, in grey and in dithered black and white."""
    return draw_scene(np.random.default_rng(seed), replace(PLAIN, side=SIDE), objects)


STREET = scene(11, 5)  # two chairs, an airplane, a backpack, a laptop
QUEUE = scene(19, 6)  # three backpacks, three scissors
YARD = scene(27, 3)  # three clocks
PARK = scene(20, 5)  # two bananas, a backpack, a car, a cup


def added(*scenes: Scene) -> dict[str, int]:
    """The sum of the counts of several scenes."""
    labels = sorted({label for one in scenes for label in one.counts})
    return {label: sum(one.counts.get(label, 0) for one in scenes) for label in labels}


def peak(*scenes: Scene) -> dict[str, int]:
    """The most of each label in any of several scenes."""
    labels = sorted({label for one in scenes for label in one.counts})
    return {label: max(one.counts.get(label, 0) for one in scenes) for label in labels}


def picture(mode: str = "RGB", one: Scene = STREET, enlarged: int = 1) -> Image.Image:
    """A scene as a picture of a mode."""
    drawn = Image.fromarray(one.pixels)
    return drawn.resize((SIDE * enlarged, SIDE * enlarged), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
