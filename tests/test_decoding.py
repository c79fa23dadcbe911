"""The decode loop against brute force on a toy vocabulary, and against transformers' `generate`."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import BartConfig, BartForConditionalGeneration

from convert.transformers_reference import generate
from florence_tagger.errors import ModelError
from florence_tagger.florence.batch import Batch
from florence_tagger.florence.decoding import (
    Decoded,
    FloatArray,
    GenerationSettings,
    StepInput,
    TopK,
    repeating_tokens,
)

START, END, VOCABULARY = 0, 1, 4
LogProbs = Callable[[tuple[int, ...]], FloatArray]


def random_language(seed: int) -> LogProbs:
    """A language model whose next token depends on all tokens before, at random."""

    def log_probs(prefix: tuple[int, ...]) -> FloatArray:
        logits = np.random.default_rng([seed, *prefix]).normal(0, 2, VOCABULARY).astype(np.float32)
        return logits - np.log(np.exp(logits).sum())

    return log_probs


class Toy:
    """A decoder of languages, that keeps the rows' prefixes as a cache would."""

    candidates = 2 * VOCABULARY**4

    def __init__(self) -> None:
        self.languages: list[LogProbs] = []
        self.prefixes: list[list[tuple[int, ...]]] = []

    def add(self, language: LogProbs) -> None:
        self.languages.append(language)
        self.prefixes.append([()])

    def remove(self, place: int) -> None:
        for places in (self.languages, self.prefixes):
            last = places.pop()
            if place < len(places):
                places[place] = last  # type: ignore[call-overload]

    def step(self, queries: Sequence[StepInput]) -> list[TopK]:
        return [self.answer(place, query) for place, query in enumerate(queries)]

    def answer(self, place: int, query: StepInput) -> TopK:
        grown = zip(query.parents, query.token_ids, strict=True)
        prefixes = [(*self.prefixes[place][parent], int(token_id)) for parent, token_id in grown]
        self.prefixes[place] = prefixes
        assert {len(prefix) for prefix in prefixes} == {query.position + 1}
        log_probs = np.stack([self.languages[place](prefix) for prefix in prefixes])
        for row, banned in zip(log_probs, query.banned, strict=True):
            row[banned] = -np.inf
        best = np.argsort(-log_probs, axis=1, kind="stable")
        return TopK(np.take_along_axis(log_probs, best, 1), best)


def decode(language: LogProbs, wanted: GenerationSettings) -> Decoded:
    """The answer that a search finds in a language."""
    return decode_together([language], wanted, [0])[0]


def decode_together(
    languages: Sequence[LogProbs], wanted: GenerationSettings, arrivals: Sequence[int]
) -> dict[int, Decoded]:
    """The answers in several languages, decoded together, each of which comes at its step."""
    generation: Batch[int, LogProbs] = Batch(Toy())
    answers: dict[int, Decoded] = {}
    for now in itertools.count():
        for key, (language, arrival) in enumerate(zip(languages, arrivals, strict=True)):
            if arrival == now:
                generation.start(key, language, wanted)
        for key, decoded in generation.step().items():
            if isinstance(decoded, Exception):
                raise decoded
            answers[key] = decoded
        if len(answers) == len(languages):
            return answers
    raise AssertionError


