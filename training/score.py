"""Detections of a checkpoint through transformers, and their accuracy."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration, PreTrainedTokenizerFast

from florence_tagger.florence.tasks import PROMPT_TEMPLATES
from florence_tagger.schemas import Task
from training.batches import BOX_TOKENS, token_id
from training.matching import match_detections
from training.objective import normalize_pixels
from training.scenes import LABELS, SceneObject
from training.tiny_model import END, IMAGE_TOKENS, LOCATIONS

CHUNK = 50  # pictures
MAX_NEW_TOKENS = 120


@dataclass(frozen=True)
class Score:
    """The share of scenes with exactly the right counts, and F1 of the boxes at IoU 0.5."""

    exact: float
    f1: float


@torch.inference_mode()
def detect_objects(
    model: Florence2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pictures: Tensor
) -> list[list[SceneObject]]:
    """Return the objects that the model detects in pictures, uint8 (N, SIDE, SIDE, 3), with greedy decoding."""
    prompt_text = f"{'<image>' * IMAGE_TOKENS}<s>{PROMPT_TEMPLATES[Task.OBJECT_DETECTION]}</s>"
    prompt_ids = torch.tensor([tokenizer(prompt_text, add_special_tokens=False).input_ids])
    detections = []
    for chunk in torch.split(pictures, CHUNK):
        answers = model.generate(
            input_ids=prompt_ids.expand(len(chunk), -1),
            pixel_values=normalize_pixels(chunk),
            max_new_tokens=MAX_NEW_TOKENS,
            num_beams=1,
            no_repeat_ngram_size=0,
            do_sample=False,
        )
        detections += [parse_objects(tokenizer, token_ids) for token_ids in answers.tolist()]
    return detections


def parse_objects(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int]) -> list[SceneObject]:
    """Return the objects in an answer; labels without exactly four locations are skipped."""
    labels = {token_id(tokenizer, label): label for label in LABELS}
    first_location = token_id(tokenizer, "<loc_0>")
    items: list[SceneObject] = []
    current: list[int] = []
    for next_id in token_ids[1:]:
        if current and first_location <= next_id < first_location + LOCATIONS:
            current.append(next_id)
            continue
        if len(current) == BOX_TOKENS:
            x1, y1, x2, y2 = ((location - first_location + 0.5) / LOCATIONS for location in current[1:])
            items.append(SceneObject(labels[current[0]], (x1, y1, x2, y2)))
        current = [next_id] if next_id in labels else []
        if next_id == END:
            break
    return items


def score(detections: Sequence[Sequence[SceneObject]], truth: Sequence[Sequence[SceneObject]]) -> Score:
    """Return the score of the detections in several scenes; boxes of both arguments have the same unit."""
    num_exact = num_matched = num_detections = 0
    for detected, expected in zip(detections, truth, strict=True):
        num_exact += Counter(item.label for item in detected) == Counter(item.label for item in expected)
        num_matched += sum(match_detections(detected, expected))
        num_detections += len(detected)
    return Score(num_exact / len(truth), 2 * num_matched / max(1, num_detections + sum(map(len, truth))))
