"""What training makes small: the errors of two answers, and of two dense heads that are dropped afterwards."""

from dataclasses import dataclass
from math import nan

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration, PreTrainedTokenizerFast

from florence_tagger.florence.tasks import QUESTIONS
from florence_tagger.schemas import Task
from training.batches import BOX_TOKENS, NOTHING, Batch, token, word
from training.scenes import LABELS
from training.tiny_model import DEVIATION, END, IMAGE_TOKENS, LOCATIONS, MEAN, PAD, WIDTH

LABEL_WEIGHT = 2.0  # of labels and ends, against locations
LEFT_WEIGHT = 1.5  # of the left side of a box, which picks the next object
FEATURES_WEIGHT, ENCODED_WEIGHT, FOUND_WEIGHT = 0.5, 0.25, 0.5
NOISE, NOISY = 4.0, 0.7  # bins, and the share of answers: what the model itself says before is never exact either
ASKED_TASKS = (Task.OPEN_VOCABULARY_DETECTION, Task.PHRASE_GROUNDING)
BOX_SCALE = 0.03  # shares of a side, below which an error of the dense boxes counts squared


@dataclass(frozen=True)
class Losses:
    """Means of labels and ends, of locations (0 is the best), of the other answer, and of the first dense head."""

    labels: float
    locations: float
    found: float
    dense: float


class Objective(nn.Module):
    """The loss of a model on batches, with the dense heads that it trains along.

    The dense heads teach the vision tower directly: until it sees objects, the decoder has nothing to attend to.
    """

    def __init__(self, model: Florence2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 2 * (len(LABELS) + 1) + 4) for _ in range(2))
        self.first_location = token(tokenizer, "<loc_0>")
        self.asked = word(tokenizer, LABELS[0])
        self.prompt_text = self._question(tokenizer, Task.OBJECT_DETECTION)
        self.questions = [self._question(tokenizer, task) for task in ASKED_TASKS]

    @staticmethod
    def _question(tokenizer: PreTrainedTokenizerFast, task: Task) -> Tensor:
        """The tokens (1, T) of a task's question, asked for the first label where it asks for one."""
        text = QUESTIONS[task].format(text=LABELS[0])
        return torch.tensor([tokenizer(f"<s>{text}</s>", add_special_tokens=False).input_ids])

    def question_for(self, task: int, words: Tensor) -> Tensor:
        """The tokens (A, T) of an asking task's question, each for the label whose word within a text is given."""
        prompt_text = self.questions[task]
        return torch.where(prompt_text == self.asked, words[:, None], prompt_text)

    def forward(self, batch: Batch, step: int, sigma: float, dense_only: bool) -> tuple[Tensor, Losses]:
        """The loss, and its parts; `sigma` is how wide the target of a location is, in bins."""
        features = self.model.get_image_features(normalised(batch.pixels)).pooler_output
        dense = self._dense(0, features, batch)
        if dense_only:
            return dense, Losses(nan, nan, nan, dense.item())
        encoded = self._encode(features, self.prompt_text.expand(len(features), -1))
        labels, locations, said = self._answer(encoded, batch.answers, sigma)
        again = self._dense(1, encoded, batch)
        asked = self.question_for(step % len(ASKED_TASKS), batch.asked)
        *_, found = self._answer(self._encode(features[: len(asked)], asked), batch.found, sigma)
        loss = said + FOUND_WEIGHT * found + FEATURES_WEIGHT * dense + ENCODED_WEIGHT * again
        return loss, Losses(labels.item(), locations.item(), found.item(), dense.item())

    def _encode(self, features: Tensor, prompt_text: Tensor) -> Tensor:
        words = self.model.get_input_embeddings()(prompt_text)
        encoder = self.model.model.language_model.encoder
        encoded: Tensor = encoder(inputs_embeds=torch.cat([features.to(words.dtype), words], 1))[0]
        return encoded

    def _answer(self, encoded: Tensor, answers: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """The mean errors of labels and of locations in an answer, and the loss that weighs them."""
        states = self.model.model.language_model.decoder(
            input_ids=self._said_before(answers), encoder_hidden_states=encoded, use_cache=False
        )[0]
        there = answers >= 0
        wanted = answers[there]
        logs = F.log_softmax(self.model.lm_head(states[there]).float(), -1)
        place = self._is_location(wanted)
        labels = F.nll_loss(logs[~place], wanted[~place], reduction="none")
        locations = soft_error(logs[place][:, self.first_location :], wanted[place] - self.first_location, sigma)
        position = ((torch.arange(answers.shape[1]) - 1) % BOX_TOKENS).expand_as(answers)[there][place]
        weights = torch.where(position == 1, LEFT_WEIGHT, 1.0)
        total = LABEL_WEIGHT * labels.sum() + (weights * locations).sum()
        loss = total / (LABEL_WEIGHT * len(labels) + weights.sum())
        return labels.mean(), locations.mean() if len(locations) else loss * 0, loss

    def _said_before(self, answers: Tensor) -> Tensor:
        """What the decoder is given: the answer moved on by one, its locations disturbed."""
        before = torch.full_like(answers, PAD)
        before[:, 0] = END  # what Florence-2's decoder starts with
        before[:, 1:] = answers[:, :-1].where(answers[:, :-1] != NOTHING, PAD)
        noise = (torch.randn(before.shape) * NOISE * (torch.rand(len(before), 1) < NOISY)).round().long()
        disturbed = (before + noise).clamp(self.first_location, self.first_location + LOCATIONS - 1)
        return torch.where(self._is_location(before), disturbed, before)

    def _is_location(self, tokens: Tensor) -> Tensor:
        return (tokens >= self.first_location) & (tokens < self.first_location + LOCATIONS)

    def _dense(self, head: int, features: Tensor, batch: Batch) -> Tensor:
        """What each cell says of what covers it, of what has its middle in it, and of the box."""
        said = self.heads[head](features[:, 1:IMAGE_TOKENS]).float()
        kinds = len(LABELS) + 1
        weights = torch.ones(kinds)
        weights[0] = 0.25  # most cells have nothing
        covers = F.cross_entropy(said[..., :kinds].flatten(0, 1), batch.covers.flatten(), weight=weights)
        centres = F.cross_entropy(said[..., kinds : 2 * kinds].flatten(0, 1), batch.centres.flatten(), weight=weights)
        inside = batch.covers > 0
        boxes = F.smooth_l1_loss(said[..., 2 * kinds :][inside], batch.boxes[inside], beta=BOX_SCALE, reduction="sum")
        return covers + centres + 8 * boxes / (4 * inside.sum().clamp(min=1))


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) as the model takes it, float32 (B, 3, H, W)."""
    scaled = (pixels.float() - 255 * torch.tensor(MEAN)) / (255 * torch.tensor(DEVIATION))
    return scaled.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def soft_error(logs: Tensor, bins: Tensor, sigma: float) -> Tensor:
    """The Kullback-Leibler divergence of what is said from a bell over the bins around the wanted one, (N,)."""
    distances = (torch.arange(LOCATIONS)[None] - bins[:, None]) / sigma
    wanted = F.softmax(-0.5 * distances**2, -1)
    return F.kl_div(logs[:, :LOCATIONS], wanted, reduction="none").sum(-1)
