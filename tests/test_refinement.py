"""The model's detections -> those that are counted: aliases, classes, suppression."""

import pytest

from florence_tagger.counting import as_content, count_document, label_probabilities, max_labels_for
from florence_tagger.errors import RequestError
from florence_tagger.geometry import iou
from florence_tagger.labels import Aliases
from florence_tagger.refinement import Refinement, suppress
from florence_tagger.rules import parse_rules
from florence_tagger.schemas import Box, Detection, DocumentResult, FrameResult, Rules, VideoCount

ALIASES = Aliases({"car": "car", "vehicle": "car"})
SQUARE: Box = (0.0, 0.0, 10.0, 10.0)
HALF: Box = (0.0, 0.0, 10.0, 5.0)
AWAY: Box = (20.0, 0.0, 30.0, 10.0)
DETECTIONS = (Detection("vehicle", SQUARE, 0.9), Detection("Car", AWAY, 0.8), Detection("dog", HALF, 0.7))


def refined(
    rules: Rules, detections: tuple[Detection, ...] = DETECTIONS, aliases: Aliases = ALIASES
) -> tuple[FrameResult, ...]:
    """Return a picture's detections, refined by some rules."""
    return Refinement.of(rules, aliases).apply(DocumentResult((FrameResult(detections),))).frames


def test_refinement_without_rules_keeps_all_detections() -> None:
    assert refined(Rules(), aliases=Aliases())[0].detections == DETECTIONS


def test_aliases_are_folded_before_counting() -> None:
    assert count_document(refined(Rules())) == {"car": 2, "dog": 1}


def test_classes_alone_are_counted_each_also_with_0() -> None:
    rules = Rules(classes=("Vehicles", "cat"))
    counts = count_document(refined(rules), rules)
    assert counts == {"Vehicles": 2, "cat": 0}
    assert as_content(counts, max_labels_for(1, rules)) == [{"Vehicles": 2}, {"cat": 0}]
    assert label_probabilities(refined(rules), rules.classes) == {"Vehicles": 0.9, "cat": 0.0}


def test_num_labels_limits_counts_without_classes() -> None:
    assert max_labels_for(1, Rules()) == 1


def test_classes_with_the_same_label_are_refused() -> None:
    with pytest.raises(RequestError, match="'car' and 'vehicles'"):
        Refinement.of(Rules(classes=("car", "vehicles")), ALIASES)


@pytest.mark.parametrize(
    ("merge_iou", "labels"),
    [(0.0, ["vehicle", "Car", "dog"]), (0.5, ["vehicle", "Car"]), (0.51, ["vehicle", "Car", "dog"])],
)
def test_suppress_keeps_the_higher_score_of_two_that_overlap(merge_iou: float, labels: list[str]) -> None:
    for detections in (DETECTIONS, DETECTIONS[::-1]):
        assert sorted(item.label for item in suppress(detections, merge_iou)) == sorted(labels)


def test_suppress_at_1_merges_equal_boxes_alone() -> None:
    twice = (Detection("car", SQUARE, 0.5), Detection("truck", SQUARE, 0.6), Detection("dog", HALF, 0.9))
    assert [item.label for item in suppress(twice, 1.0)] == ["truck", "dog"]


def test_labels_that_are_not_requested_suppress_nothing() -> None:
    rules = Rules(classes=("dog",), merge_iou=0.5)
    assert count_document(refined(rules), rules) == {"dog": 1}


def test_iou_of_boxes_without_an_area_is_0() -> None:
    assert iou((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0)) == 0.0
    assert iou(SQUARE, HALF) == 0.5


@pytest.mark.parametrize("page", [None, 1])
def test_distinct_of_pictures_and_pages_is_their_count(page: int | None) -> None:
    rules = Rules(video_count=VideoCount.DISTINCT)
    result = DocumentResult((FrameResult(DETECTIONS, page=page),))
    frame_results = Refinement.of(rules, Aliases()).apply(result).frames
    assert count_document(frame_results, rules) == {"vehicle": 1, "Car": 1, "dog": 1}
    assert all(item.track is None for item in frame_results[0].detections)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"classes": "car"}, "classes is 'car'"),
        ({"classes": []}, "has 0 names"),
        ({"classes": ["a"] * 101}, "has 101 names"),
        ({"classes": [" "]}, "classes has ' '"),
        ({"classes": ["x" * 101]}, "at most 100 characters"),
        ({"classes": [1]}, "classes has '1'"),
        ({"classes": 5}, "classes is '5'"),
        ({"merge_iou": 1.1}, "merge_iou is 1.1"),
        ({"merge_iou": float("nan")}, "merge_iou is nan"),
        ({"merge_iou": True}, "merge_iou is True"),
        ({"video_count": "most"}, "peak or distinct"),
    ],
)
def test_parse_rules_reports_accepted_values(given: dict[str, object], reason: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_rules(**given)  # type: ignore[arg-type]
    assert reason in str(refused.value)


def test_parse_rules_takes_any_iterable_of_names() -> None:
    rules = parse_rules((name for name in ("car", "dog")), 0.5, "distinct")
    assert rules == Rules(("car", "dog"), 0.5, VideoCount.DISTINCT)
