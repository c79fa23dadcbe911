"""Token ids to regions, against transformers' own post-processor where the answer is well-formed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.florence.decoding import Candidates, Decoded, certainly
from florence_tagger.florence.postprocessing import parse_regions
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.schemas import Region
from tests.conftest import CHECKPOINT

LABELS = ("backpack", "dog", "traffic light", "café", "a dog's umbrella!")
BINS = st.integers(0, 999)
BOXES = st.lists(st.tuples(BINS, BINS, BINS, BINS), min_size=1, max_size=4)
ANSWERS = st.lists(st.tuples(st.sampled_from(LABELS), BOXES), max_size=5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer((DEFAULT_MODEL / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoProcessor.from_pretrained(CHECKPOINT)


def said(*parts: str) -> str:
    """What a model says, from labels and boxes like "1 2 3 4"."""
    return "".join(
        "".join(f"<loc_{place}>" for place in part.split()) if part[:1].isdigit() else part for part in parts
    )


def parse(tokenizer: Tokenizer, text: str, width: int = 1000, height: int = 1000) -> list[tuple[str, tuple[int, ...]]]:
    regions = parse_regions(certainly(tokenizer.encode(text)), tokenizer, width, height)
    return [(region.label, tuple(int(side) for side in region.box)) for region in regions]


@given(ANSWERS, st.integers(1, 4000), st.integers(1, 4000))
def test_well_formed_answers_are_read_as_by_the_reference(
    tokenizer: Tokenizer, reference: Any, answer: list[tuple[str, list[tuple[int, ...]]]], width: int, height: int
) -> None:
    text = said(*(part for label, boxes in answer for part in (label, *(" ".join(map(str, box)) for box in boxes))))
    theirs = reference.post_process_generation(f"<s>{text}</s>", task="<OD>", image_size=(width, height))["<OD>"]
    ours = parse_regions(certainly(tokenizer.encode(text)), tokenizer, width, height)
    # the reference computes in f32 and cuts fractions off
    for region, box in zip(ours, theirs["bboxes"], strict=True):
        assert all(-0.01 < side - cut < 1.01 for side, cut in zip(region.box, box, strict=True))
    # the one difference: the reference drops what is not ASCII
    assert [region.label.encode("ascii", "ignore").decode() for region in ours] == theirs["labels"]


def test_labels_keep_their_characters(tokenizer: Tokenizer) -> None:
    assert parse(tokenizer, said(" café ", "1 2 3 4")) == [("café", (1, 2, 3, 4))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("dog", []),
        (said("dog", "1 2 3"), []),
        (said("dog", "1 2 3 4 5 6"), [("dog", (1, 2, 3, 4))]),
        (said("dog", "1 2 3", "bus", "1 2 3 4"), [("bus", (1, 2, 3, 4))]),
        (said("1 2 3 4", "bus", "5 6 7 8"), [("bus", (5, 6, 7, 8))]),
        (said("dog", "1 2 3 4", "dog", "5 6 7 8"), [("dog", (1, 2, 3, 4)), ("dog", (5, 6, 7, 8))]),
        (said("dog<and>", "1 2 3 4"), []),
        (said("dog<and>bus", "1 2 3 4"), [("bus", (1, 2, 3, 4))]),
        (said("  ", "1 2 3 4"), []),
        (said("dog", "9 9 3 3"), [("dog", (9, 9, 3, 3))]),
        (said("do</s>g", "1 2 3 4"), [("dog", (1, 2, 3, 4))]),
    ],
)
def test_malformed_answers_lose_only_what_is_malformed(tokenizer: Tokenizer, text: str, expected: Any) -> None:
    assert parse(tokenizer, text) == expected


@given(st.lists(st.integers(-5, 1500), max_size=60))
def test_any_token_ids_can_be_read(tokenizer: Tokenizer, token_ids: list[int]) -> None:
    valid = [token_id for token_id in token_ids if token_id >= 0]
    for region in parse_regions(certainly(valid), tokenizer, 100, 50):
        assert region.label == region.label.strip() != ""
        assert 0 < region.box[0] < 100
        assert 0 < region.box[1] < 50


def test_boxes_point_at_the_middle_of_their_bins(tokenizer: Tokenizer) -> None:
    (region,) = parse_regions(certainly(tokenizer.encode(said("dog", "0 0 999 499"))), tokenizer, 500, 2000)
    assert region == Region("dog", (0.25, 1.0, 499.75, 999.0), 1.0)


def test_scores_are_of_the_label_and_of_what_lies_near_the_corners(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(said("traffic light", "100 200 300 400", "5 5 5 5"))
    first = tokenizer.first_location
    candidates = [
        Candidates(np.log(np.array(chances, np.float32)), np.array([token_id, *others]))
        for token_id, chances, others in zip(
            token_ids,
            [(1,), *[(0.5,)] * (len(token_ids) - 10), *[(0.1, 0.2, 0.4)] * 4, *[(0.3, 0.1, 0.9)] * 4, (1,)],
            [(), *[()] * (len(token_ids) - 10)]
            + [(first + place + 10, first + place + 11) for place in (100, 200, 300, 400)]
            + [(first - 1, first + 15)] * 4  # a word, whose id is near; and the last bin that is
            + [()],
            strict=True,
        )
    ]
    near, at_the_edge = parse_regions(Decoded(token_ids, False, tuple(candidates)), tokenizer, 100, 100)
    label = 0.5 ** (len(token_ids) - 10)
    assert near.score == pytest.approx(label * 0.3)
    assert at_the_edge.score == pytest.approx(label)  # 0.3 + 0.9 is more than 1, as rounding may make it
