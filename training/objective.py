"""The training loss: errors of the answers to two prompts, and of two dense heads that are dropped after training."""

from dataclasses import dataclass
from math import nan

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration, PreTrainedTokenizerFast

from florence_tagger.florence.tasks import PROMPT_TEMPLATES
from florence_tagger.schemas import Task
from training.batches import BOX_TOKENS, IGNORE_INDEX, Batch, token_id, word_id
from training.scenes import LABELS
from training.tiny_model import END, IMAGE_TOKENS, LOCATIONS, MEAN, PAD, STD, WIDTH

LABEL_WEIGHT = 2.0  # of labels and end tokens, relative to locations
LEFT_WEIGHT = 1.5  # of the left side of a box, which selects the next object
FEATURES_WEIGHT, ENCODED_WEIGHT, PROMPTED_WEIGHT = 0.5, 0.25, 0.5
# Standard deviation in bins, and share of answers with noise: earlier tokens of a generated answer are inexact, too.
NOISE, NOISY_SHARE = 4.0, 0.7
TEXT_TASKS = (Task.OPEN_VOCABULARY_DETECTION, Task.PHRASE_GROUNDING)
BOX_SCALE = 0.03  # share of a side, below which the error of a dense box is squared


@dataclass(frozen=True)
class Losses:
    """Mean losses; the names are columns of the log.

    Attributes:
        labels: of labels and end tokens.
        locations: of locations; the best value is 0.
        found: of the answer to the second prompt.
        dense: of the first dense head.
    """

    labels: float
    locations: float
    found: float
    dense: float


