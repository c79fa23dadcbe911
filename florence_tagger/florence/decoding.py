"""Greedy and beam search: the model's top-k tokens in, an answer's token ids out. NumPy only.

The rules, down to the order of float32 operations, are those of transformers' `generate` (`_sample`, `_beam_search` and
its logits processors in transformers/generation, version 5.5), so that the token ids equal the reference's.

A search is a generator: it yields the input of its next step, and receives the model's top-k tokens. The search reads
as a plain loop, and its caller can run the steps of several searches through the model together.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from florence_tagger.errors import ModelError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

NOTHING_FINITE = "The model gave no token a finite probability."


@dataclass(frozen=True)
class StepInput:
    """The input of a search's next step, with one row for each of its B beams.

    Attributes:
        token_ids: the last token of each row, int64 (B).
        parents: the row of the previous step that each row continues, int64 (B).
        position: of the last token in its row; the start token has position 0.
        banned: token ids that must not come next, an array for each row.
    """

    token_ids: IntArray
    parents: IntArray
    position: int
    banned: tuple[IntArray, ...]


@dataclass(frozen=True)
class TopK:
    """The K most probable next tokens of B rows, in descending order: log-probabilities and ids, both (B, K).

    K is at least twice the number of beams. A banned token has the log-probability -inf.
    """

    log_probs: FloatArray
    token_ids: IntArray

    def take(self, row: int) -> "TopK":
        """Return the tokens of one row, (K)."""
        return TopK(self.log_probs[row], self.token_ids[row])


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of the decode loop, with the names and meanings of transformers' `GenerationConfig`.

    Attributes:
        max_new_tokens: maximum number of tokens after the start token, the end token included.
        min_new_tokens: minimum number of tokens before the end token; 0 is off.
        no_repeat_ngram_size: length of token runs that must not occur twice; 0 is off.
        early_stopping: True stops as soon as `num_beams` answers are finished; False stops when no running beam seems
            able to improve on them; "never" stops when no running beam can.
        length_penalty: finished answers are ranked by log-probability / tokens ** length_penalty.
    """

    decoder_start_token_id: int
    eos_token_id: int
    max_new_tokens: int
    num_beams: int = 1
    no_repeat_ngram_size: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    min_new_tokens: int = 0
    early_stopping: bool | Literal["never"] = False
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.max_new_tokens < 1:
            raise ValueError(f"{self.num_beams} beams and {self.max_new_tokens} tokens: there must be one at least")


def with_fixed_length(
    settings: GenerationSettings, num_beams: int | None, num_tokens: int | None
) -> GenerationSettings:
    """Return settings with another number of beams, and answers of exactly `num_tokens` tokens; None keeps either."""
    settings = replace(settings, num_beams=num_beams or settings.num_beams)
    return settings if num_tokens is None else replace(settings, max_new_tokens=num_tokens, min_new_tokens=num_tokens)


@dataclass(frozen=True)
class Decoded:
    """A decoded answer.

    Attributes:
        token_ids: the tokens after the start token.
        truncated: True if the answer was cut off at `max_new_tokens`.
        top_k: for each token, the candidates that it was chosen from, (K); a forced token was the only candidate.
    """

    token_ids: tuple[int, ...]
    truncated: bool
    top_k: tuple[TopK, ...] = field(compare=False)


@dataclass(frozen=True)
class Beams:
    """B partial answers, in descending order of score.

    Attributes:
        token_ids: int64 (B, T), the start token first.
        rows: the row of its step's top-k tokens that each token was chosen from, int64 (B, T).
        scores: log-probability of each partial answer, float32 (B).
    """

    token_ids: IntArray
    rows: IntArray
    scores: FloatArray

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: IntArray) -> "Beams":
        """Return the beams in some rows."""
        return Beams(self.token_ids[rows], self.rows[rows], self.scores[rows])

    def extended(self, best: "Continuations") -> "Beams":
        """Return new beams, each a beam with its continuation appended."""
        token_ids = np.concatenate([self.token_ids[best.parents], best.token_ids[:, None]], axis=1)
        rows = np.concatenate([self.rows[best.parents], best.parents[:, None]], axis=1)
        return Beams(token_ids, rows, best.scores)


