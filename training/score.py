"""What a checkpoint says of pictures, through transformers, and how right that is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration, PreTrainedTokenizerFast

from florence_tagger.florence.tasks import QUESTIONS
from florence_tagger.schemas import Task
from training.batches import BOX_TOKENS, token
from training.matching import claims
from training.objective import normalised
from training.scenes import LABELS, SceneObject
from training.tiny_model import END, IMAGE_TOKENS, LOCATIONS

TOGETHER = 50  # pictures
MAX_TOKENS = 120


@dataclass(frozen=True)
class Score:
    """How many scenes have exactly the right counts, a share, and F1 of the boxes at IoU 0.5."""

    exact: float
    f1: float


@torch.inference_mode()
def answer(
    model: Florence2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pictures: Tensor
) -> list[list[SceneObject]]:
    """What the model finds in pictures, uint8 (N, SIDE, SIDE, 3), greedily."""
    prompt_text = f"{'<image>' * IMAGE_TOKENS}<s>{QUESTIONS[Task.OBJECT_DETECTION]}</s>"
    ids = torch.tensor([tokenizer(prompt_text, add_special_tokens=False).input_ids])
    found = []
    for part in torch.split(pictures, TOGETHER):
        said = model.generate(
            input_ids=ids.expand(len(part), -1),
            pixel_values=normalised(part),
            max_new_tokens=MAX_TOKENS,
            num_beams=1,
            no_repeat_ngram_size=0,
            do_sample=False,
        )
        found += [read(tokenizer, tokens) for tokens in said.tolist()]
    return found


def read(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> list[SceneObject]:
    """The objects that an answer names; what has no four locations is none."""
    labels = {token(tokenizer, label): label for label in LABELS}
    first = token(tokenizer, "<loc_0>")
    items: list[SceneObject] = []
    current: list[int] = []
    for number in tokens[1:]:
        if current and first <= number < first + LOCATIONS:
            current.append(number)
            continue
        if len(current) == BOX_TOKENS:
            x1, y1, x2, y2 = ((place - first + 0.5) / LOCATIONS for place in current[1:])
            items.append(SceneObject(labels[current[0]], (x1, y1, x2, y2)))
        current = [number] if number in labels else []
        if number == END:
            break
    return items


def score(found: Sequence[Sequence[SceneObject]], there: Sequence[Sequence[SceneObject]]) -> Score:
    """How right answers are, for what is there in the same unit."""
    exact = right = named = 0
    for items, truth in zip(found, there, strict=True):
        exact += Counter(one.label for one in items) == Counter(one.label for one in truth)
        right += sum(claims(items, truth))
        named += len(items)
    return Score(exact / len(there), 2 * right / max(1, named + sum(map(len, there))))
