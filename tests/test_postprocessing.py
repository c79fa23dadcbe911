"""Token ids to detections, against transformers' own post-processor where the answer is well-formed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.florence.decoding import Decoded, TopK, certainly
from florence_tagger.florence.postprocessing import parse_detections
from florence_tagger.florence.tasks import BANNED_PHRASES
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.schemas import Task
from tests.conftest import CHECKPOINT

LABELS = ("backpack", "dog", "traffic light", "café", "a dog's umbrella!")
BANNED = ("a group", "them")  # as phrases of a caption
BINS = st.integers(0, 999)
POLYGON = st.lists(st.tuples(BINS, BINS), min_size=3, max_size=8)
BOXES = st.lists(st.tuples(BINS, BINS, BINS, BINS), min_size=1, max_size=4)
ANSWERS = st.lists(st.tuples(st.sampled_from(LABELS + BANNED), BOXES), max_size=5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer((DEFAULT_MODEL / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def reference() -> Any:
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    processor.post_processor.banned_grounding_tokens = BANNED_PHRASES  # which the bundled model's has not
    return processor


def said(*parts: str) -> str:
    """What a model says, from labels and boxes like "1 2 3 4"."""
    return "".join(
        "".join(f"<loc_{place}>" for place in part.split()) if part[:1].isdigit() else part for part in parts
    )


def parse(
    tokenizer: Tokenizer, text: str, task: Task = Task.OBJECT_DETECTION, size: tuple[int, int] = (1000, 1000)
) -> list[tuple[str, tuple[float, ...]]]:
    """Labels and boxes, in picture pixels, of what a model says."""
    detections = parse_detections(certainly(tokenizer.encode(text)), tokenizer, task, *size)
    return [(detection.label, detection.box) for detection in detections]


@given(st.sampled_from(Task), ANSWERS, st.integers(1, 4000), st.integers(1, 4000))
def test_well_formed_answers_are_read_as_by_the_reference(
    tokenizer: Tokenizer,
    reference: Any,
    task: Task,
    answer: list[tuple[str, list[tuple[int, ...]]]],
    width: int,
    height: int,
) -> None:
    text = said(*(part for label, boxes in answer for part in (label, *(" ".join(map(str, box)) for box in boxes))))
    theirs = reference.post_process_generation(f"<s>{text}</s>", task=f"<{task}>", image_size=(width, height))
    found = theirs[f"<{task}>"]
    ours = parse(tokenizer, text, task, (width, height))
    # the reference computes in f32 and cuts fractions off; it has a list for each label of open-vocabulary detection
    for (_, box), cut in zip(ours, found["bboxes"], strict=True):
        assert all(-0.01 < side - whole < 1.01 for side, whole in zip(box, cut, strict=True))
    labels = found.get("labels", found.get("bboxes_labels"))
    if task is Task.REGION_PROPOSAL:
        assert {label for label, _ in ours} <= {"region"}
    else:  # the one difference: the reference drops what is not ASCII
        assert [label.encode("ascii", "ignore").decode() for label, _ in ours] == labels


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.lists(POLYGON, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_of_polygons_the_box_around_them_is_taken(
    tokenizer: Tokenizer, reference: Any, answer: list[tuple[str, list[list[tuple[int, int]]]]]
) -> None:
    text = "".join(
        label + "".join("<poly>" + said(*(f"{x} {y}" for x, y in corners)) + "</poly>" for corners in polygons)
        for label, polygons in answer
    )
    task = Task.OPEN_VOCABULARY_DETECTION
    theirs = reference.post_process_generation(f"<s>{text}</s>", task=f"<{task}>", image_size=(1000, 1000))[f"<{task}>"]
    ours = parse(tokenizer, text, task)
    assert [label for label, _ in ours] == theirs["polygons_labels"]
    for (_, box), (corners,) in zip(ours, theirs["polygons"], strict=True):
        xs, ys = corners[::2], corners[1::2]
        assert [int(side) for side in box] == [min(xs), min(ys), max(xs), max(ys)]


def test_labels_keep_their_characters(tokenizer: Tokenizer) -> None:
    assert [label for label, _ in parse(tokenizer, said(" café ", "1 2 3 4"))] == ["café"]


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
        (said("dog<sep>", "1 2 3 4"), []),
        (said("dog", "1 2 3 4", "<sep>", "1 2 3 4"), [("dog", (1, 2, 3, 4))]),
        (said("dog<and>bus", "1 2 3 4"), [("bus", (1, 2, 3, 4))]),
        (said("dog<and>", "1 2 3 4"), [("dog", (1, 2, 3, 4))]),
        (said("<and>", "1 2 3 4"), []),
        (said("dog<sep><and>", "1 2 3 4"), []),
        (said("  ", "1 2 3 4"), []),
        (said("dog", "9 9 3 3"), [("dog", (9, 9, 3, 3))]),
        (said("do</s>g", "1 2 3 4"), [("dog", (1, 2, 3, 4))]),
    ],
)
def test_malformed_answers_lose_only_what_is_malformed(tokenizer: Tokenizer, text: str, expected: Any) -> None:
    assert [(label, tuple(map(int, box))) for label, box in parse(tokenizer, text)] == expected


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize(
    "separated", ["dog|<and>bus|", "dog |<and> bus| ", "<and>dog|bus|", "dog|bus|<and>", "dog|<and><and>bus|"]
)
def test_things_that_and_separates_are_told_apart(tokenizer: Tokenizer, task: Task, separated: str) -> None:
    """Wherever it stands, also between the boxes of one thing, no box and no name is lost."""
    text = separated.replace("|", said("1 2 3 4", "<and>", "5 6 7 8"))
    expected = [("dog", (1, 2, 3, 4)), ("dog", (5, 6, 7, 8)), ("bus", (1, 2, 3, 4)), ("bus", (5, 6, 7, 8))]
    if task is Task.REGION_PROPOSAL:
        expected = [("region", box) for _, box in expected]
    assert [(label, tuple(map(int, box))) for label, box in parse(tokenizer, text, task)] == expected


def test_polygons_that_and_separates(tokenizer: Tokenizer) -> None:
    triangles = said("<poly>", "1 2 3 4 5 9", "</poly>")
    text = f"dog{triangles}<and>{triangles}<and>bus{triangles}"
    found = parse(tokenizer, text, Task.OPEN_VOCABULARY_DETECTION)
    assert [(label, tuple(map(int, box))) for label, box in found] == [
        ("dog", (1, 2, 5, 9)),
        ("dog", (1, 2, 5, 9)),
        ("bus", (1, 2, 5, 9)),
    ]


@given(st.lists(st.integers(-5, 1500), max_size=60), st.sampled_from(Task))
def test_any_token_ids_can_be_read(tokenizer: Tokenizer, token_ids: list[int], task: Task) -> None:
    valid = [token_id for token_id in token_ids if token_id >= 0]
    for detection in parse_detections(certainly(valid), tokenizer, task, 100, 50):
        assert detection.label == detection.label.strip() != ""
        assert 0 < detection.box[0] < 100
        assert 0 < detection.box[1] < 50


def test_boxes_point_at_the_middle_of_their_bins(tokenizer: Tokenizer) -> None:
    assert parse(tokenizer, said("dog", "0 0 999 499"), size=(500, 2000)) == [("dog", (0.25, 1.0, 499.75, 999.0))]


def test_scores_are_of_the_label_and_of_what_lies_near_the_corners(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(said("traffic light", "100 200 300 400", "5 5 5 5"))
    first = tokenizer.first_location
    candidates = [
        TopK(np.log(np.array(chances, np.float32)), np.array([token_id, *others]))
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
    decoded = Decoded(token_ids, False, tuple(candidates))
    near, at_the_edge = parse_detections(decoded, tokenizer, Task.OBJECT_DETECTION, 100, 100)
    label = 0.5 ** (len(token_ids) - 10)
    assert near.score == pytest.approx(label * 0.3)
    assert at_the_edge.score == pytest.approx(label)  # 0.3 + 0.9 is more than 1, as rounding may make it