@dataclass(frozen=True)
class Continuations:
    """N next tokens, with the rows of the beams that they continue, and the scores of the extended beams."""

    parents: IntArray
    token_ids: IntArray
    scores: FloatArray


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer: its tokens and their rows (T) as in `Beams`, and its score (length penalty applied)."""

    token_ids: IntArray
    rows: IntArray
    score: np.float32


def decoded_from_ids(token_ids: Sequence[int]) -> Decoded:
    """Return an answer of tokens with unknown probabilities, each the only candidate of its step."""
    return Decoded(tuple(token_ids), False, tuple(forced_top_k(token_id, 1).take(0) for token_id in token_ids))


# Yields step inputs, receives top-k tokens, and returns the decoded answer.
Search = Generator[StepInput, TopK, Decoded]


def search(settings: GenerationSettings) -> Search:
    """Decode one answer, greedily with one beam and by beam search with more.

    Raises:
        ModelError: no token has a finite probability.
    """
    steps: list[TopK] = []
    best = yield from (greedy_search if settings.num_beams == 1 else beam_search)(settings, steps)
    token_ids = tuple(best.token_ids[1:].tolist())
    # An end token in the last position may have been forced.
    ended = token_ids[-1] == settings.eos_token_id and settings.forced_eos_token_id is None
    top_k = tuple(step.take(row) for step, row in zip(steps, best.rows[1:], strict=False))
    return Decoded(token_ids, len(token_ids) == settings.max_new_tokens and not ended, top_k)


def initial_beams(settings: GenerationSettings) -> Beams:
    """Return a single beam with the start token."""
    return Beams(np.array([[settings.decoder_start_token_id]]), np.zeros((1, 1), np.int64), np.zeros(1, np.float32))


def greedy_search(settings: GenerationSettings, steps: list[TopK]) -> Generator[StepInput, TopK, Hypothesis]:
    """Decode greedily: append argmax tokens until EOS or `max_new_tokens`; append each step's top-k to `steps`."""
    beams, parents = initial_beams(settings), np.zeros(1, np.int64)
    for _ in range(settings.max_new_tokens):
        steps.append((yield from next_top_k(beams.token_ids, parents, settings)))
        best = best_continuations(np.zeros(1, np.float32), steps[-1], 1)  # a sum would round near ties to ties
        if not len(best.scores):
            raise ModelError(NOTHING_FINITE)
        beams = beams.extended(best)
        if best.token_ids[0] == settings.eos_token_id:
            break
    return hypothesis(beams, 0, settings)


def beam_search(settings: GenerationSettings, steps: list[TopK]) -> Generator[StepInput, TopK, Hypothesis]:
    """Decode with `num_beams` beams, and return the best finished answer; append each step's top-k to `steps`.

    The search starts with one row instead of `num_beams` equal rows of which all but the first are masked: the beams
    are the same, and cheaper. Each step considers twice as many candidates as beams, so that enough beams remain if the
    best of them end.
    """
    num_beams = settings.num_beams
    beams, parents = initial_beams(settings), np.zeros(1, np.int64)
    finished: list[Hypothesis] = []
    for length in range(1, settings.max_new_tokens + 1):
        steps.append((yield from next_top_k(beams.token_ids, parents, settings)))
        best = best_continuations(beams.scores, steps[-1], 2 * num_beams)
        if not len(best.scores):
            break
        extended = beams.extended(best)
        ended = (best.token_ids == settings.eos_token_id) | (length == settings.max_new_tokens)
        # Only beams that end among the best `num_beams` count as answers; the other candidates are a reserve.
        finished += [hypothesis(extended, row, settings) for row in np.flatnonzero(ended[:num_beams]).tolist()]
        finished = sorted(finished, key=lambda answer: -answer.score)[:num_beams]
        running = np.flatnonzero(~ended)[:num_beams]
        beams, parents = extended.take(running), best.parents[running]
        if not len(running) or is_done(finished, beams.scores[0], length, settings):
            break
    if not finished:
        raise ModelError(NOTHING_FINITE)
    return finished[0]


