"""Greedy and beam search: the likeliest next tokens in, an answer's token ids out. NumPy only.

The rules, down to the order of float32 operations, are those of transformers' `generate` (`_sample`, `_beam_search` and
its logits processors in transformers/generation, version 5.5), so that the tokens are the reference implementation's.

A search is a generator: it yields what it wants to know of the model and is sent what the model says. So it reads as
the loop that it is, and whoever drives it may run the queries of many searches through the model together.
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
    """What a search asks of the model: how each of its B rows (beams) goes on.

    Attributes:
        token_ids: the last token of each row, int64 (B).
        parents: the row of the query before that each row continues, int64 (B).
        position: of the last token in its row, the start token's being 0.
        banned: the token ids that may not come next, an array for each row.
    """

    token_ids: IntArray
    parents: IntArray
    position: int
    banned: tuple[IntArray, ...]


@dataclass(frozen=True)
class TopK:
    """The likeliest next tokens of B rows, K for each, the likeliest first: log-probabilities and ids, both (B, K).

    K is twice the number of beams or more. A token that may not come next has the log-probability -inf.
    """

    log_probs: FloatArray
    token_ids: IntArray

    def take(self, row: int) -> "TopK":
        """Those of one row, (K)."""
        return TopK(self.log_probs[row], self.token_ids[row])


@dataclass(frozen=True)
class GenerationSettings:
    """How to decode; names and meaning as in transformers' `GenerationConfig`.

    Attributes:
        max_new_tokens: most tokens after the start token, the end token included.
        min_new_tokens: the end token does not come before so many others; 0 is off.
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
    min_new_tokens: int = 0
    early_stopping: bool | Literal["never"] = False
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.max_new_tokens < 1:
            raise ValueError(f"{self.num_beams} beams and {self.max_new_tokens} tokens: there must be one at least")


def exactly(own: GenerationSettings, beams: int | None, tokens: int | None) -> GenerationSettings:
    """Generation settings with other beams, and answers of exactly so many tokens."""
    wanted = replace(own, num_beams=beams or own.num_beams)
    return wanted if tokens is None else replace(wanted, max_new_tokens=tokens, min_new_tokens=tokens)


@dataclass(frozen=True)
class Decoded:
    """The answer.

    Attributes:
        token_ids: after the start token.
        truncated: it was cut off at the most tokens.
        candidates: for each token, those that it was chosen from; a forced one was the only one.
    """

    token_ids: tuple[int, ...]
    truncated: bool
    candidates: tuple[TopK, ...] = field(compare=False)


@dataclass(frozen=True)
class Beams:
    """B beginnings of an answer, the likeliest first.

    Attributes:
        token_ids: int64 (B, T), the start token first.
        rows: of the candidates that each token was among, int64 (B, T).
        scores: log-probability of the whole, float32 (B).
    """

    token_ids: IntArray
    rows: IntArray
    scores: FloatArray

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: IntArray) -> "Beams":
        """Some of the beams."""
        return Beams(self.token_ids[rows], self.rows[rows], self.scores[rows])

    def continued(self, best: "Continuations") -> "Beams":
        """The beams' continuations."""
        token_ids = np.concatenate([self.token_ids[best.parents], best.token_ids[:, None]], axis=1)
        rows = np.concatenate([self.rows[best.parents], best.parents[:, None]], axis=1)
        return Beams(token_ids, rows, best.totals)


