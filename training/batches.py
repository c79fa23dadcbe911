"""Batches of training: pictures, the target answers for two prompts, and the targets of each cell."""

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
NUM_PROMPTED = 8  # pictures of a batch with a second prompt, which is the easier one and costs a run of the encoder
IGNORE_INDEX = -100  # padding after the end of an answer
BOX_TOKENS = 5  # a label and four locations
ABSENT_SHARE = 0.3  # probability that the second prompt names an absent label
CURRICULUM = 0.25  # initial share of the training, in which scenes get harder
FINAL_WORLD = World()
EASY_WORLD = replace(FINAL_WORLD, max_objects=4, min_size=0.16, grayscale=0.0, max_overlap=0.12)

# First numbers of seeds. The last one is large because NumPy treats 3 and [3, 0] as the same seed, and users draw
# scenes with small seeds.
TRAINING, VALIDATION, HELD_OUT = 1, 2, 20261127
CROWDED, SPARSE, UNSEEN, VIDEOS, PROMPTS, GALLERY = 1, 2, 3, 4, 5, 9  # second numbers of seeds of held-out scenes


@dataclass(frozen=True)
class Batch:
    """B pictures and their targets.

    Attributes:
        pixels: uint8 (B, SIDE, SIDE, 3), RGB.
        answers: int64 (B, T), the token ids of answers with all objects, padded with IGNORE_INDEX.
        prompt_words: int64 (A,), the token id of the label in the second prompt of the first A pictures.
        prompted_answers: int64 (A, T'), the token ids of the answers to the second prompt, padded with IGNORE_INDEX.
        covers: int64 (B, cells), 1 + index of the label of the object that covers the center of a cell; 0 for none.
        centers: int64 (B, cells), 1 + index of the label of the object whose center is in a cell; 0 for none.
        boxes: float32 (B, cells, 4), the box of the object that covers a cell.
    """

    pixels: Tensor
    answers: Tensor
    prompt_words: Tensor
    prompted_answers: Tensor
    covers: Tensor
    centers: Tensor
    boxes: Tensor


class Batches(Dataset[Batch]):
    """The batch of each step, which depends only on the seed and the step, also after training is resumed."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
        self._label_ids = {label: token_id(tokenizer, label) for label in LABELS}
        self._word_ids = {label: word_id(tokenizer, label) for label in LABELS}
        self._first_location = token_id(tokenizer, "<loc_0>")
        self._steps = steps
        self._seed = seed

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        cv2.setNumThreads(1)
        rng = np.random.default_rng([TRAINING, self._seed, step])
        world = world_at(step / self._steps)
        scenes = [draw_scene(rng, perhaps_crowded(rng, world)) for _ in range(BATCH)]
        objects = [scene.relative for scene in scenes]
        labels = [choose_label(rng, items) for items in objects[:NUM_PROMPTED]]
        prompted = [
            [item for item in items if item.label == label] for items, label in zip(objects, labels, strict=False)
        ]
        targets = [cell_targets(items) for items in objects]
        return Batch(
            torch.from_numpy(np.stack([model_input(scene.pixels) for scene in scenes])),
            self._padded([self._answer(items) for items in objects]),
            torch.tensor([self._word_ids[label] for label in labels]),
            self._padded([self._answer(items) for items in prompted]),
            *(torch.from_numpy(np.stack(target)) for target in zip(*targets, strict=True)),
        )

    def _answer(self, objects: Sequence[SceneObject]) -> list[int]:
        """Return the token ids of `<s>label<loc>x4…</s>`, with the label before every box."""
        token_ids = [START]
        for item in objects:
            locations = (self._first_location + min(LOCATIONS - 1, int(side * LOCATIONS)) for side in item.box)
            token_ids += [self._label_ids[item.label], *locations]
        return [*token_ids, END]

    def _padded(self, answers: list[list[int]]) -> Tensor:
        max_length = max(map(len, answers))
        return torch.tensor([answer + [IGNORE_INDEX] * (max_length - len(answer)) for answer in answers])


def token_id(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """Return the id of a text that is a single token."""
    (single_id,) = tokenizer(text, add_special_tokens=False).input_ids
    return int(single_id)


def word_id(tokenizer: PreTrainedTokenizerFast, label: str) -> int:
    """Return the token id of a label within a text, that is, after a space."""
    return token_id(tokenizer, f" {label}")


def world_at(progress: float) -> World:
    """Return the world at a share of the training: from few large objects to the final world."""
    share = min(1.0, progress / CURRICULUM)
    if share == 1:
        return FINAL_WORLD

    def interpolate(name: str) -> float:
        easy, final = (float(getattr(world, name)) for world in (EASY_WORLD, FINAL_WORLD))
        return easy + share * (final - easy)

    return replace(
        FINAL_WORLD,
        max_objects=round(interpolate("max_objects")),
        min_size=interpolate("min_size"),
        max_overlap=interpolate("max_overlap"),
        grayscale=interpolate("grayscale"),
    )


def perhaps_crowded(rng: Generator, world: World) -> World:
    """Return the world, for a third of the scenes with at least half of its objects: these are harder to learn."""
    return replace(world, min_objects=world.max_objects // 2) if rng.random() < 1 / 3 else world


def model_input(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize a picture to the model's input size like the model's processor."""
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def choose_label(rng: Generator, objects: Sequence[SceneObject]) -> str:
    """Return a label for the second prompt; it is usually present in the scene."""
    present = sorted({item.label for item in objects})
    absent = [label for label in LABELS if label not in present]
    choices = absent if not present or rng.random() < ABSENT_SHARE else present
    return choices[int(rng.integers(len(choices)))]


def cell_targets(objects: Sequence[SceneObject]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return `covers`, `centers` and `boxes` of a `Batch` for one picture; smaller objects take precedence."""
    covers, centers = np.zeros((2, GRID, GRID), np.int64)
    boxes = np.zeros((GRID, GRID, 4), np.float32)
    cell_centers = (np.arange(GRID) + 0.5) / GRID
    for item in sorted(objects, key=lambda item: -area(item.box)):
        x1, y1, x2, y2 = item.box
        row, column = (min(GRID - 1, int((low + high) / 2 * GRID)) for low, high in ((y1, y2), (x1, x2)))
        rows, columns = (cell_centers >= y1) & (cell_centers <= y2), (cell_centers >= x1) & (cell_centers <= x2)
        inside = rows[:, None] & columns
        inside[row, column] = True
        target = LABELS.index(item.label) + 1
        covers[inside], boxes[inside], centers[row, column] = target, item.box, target
    return covers.ravel(), centers.ravel(), boxes.reshape(-1, 4)