class Objective(nn.Module):
    """The loss of a model on batches, with the dense heads that are trained with it.

    The dense heads train the vision tower directly: until its features represent objects, the decoder has nothing to
    attend to.
    """

    def __init__(self, model: Florence2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 2 * (len(LABELS) + 1) + 4) for _ in range(2))
        self.first_location = token_id(tokenizer, "<loc_0>")
        self.first_word = word_id(tokenizer, LABELS[0])
        self.prompt_ids = self._prompt_ids(tokenizer, Task.OBJECT_DETECTION)
        self.text_prompt_ids = [self._prompt_ids(tokenizer, task) for task in TEXT_TASKS]

    @staticmethod
    def _prompt_ids(tokenizer: PreTrainedTokenizerFast, task: Task) -> Tensor:
        """Return the token ids (1, T) of a task's prompt, with the first label if the prompt has a text."""
        text = PROMPT_TEMPLATES[task].format(text=LABELS[0])
        return torch.tensor([tokenizer(f"<s>{text}</s>", add_special_tokens=False).input_ids])

    def prompt_ids_for(self, task_index: int, words: Tensor) -> Tensor:
        """Return the token ids (A, T) of the prompts of a task in `TEXT_TASKS` for the token ids of labels, (A,)."""
        prompt_ids = self.text_prompt_ids[task_index]
        return torch.where(prompt_ids == self.first_word, words[:, None], prompt_ids)

    def forward(self, batch: Batch, step: int, sigma: float, dense_only: bool) -> tuple[Tensor, Losses]:
        """Return the loss and its parts; `sigma` is the width of a location's target distribution, in bins."""
        features = self.model.get_image_features(normalize_pixels(batch.pixels)).pooler_output
        dense = self._dense(0, features, batch)
        if dense_only:
            return dense, Losses(nan, nan, nan, dense.item())
        encoded = self._encode(features, self.prompt_ids.expand(len(features), -1))
        labels, locations, answer_loss = self._answer_losses(encoded, batch.answers, sigma)
        encoded_dense = self._dense(1, encoded, batch)
        prompt_ids = self.prompt_ids_for(step % len(TEXT_TASKS), batch.prompt_words)
        prompted = self._encode(features[: len(prompt_ids)], prompt_ids)
        *_, found = self._answer_losses(prompted, batch.prompted_answers, sigma)
        loss = answer_loss + PROMPTED_WEIGHT * found + FEATURES_WEIGHT * dense + ENCODED_WEIGHT * encoded_dense
        return loss, Losses(labels.item(), locations.item(), found.item(), dense.item())

    def _encode(self, features: Tensor, prompt_ids: Tensor) -> Tensor:
        embeddings = self.model.get_input_embeddings()(prompt_ids)
        encoder = self.model.model.language_model.encoder
        encoded: Tensor = encoder(inputs_embeds=torch.cat([features.to(embeddings.dtype), embeddings], 1))[0]
        return encoded

    def _answer_losses(self, encoded: Tensor, answers: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean errors of labels and of locations in the answers, and their weighted loss."""
        states = self.model.model.language_model.decoder(
            input_ids=self._decoder_input_ids(answers), encoder_hidden_states=encoded, use_cache=False
        )[0]
        mask = answers >= 0
        targets = answers[mask]
        log_probs = F.log_softmax(self.model.lm_head(states[mask]).float(), -1)
        is_location = self._is_location(targets)
        labels = F.nll_loss(log_probs[~is_location], targets[~is_location], reduction="none")
        bins = targets[is_location] - self.first_location
        locations = soft_target_error(log_probs[is_location][:, self.first_location :], bins, sigma)
        box_position = ((torch.arange(answers.shape[1]) - 1) % BOX_TOKENS).expand_as(answers)[mask][is_location]
        weights = torch.where(box_position == 1, LEFT_WEIGHT, 1.0)
        total = LABEL_WEIGHT * labels.sum() + (weights * locations).sum()
        loss = total / (LABEL_WEIGHT * len(labels) + weights.sum())
        return labels.mean(), locations.mean() if len(locations) else loss * 0, loss

    def _decoder_input_ids(self, answers: Tensor) -> Tensor:
        """Return the answers shifted right by one token, with noise on locations."""
        shifted = torch.full_like(answers, PAD)
        shifted[:, 0] = END  # Florence-2's decoder starts with it
        shifted[:, 1:] = answers[:, :-1].where(answers[:, :-1] != IGNORE_INDEX, PAD)
        noise = (torch.randn(shifted.shape) * NOISE * (torch.rand(len(shifted), 1) < NOISY_SHARE)).round().long()
        noisy = (shifted + noise).clamp(self.first_location, self.first_location + LOCATIONS - 1)
        return torch.where(self._is_location(shifted), noisy, shifted)

    def _is_location(self, token_ids: Tensor) -> Tensor:
        return (token_ids >= self.first_location) & (token_ids < self.first_location + LOCATIONS)

    def _dense(self, head: int, features: Tensor, batch: Batch) -> Tensor:
        """Return the loss of a dense head, which predicts `covers`, `centers` and `boxes` of each cell."""
        outputs = self.heads[head](features[:, 1:IMAGE_TOKENS]).float()
        classes = len(LABELS) + 1
        weights = torch.ones(classes)
        weights[0] = 0.25  # most cells are empty
        covers = F.cross_entropy(outputs[..., :classes].flatten(0, 1), batch.covers.flatten(), weight=weights)
        centers = F.cross_entropy(
            outputs[..., classes : 2 * classes].flatten(0, 1), batch.centers.flatten(), weight=weights
        )
        inside = batch.covers > 0
        predicted = outputs[..., 2 * classes :][inside]
        boxes = F.smooth_l1_loss(predicted, batch.boxes[inside], beta=BOX_SCALE, reduction="sum")
        return covers + centers + 8 * boxes / (4 * inside.sum().clamp(min=1))


def normalize_pixels(pixels: Tensor) -> Tensor:
    """Return pixels, uint8 (B, H, W, 3), as the model's input, float32 (B, 3, H, W)."""
    scaled = (pixels.float() - 255 * torch.tensor(MEAN)) / (255 * torch.tensor(STD))
    return scaled.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def soft_target_error(log_probs: Tensor, bins: Tensor, sigma: float) -> Tensor:
    """Return the Kullback-Leibler divergence from Gaussian targets around the true bins, (N,)."""
    distances = (torch.arange(LOCATIONS)[None] - bins[:, None]) / sigma
    targets = F.softmax(-0.5 * distances**2, -1)
    return F.kl_div(log_probs[:, :LOCATIONS], targets, reduction="none").sum(-1)