@dataclass(frozen=True)
class Continuations:
    """What may come next: N tokens, the beams that they continue, and the log-probabilities of the whole."""

    parents: IntArray
    token_ids: IntArray
    totals: FloatArray


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer: its tokens and their rows (T) as in `Beams`, and its score (length penalty applied)."""

    token_ids: IntArray
    rows: IntArray
    score: np.float32


def certainly(token_ids: Sequence[int]) -> Decoded:
    """An answer of tokens whose probabilities are not known: there was nothing else to choose from."""
    return Decoded(tuple(token_ids), False, tuple(certain(token_id, 1).take(0) for token_id in token_ids))


# Asks queries, is sent candidates, and returns its answer.
Search = Generator[StepInput, TopK, Decoded]


def search(settings: GenerationSettings) -> Search:
    """Decodes one answer, greedily with one beam and by beam search with more.

    Raises:
        ModelError: no token has a finite probability.
    """
    told: list[TopK] = []  # at each step
    best = yield from (greedy_search if settings.num_beams == 1 else beam_search)(settings, told)
    token_ids = tuple(best.token_ids[1:].tolist())
    # An end token in the last place may have been forced there.
    ended = token_ids[-1] == settings.eos_token_id and settings.forced_eos_token_id is None
    chosen_from = tuple(all_rows.take(row) for all_rows, row in zip(told, best.rows[1:], strict=False))
    return Decoded(token_ids, len(token_ids) == settings.max_new_tokens and not ended, chosen_from)


def beginning(settings: GenerationSettings) -> Beams:
    """The start token."""
    return Beams(np.array([[settings.decoder_start_token_id]]), np.zeros((1, 1), np.int64), np.zeros(1, np.float32))


def greedy_search(settings: GenerationSettings, told: list[TopK]) -> Generator[StepInput, TopK, Hypothesis]:
    """Takes the likeliest token until the end token or the most tokens; appends what it is told to `told`."""
    beams, parents = beginning(settings), np.zeros(1, np.int64)
    for _ in range(settings.max_new_tokens):
        told.append((yield from next_tokens(beams.token_ids, parents, settings)))
        best = best_continuations(np.zeros(1, np.float32), told[-1], 1)  # sums would round what nearly ties
        if not len(best.totals):
            raise ModelError(NOTHING_FINITE)
        beams = beams.continued(best)
        if best.token_ids[0] == settings.eos_token_id:
            break
    return hypothesis(beams, 0, settings)


def beam_search(settings: GenerationSettings, told: list[TopK]) -> Generator[StepInput, TopK, Hypothesis]:
    """Keeps the `num_beams` likeliest beginnings; the best finished answer. Appends what it is told to `told`.

    The search starts with one row instead of `num_beams` equal ones of which all but the first are ruled out: the same
    beams, cheaper. Twice as many candidates as beams are looked at, so that beams remain when the best of them end.
    """
    most = settings.num_beams
    beams, parents = beginning(settings), np.zeros(1, np.int64)
    finished: list[Hypothesis] = []
    for length in range(1, settings.max_new_tokens + 1):
        told.append((yield from next_tokens(beams.token_ids, parents, settings)))
        best = best_continuations(beams.scores, told[-1], 2 * most)
        if not len(best.totals):
            break
        longer = beams.continued(best)
        ended = (best.token_ids == settings.eos_token_id) | (length == settings.max_new_tokens)
        # Only what ends among the best `num_beams` counts as an answer; the other candidates are a reserve.
        finished += [hypothesis(longer, row, settings) for row in np.flatnonzero(ended[:most]).tolist()]
        finished = sorted(finished, key=lambda one: -one.score)[:most]
        running = np.flatnonzero(~ended)[:most]
        beams, parents = longer.take(running), best.parents[running]
        if not len(running) or is_done(finished, beams.scores[0], length, settings):
            break
    if not finished:
        raise ModelError(NOTHING_FINITE)
    return finished[0]


def hypothesis(beams: Beams, row: int, settings: GenerationSettings) -> Hypothesis:
    """The beam in a row as a finished answer."""
    length = beams.token_ids.shape[1] - 1
    score = np.float32(beams.scores[row] / length**settings.length_penalty)
    return Hypothesis(beams.token_ids[row], beams.rows[row], score)


def best_continuations(scores: FloatArray, candidates: TopK, most: int) -> Continuations:
    """The `most` best of what continues rows of `scores` (B), best first and only finite."""
    totals = (scores[:, None] + candidates.log_probs).ravel()
    parents, token_ids = np.arange(totals.size) // candidates.token_ids.shape[1], candidates.token_ids.ravel()
    best = np.lexsort((token_ids, parents, -totals))[:most]
    best = best[np.isfinite(totals[best])]
    return Continuations(parents[best], token_ids[best], totals[best])


def is_done(finished: list[Hypothesis], best_running: np.float32, length: int, settings: GenerationSettings) -> bool:
    """Whether the running beams (the best has log-probability `best_running` after `length` tokens) are given up."""
    if len(finished) < settings.num_beams:
        return False
    if settings.early_stopping is True:
        return True
    if settings.early_stopping == "never" and settings.length_penalty > 0:
        length = settings.max_new_tokens
    return bool(best_running / np.float32(length**settings.length_penalty) <= finished[-1].score)


def next_tokens(
    sequences: IntArray, parents: IntArray, settings: GenerationSettings
) -> Generator[StepInput, TopK, TopK]:
    """What may follow `sequences` (B, T), whose rows continue `parents` (B): the model's candidates or a forced token.

    As in the reference, bans and forced tokens apply to log-probabilities, which are not normalised again.
    """
    rows, length = sequences.shape
    token_id = forced_token(length, settings)
    if token_id is not None and length > 1:
        return certain(token_id, rows)  # an end: nothing comes after it, so that the model need not be asked
    banned = tuple(banned_tokens(sequence, settings) for sequence in sequences)
    candidates = yield StepInput(sequences[:, -1], parents, length - 1, banned)
    return candidates if token_id is None else certain(token_id, rows)


def forced_token(length: int, settings: GenerationSettings) -> int | None:
    """The token that must follow `length` others, if any."""
    if length == settings.max_new_tokens and settings.forced_eos_token_id is not None:
        return settings.forced_eos_token_id
    return settings.forced_bos_token_id if length == 1 else None


def certain(token_id: int, rows: int) -> TopK:
    """One token as the only candidate of each row."""
    return TopK(np.zeros((rows, 1), np.float32), np.full((rows, 1), token_id))


def banned_tokens(sequence: IntArray, settings: GenerationSettings) -> IntArray:
    """The tokens that may not follow `sequence` (T)."""
    banned = repeating_tokens(sequence, settings.no_repeat_ngram_size)
    return np.append(banned, settings.eos_token_id) if len(sequence) <= settings.min_new_tokens else banned


def repeating_tokens(sequence: IntArray, size: int) -> IntArray:
    """The tokens that would end a run of `size` tokens (0: none) which `sequence` (T) already has."""
    if not size or len(sequence) < size:
        return np.empty(0, np.int64)
    runs = len(sequence) - size + 1
    alike = np.ones(runs, bool)
    for place in range(size - 1):  # a view of all runs would take longer to make than to compare
        alike &= sequence[place : place + runs] == sequence[runs + place]
    repeating: IntArray = sequence[size - 1 :][alike]
    return repeating
