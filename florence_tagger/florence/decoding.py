"""Greedy and beam search: log-probabilities of a decoder step in, token ids out. NumPy only.

The rules, down to the order of float32 operations, are those of transformers' `generate` (`_sample`, `_beam_search` and
its logits processors in transformers/generation, version 5.5), so that the tokens are the reference implementation's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from florence_tagger.errors import ModelError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

NOTHING_FINITE = "The model gave no token a finite probability."

# The step of a decoder: (last token of each row (B), row of the step before that each row continues (B)) to
# log-probabilities of the next token (B, vocabulary). Whoever implements it keeps the cache.
DecoderStep = Callable[[IntArray, IntArray], FloatArray]


@dataclass(frozen=True)
class GenerationSettings:
    """How to decode; names and meaning as in transformers' `GenerationConfig`.

    Attributes:
        max_new_tokens: most tokens after the start token, the end token included.
        no_repeat_ngram_size: no run of so many tokens occurs twice; 0 is off.
        early_stopping: True ends as soon as `num_beams` answers are finished; False when no running beam seems able
            to improve on them; "never" when none can.
        length_penalty: finished answers are ranked by log-probability / tokens ** length_penalty.
    """

    decoder_start_token_id: int
    eos_token_id: int
    max_new_tokens: int
    num_beams: int = 1
    no_repeat_ngram_size: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    early_stopping: bool | Literal["never"] = False
    length_penalty: float = 1.0


@dataclass(frozen=True)
class Decoded:
    """The answer: token ids after the start token, and whether it was cut off at the most tokens."""

    token_ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer of beam search: its ids, start token first, and its score (length penalty applied)."""

    token_ids: IntArray
    score: np.float32


def decode(step: DecoderStep, settings: GenerationSettings) -> Decoded:
    """Decodes one answer, greedily with one beam and by beam search with more."""
    search = greedy_search if settings.num_beams == 1 else beam_search
    token_ids = search(step, settings)[1:]
    # An end token in the last place may have been forced there.
    ended = token_ids[-1] == settings.eos_token_id and settings.forced_eos_token_id is None
    return Decoded(tuple(token_ids.tolist()), len(token_ids) == settings.max_new_tokens and not ended)


def greedy_search(step: DecoderStep, settings: GenerationSettings) -> IntArray:
    """Takes the likeliest token until the end token or the most tokens; ids (T) with the start token.

    Raises:
        ModelError: no token has a finite probability.
    """
    sequences: IntArray = np.array([[settings.decoder_start_token_id]])
    for _ in range(settings.max_new_tokens):
        log_probs = constrain(step(sequences[:, -1], np.zeros(1, np.int64)), sequences, settings)
        token_id = np.argmax(log_probs[0])
        if not np.isfinite(log_probs[0, token_id]):
            raise ModelError(NOTHING_FINITE)
        sequences = np.append(sequences, [[token_id]], axis=1)
        if token_id == settings.eos_token_id:
            break
    best: IntArray = sequences[0]
    return best


def beam_search(step: DecoderStep, settings: GenerationSettings) -> IntArray:
    """Keeps the `num_beams` likeliest beginnings and returns the best finished answer, ids (T) with the start token.

    The search starts with one row instead of `num_beams` equal ones of which all but the first are ruled out: the same
    beams, cheaper. Twice as many candidates as beams are looked at, so that beams remain when the best of them end.

    Raises:
        ModelError: no token has a finite probability before any answer is finished.
    """
    beams = settings.num_beams
    sequences = np.array([[settings.decoder_start_token_id]])
    scores, rows = np.zeros(1, np.float32), np.zeros(1, np.int64)
    finished: list[Hypothesis] = []
    for length in range(1, settings.max_new_tokens + 1):
        log_probs = constrain(step(sequences[:, -1], rows), sequences, settings)
        totals, rows, token_ids = best_continuations(scores[:, None] + log_probs, 2 * beams)
        if not len(totals):
            break
        candidates = np.concatenate([sequences[rows], token_ids[:, None]], axis=1)
        ended = (token_ids == settings.eos_token_id) | (length == settings.max_new_tokens)
        # Only what ends among the best `num_beams` counts as an answer; the other candidates are a reserve.
        penalty = length**settings.length_penalty
        finished += [Hypothesis(candidates[i], np.float32(totals[i] / penalty)) for i in np.flatnonzero(ended[:beams])]
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:beams]
        running = np.flatnonzero(~ended)[:beams]
        sequences, scores, rows = candidates[running], totals[running], rows[running]
        if not len(running) or is_done(finished, scores[0], length, settings):
            break
    if not finished:
        raise ModelError(NOTHING_FINITE)
    return finished[0].token_ids


def best_continuations(totals: FloatArray, most: int) -> tuple[FloatArray, IntArray, IntArray]:
    """The `most` best of `totals` (B, vocabulary), best first and only finite ones: totals, rows and token ids."""
    flat = totals.ravel()
    best = np.argpartition(-flat, most)[:most] if most < flat.size else np.arange(flat.size)
    best = best[np.lexsort((best, -flat[best]))]
    best = best[np.isfinite(flat[best])]
    return flat[best], best // totals.shape[1], best % totals.shape[1]


def is_done(finished: list[Hypothesis], best_running: np.float32, length: int, settings: GenerationSettings) -> bool:
    """Whether the running beams (the best has log-probability `best_running` after `length` tokens) are given up."""
    if len(finished) < settings.num_beams:
        return False
    if settings.early_stopping is True:
        return True
    if settings.early_stopping == "never" and settings.length_penalty > 0:
        length = settings.max_new_tokens
    return bool(best_running / np.float32(length**settings.length_penalty) <= finished[-1].score)


def constrain(log_probs: FloatArray, sequences: IntArray, settings: GenerationSettings) -> FloatArray:
    """Applies repetition ban and forced tokens to `log_probs` (B, vocabulary) of what follows `sequences` (B, T).

    As in the reference they apply to log-probabilities, which are not normalised again.
    """
    length = sequences.shape[1]
    if length == settings.max_new_tokens and settings.forced_eos_token_id is not None:
        return forced(log_probs, settings.forced_eos_token_id)
    if length == 1 and settings.forced_bos_token_id is not None:
        return forced(log_probs, settings.forced_bos_token_id)
    if settings.no_repeat_ngram_size:
        log_probs = log_probs.copy()
        for row, sequence in zip(log_probs, sequences, strict=True):
            row[repeating_tokens(sequence, settings.no_repeat_ngram_size)] = -np.inf
    return log_probs


def forced(log_probs: FloatArray, token_id: int) -> FloatArray:
    """Certainty of one token, in the shape of `log_probs`."""
    certain = np.full_like(log_probs, -np.inf)
    certain[:, token_id] = 0
    return certain


def repeating_tokens(sequence: IntArray, size: int) -> IntArray:
    """The tokens that would end a run of `size` tokens which `sequence` (T) already has."""
    if len(sequence) < size:
        return np.empty(0, np.int64)
    runs = np.lib.stride_tricks.sliding_window_view(sequence, size)
    repeating: IntArray = runs[(runs[:, :-1] == sequence[len(sequence) - size + 1 :]).all(axis=1), -1]
    return repeating