def all_answers(wanted: GenerationSettings, log_probs: LogProbs) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Every complete answer with its score, by enumeration of all sequences."""
    for length in range(1, wanted.max_new_tokens + 1):
        for ids in itertools.product(range(VOCABULARY), repeat=length):
            if END in ids[:-1] or (ids[-1] != END and length < wanted.max_new_tokens):
                continue
            total = sum(allowed(wanted, (START, *ids[:index]), ids[index], log_probs) for index in range(length))
            if np.isfinite(total):
                yield float(total / length**wanted.length_penalty), ids


def allowed(wanted: GenerationSettings, prefix: tuple[int, ...], token_id: int, log_probs: LogProbs) -> float:
    """The log-probability of a token after a prefix, as the settings make it."""
    must = None
    if len(prefix) == wanted.max_new_tokens and wanted.forced_eos_token_id is not None:
        must = wanted.forced_eos_token_id
    elif len(prefix) == 1 and wanted.forced_bos_token_id is not None:
        must = wanted.forced_bos_token_id
    if must is not None:
        return 0.0 if token_id == must else -np.inf
    if token_id == END and len(prefix) <= wanted.min_new_tokens:
        return -np.inf
    size = wanted.no_repeat_ngram_size
    runs = [prefix[i : i + size] for i in range(len(prefix) - size + 1)] if size else []
    return -np.inf if (*prefix, token_id)[-size:] in runs else float(log_probs(prefix)[token_id])


TOYS = st.builds(
    GenerationSettings,
    decoder_start_token_id=st.just(START),
    eos_token_id=st.just(END),
    max_new_tokens=st.integers(1, 4),
    num_beams=st.just(VOCABULARY**4),
    no_repeat_ngram_size=st.integers(0, 3),
    forced_bos_token_id=st.sampled_from([None, 2]),
    forced_eos_token_id=st.sampled_from([None, END]),
    min_new_tokens=st.integers(0, 3),
    length_penalty=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)


TOGETHER = st.builds(
    GenerationSettings,
    decoder_start_token_id=st.just(START),
    eos_token_id=st.just(END),
    max_new_tokens=st.integers(1, 9),
    num_beams=st.integers(1, 3),
    no_repeat_ngram_size=st.sampled_from([0, 3]),
    forced_bos_token_id=st.sampled_from([None, 2]),
)


@given(TOYS, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_with_enough_beams_the_best_of_all_answers_is_found(wanted: GenerationSettings, seed: int) -> None:
    log_probs = random_language(seed)
    answers = list(all_answers(wanted, log_probs))
    assume(answers)  # bans may leave none
    best, ids = max(answers)
    found = decode(log_probs, wanted)
    assert {ids: score for score, ids in answers}[found.token_ids] == pytest.approx(best)
    full = len(found.token_ids) == wanted.max_new_tokens
    assert found.truncated == (full and (found.token_ids[-1] != END or wanted.forced_eos_token_id is not None))
    assert len(ids) <= wanted.max_new_tokens


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_greedy_takes_the_likeliest_token_each_time(seed: int, most: int) -> None:
    log_probs = random_language(seed)
    found = decode(log_probs, GenerationSettings(START, END, most)).token_ids
    for index, token_id in enumerate(found):
        assert token_id == np.argmax(log_probs((START, *found[:index])))
    assert END not in found[:-1]
    assert len(found) == most or found[-1] == END


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 4))
def test_repeating_tokens(sequence: list[int], size: int) -> None:
    runs = {tuple(sequence[i : i + size]) for i in range(len(sequence) - size + 1)}
    tail = tuple(sequence[len(sequence) - size + 1 :]) if size > 1 else ()
    expected = {token_id for token_id in range(4) if (*tail, token_id) in runs}
    assert set(repeating_tokens(np.array(sequence), size).tolist()) == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_a_model_that_says_nothing_finite_is_an_error(beams: int) -> None:
    def silence(prefix: tuple[int, ...]) -> FloatArray:
        return np.full(VOCABULARY, np.nan, np.float32)

    with pytest.raises(ModelError, match="finite"):
        decode(silence, GenerationSettings(START, END, 5, num_beams=beams))


@given(TOGETHER, st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 12)), min_size=1, max_size=6))
@settings(deadline=None)
def test_answers_decoded_together_are_those_decoded_alone(
    wanted: GenerationSettings, pictures: list[tuple[int, int]]
) -> None:
    languages = [random_language(seed) for seed, _ in pictures]
    first = min(arrival for _, arrival in pictures)
    together = decode_together(languages, wanted, [arrival - first for _, arrival in pictures])
    assert [together[key] for key in range(len(pictures))] == [decode(language, wanted) for language in languages]


def test_more_beams_than_candidates_are_refused() -> None:
    with pytest.raises(ModelError, match="beams are wanted"):
        decode(random_language(0), GenerationSettings(START, END, 5, num_beams=VOCABULARY**4 + 1))


@pytest.fixture(scope="module")
def toy() -> Any:
    """A BART of 11 tokens with random weights, large enough that its answers vary."""
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=11,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=40,
        init_std=0.6,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        decoder_start_token_id=2,
    )
    return BartForConditionalGeneration(config).eval()


def language_of(toy: Any, input_ids: torch.Tensor) -> LogProbs:
    """What a BART says after a prefix."""

    def log_probs(prefix: tuple[int, ...]) -> FloatArray:
        logits = toy(input_ids=input_ids, decoder_input_ids=torch.tensor([prefix])).logits[0, -1]
        return np.asarray(torch.log_softmax(logits, -1), np.float32)

    return log_probs


REAL = st.builds(
    GenerationSettings,
    decoder_start_token_id=st.just(2),
    eos_token_id=st.just(2),
    max_new_tokens=st.integers(2, 24),
    num_beams=st.integers(1, 5),
    no_repeat_ngram_size=st.sampled_from([0, 2, 3, 4]),  # 1 would soon rule out all 11 tokens
    forced_bos_token_id=st.sampled_from([None, 0]),
    forced_eos_token_id=st.sampled_from([None, 2]),
    min_new_tokens=st.integers(0, 6),
    early_stopping=st.sampled_from([True, False, "never"]),
    length_penalty=st.sampled_from([0.0, 0.6, 1.0, 1.7]),
).filter(lambda wanted: wanted.min_new_tokens <= wanted.max_new_tokens)


@given(REAL, st.lists(st.integers(3, 10), min_size=1, max_size=6))
@settings(deadline=None, max_examples=200)
def test_same_tokens_as_transformers(toy: Any, wanted: GenerationSettings, source: list[int]) -> None:
    input_ids = torch.tensor([source])
    with torch.inference_mode():
        theirs = generate(toy, wanted, input_ids=input_ids)
        ours = decode(language_of(toy, input_ids), wanted)
    assert ours.token_ids == theirs


@given(REAL, st.lists(st.integers(3, 10), min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_same_probabilities_as_transformers(toy: Any, wanted: GenerationSettings, source: list[int]) -> None:
    # Greedy, transformers has logits instead of log-probabilities, and normalises them again after bans.
    wanted = replace(wanted, no_repeat_ngram_size=0, min_new_tokens=0, forced_bos_token_id=None)
    input_ids = torch.tensor([source])
    with torch.inference_mode():
        ours = decode(language_of(toy, input_ids), wanted)
        generate(toy, wanted, input_ids=input_ids)  # sets the generation settings
        theirs = toy.generate(
            input_ids, attention_mask=torch.ones_like(input_ids), output_scores=True, return_dict_in_generate=True
        )
        expected = toy.compute_transition_scores(
            theirs.sequences, theirs.scores, theirs.get("beam_indices"), normalize_logits=wanted.num_beams == 1
        )
    chosen = [
        float(candidates.log_probs[candidates.token_ids == token_id][0])
        for token_id, candidates in zip(ours.token_ids, ours.candidates, strict=True)
    ]
    assert chosen == pytest.approx(expected[0].tolist()[: len(chosen)], abs=1e-4)