def hypothesis(beams: Beams, row: int, settings: GenerationSettings) -> Hypothesis:
    """Return the beam in a row as a finished answer."""
    length = beams.token_ids.shape[1] - 1
    score = np.float32(beams.scores[row] / length**settings.length_penalty)
    return Hypothesis(beams.token_ids[row], beams.rows[row], score)


def best_continuations(beam_scores: FloatArray, top_k: TopK, max_continuations: int) -> Continuations:
    """Return the best continuations of beams with `beam_scores` (B), in descending order, without infinite scores."""
    scores = (beam_scores[:, None] + top_k.log_probs).ravel()
    parents, token_ids = np.arange(scores.size) // top_k.token_ids.shape[1], top_k.token_ids.ravel()
    best = np.lexsort((token_ids, parents, -scores))[:max_continuations]
    best = best[np.isfinite(scores[best])]
    return Continuations(parents[best], token_ids[best], scores[best])


def is_done(finished: list[Hypothesis], best_running: np.float32, length: int, settings: GenerationSettings) -> bool:
    """Return True if the search stops, given the best running beam's log-probability after `length` tokens."""
    if len(finished) < settings.num_beams:
        return False
    if settings.early_stopping is True:
        return True
    if settings.early_stopping == "never" and settings.length_penalty > 0:
        length = settings.max_new_tokens
    return bool(best_running / np.float32(length**settings.length_penalty) <= finished[-1].score)


def next_top_k(
    sequences: IntArray, parents: IntArray, settings: GenerationSettings
) -> Generator[StepInput, TopK, TopK]:
    """Return the top-k next tokens of `sequences` (B, T), from the model or forced; row i continues `parents[i]` (B).

    As in the reference, bans and forced tokens apply to log-probabilities, which are not normalized again.
    """
    num_rows, length = sequences.shape
    token_id = forced_token(length, settings)
    if token_id is not None and length > 1:
        return forced_top_k(token_id, num_rows)  # a forced end needs no step of the model: no token follows it
    banned = tuple(banned_tokens(sequence, settings) for sequence in sequences)
    top_k = yield StepInput(sequences[:, -1], parents, length - 1, banned)
    return top_k if token_id is None else forced_top_k(token_id, num_rows)


def forced_token(length: int, settings: GenerationSettings) -> int | None:
    """Return the token that must follow `length` tokens, None if there is no such token."""
    if length == settings.max_new_tokens and settings.forced_eos_token_id is not None:
        return settings.forced_eos_token_id
    return settings.forced_bos_token_id if length == 1 else None


def forced_top_k(token_id: int, num_rows: int) -> TopK:
    """Return a token as the only candidate of each row, with probability 1."""
    return TopK(np.zeros((num_rows, 1), np.float32), np.full((num_rows, 1), token_id))


def banned_tokens(sequence: IntArray, settings: GenerationSettings) -> IntArray:
    """Return the tokens that must not follow `sequence` (T)."""
    banned = repeating_tokens(sequence, settings.no_repeat_ngram_size)
    return np.append(banned, settings.eos_token_id) if len(sequence) <= settings.min_new_tokens else banned


def repeating_tokens(sequence: IntArray, size: int) -> IntArray:
    """Return the tokens that would complete an n-gram of `size` tokens (0: none) that `sequence` (T) already has."""
    if not size or len(sequence) < size:
        return np.empty(0, np.int64)
    num_ngrams = len(sequence) - size + 1
    same_prefix = np.ones(num_ngrams, bool)
    for offset in range(size - 1):  # a sliding-window view would take longer to make than the n-grams to compare
        same_prefix &= sequence[offset : offset + num_ngrams] == sequence[num_ngrams + offset]
    repeating: IntArray = sequence[size - 1 :][same_prefix]
    return repeating
