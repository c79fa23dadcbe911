"""What a step of training sees: pictures, the answers to questions about them, and what stands in each cell."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from florence_tagger.geometry import area
from training.scenes import LABELS, SceneObject, World, draw_scene
from training.tiny_model import END, GRID, LOCATIONS, SIDE, START

BATCH = 16
ASKED = 8  # pictures of a batch with a second question: it costs an encoder's run, and is the easier one
NOTHING = -100  # behind the end of an answer
BOX_TOKENS = 5  # a label and four locations
ABSENT = 0.3  # of the questions for one label ask for one that is not there
CURRICULUM = 0.25  # of the training, in which scenes get harder
WHOLE = World()
EASY = replace(WHOLE, most=4, smallest=0.16, greys=0.0, hidden=0.12)

# The last is large because numpy takes 3 and [3, 0] for the same seed, and small ones are what people draw scenes with.
TRAINING, CHOOSING, HELD_OUT = 1, 2, 20261127  # what seeds begin with
CROWDED, SPARSE, UNSEEN, VIDEOS, QUESTIONS, GALLERY = 1, 2, 3, 4, 5, 9  # what those of held-out scenes go on with


@dataclass(frozen=True)
class Batch:
    """B pictures and what is to be learnt of them.

    Attributes:
        pixels: uint8 (B, SIDE, SIDE, 3), RGB.
        answers: int64 (B, T), the tokens that name all objects, NOTHING behind their end.
        asked: int64 (A,), of the first A pictures the token in a second question of the label that it asks for.
        found: int64 (A, T'), the tokens of the answers to it.
        covers, centres: int64 (B, cells), 1 + the index of the label that covers the middle of a cell, or that has its
            own middle in the cell; 0 for none.
        boxes: float32 (B, cells, 4), of what covers the cell.
    """

    pixels: Tensor
    answers: Tensor
    asked: Tensor
    found: Tensor
    covers: Tensor
    centres: Tensor
    boxes: Tensor


class Batches(Dataset[Batch]):
    """The batch of each step: the same for the same seed, whenever training is stopped and gone on with."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
        self._labels = {label: token(tokenizer, label) for label in LABELS}
        self._words = {label: word(tokenizer, label) for label in LABELS}
        self._first_location = token(tokenizer, "<loc_0>")
        self._steps = steps
        self._seed = seed

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        cv2.setNumThreads(1)
        rng = np.random.default_rng([TRAINING, self._seed, step])
        world = world_at(step / self._steps)
        scenes = [draw_scene(rng, crowded(rng, world)) for _ in range(BATCH)]
        objects = [scene.relative for scene in scenes]
        asked = [ask(rng, one) for one in objects[:ASKED]]
        cells = [cell_targets(one) for one in objects]
        return Batch(
            torch.from_numpy(np.stack([model_input(scene.pixels) for scene in scenes])),
            self._padded([self._tokens(one) for one in objects]),
            torch.tensor([self._words[label] for label in asked]),
            self._padded(
                [self._tokens([o for o in one if o.label == label]) for one, label in zip(objects, asked, strict=False)]
            ),
            *(torch.from_numpy(np.stack(part)) for part in zip(*cells, strict=True)),
        )

    def _tokens(self, objects: Sequence[SceneObject]) -> list[int]:
        """`<s>label<loc>x4…</s>`, the label at every box."""
        tokens = [START]
        for item in objects:
            places = (self._first_location + min(LOCATIONS - 1, int(side * LOCATIONS)) for side in item.box)
            tokens += [self._labels[item.label], *places]
        return [*tokens, END]

    def _padded(self, answers: list[list[int]]) -> Tensor:
        longest = max(map(len, answers))
        return torch.tensor([answer + [NOTHING] * (longest - len(answer)) for answer in answers])


def token(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """The one token that a text is."""
    (number,) = tokenizer(text, add_special_tokens=False).input_ids
    return int(number)


def word(tokenizer: PreTrainedTokenizerFast, label: str) -> int:
    """The one token that a label is within a text, where a blank stands before it."""
    return token(tokenizer, f" {label}")


def world_at(progress: float) -> World:
    """From few large objects to all that there may be."""
    share = min(1.0, progress / CURRICULUM)
    if share == 1:
        return WHOLE

    def between(name: str) -> float:
        easy, whole = (float(getattr(world, name)) for world in (EASY, WHOLE))
        return easy + share * (whole - easy)

    most, smallest, hidden, greys = map(between, ("most", "smallest", "hidden", "greys"))
    return replace(WHOLE, most=round(most), smallest=smallest, hidden=hidden, greys=greys)


def crowded(rng: Generator, world: World) -> World:
    """The same world, for a third of the scenes in its upper half: many objects take more learning than few."""
    return replace(world, least=world.most // 2) if rng.random() < 1 / 3 else world


def model_input(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture squashed to the model's input as its processor does."""
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def ask(rng: Generator, objects: Sequence[SceneObject]) -> str:
    """A label to ask for, most often one that is there."""
    there = sorted({item.label for item in objects})
    absent = [label for label in LABELS if label not in there]
    choice = absent if not there or rng.random() < ABSENT else there
    return choice[int(rng.integers(len(choice)))]


def cell_targets(objects: Sequence[SceneObject]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """What covers and what is centred in each cell, and the box of what covers it; the smallest object wins."""
    covers, centres = np.zeros((2, GRID, GRID), np.int64)
    boxes = np.zeros((GRID, GRID, 4), np.float32)
    middles = (np.arange(GRID) + 0.5) / GRID
    for item in sorted(objects, key=lambda one: -area(one.box)):
        x1, y1, x2, y2 = item.box
        row, column = (min(GRID - 1, int((low + high) / 2 * GRID)) for low, high in ((y1, y2), (x1, x2)))
        inside = ((middles >= y1) & (middles <= y2))[:, None] & ((middles >= x1) & (middles <= x2))
        inside[row, column] = True
        number = LABELS.index(item.label) + 1
        covers[inside], boxes[inside], centres[row, column] = number, item.box, number
    return covers.ravel(), centres.ravel(), boxes.reshape(-1, 4)
