"""Agreement of two models' answers for the same pictures: token ids, counts and boxes; loads no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from florence_tagger.counting import count_detections
from florence_tagger.florence.decoding import FloatArray
from florence_tagger.geometry import iou
from florence_tagger.schemas import Box, Detection


@dataclass(frozen=True)
class Answer:
    """One model's answer for a picture, and the seconds it took."""

    token_ids: tuple[int, ...]
    detections: tuple[Detection, ...]
    seconds: float


@dataclass(frozen=True)
class AnswerPair:
    """The answers of a model and of the reference for a picture, and the cosine of their image features.

    Attributes:
        features_cosine: mean over the tokens.
    """

    picture: str
    answer: Answer
    reference: Answer
    features_cosine: float


@dataclass(frozen=True)
class Agreement:
    """The agreement of a model with the reference in one decoding mode.

    Attributes:
        pictures: number of pictures compared.
        ids_equal: number of pictures with equal token ids.
        counts_equal: number of pictures with equal counts.
        tokens: number of tokens that the reference generated.
        count_error: mean difference of a label's count in a picture, over the labels that either model detected.
        count_errors: the same for each label.
        box_iou: mean over the reference's boxes of the best overlap with a box of the same label.
        features_cosine: mean over the pictures.
        seconds: mean per picture.
        reference_seconds: mean per picture.
        differing: the names of the pictures whose token ids differ.
    """

    mode: str
    pictures: int
    ids_equal: int
    counts_equal: int
    tokens: int
    count_error: float
    count_errors: dict[str, float]
    box_iou: float
    features_cosine: float
    seconds: float
    reference_seconds: float
    differing: tuple[str, ...]


def summarize(mode: str, pairs: Sequence[AnswerPair]) -> Agreement:
    """Return the agreement over the answers of a decoding mode; `pairs` must not be empty."""
    differing = tuple(pair.picture for pair in pairs if pair.answer.token_ids != pair.reference.token_ids)
    pair_errors = [
        count_errors(count_detections(pair.answer.detections), count_detections(pair.reference.detections))
        for pair in pairs
    ]
    label_errors: dict[str, list[int]] = {}
    for errors in pair_errors:
        for label, error in errors.items():
            label_errors.setdefault(label, []).append(error)
    overlaps = [overlap for pair in pairs for overlap in best_overlaps(pair)]
    return Agreement(
        mode=mode,
        pictures=len(pairs),
        ids_equal=len(pairs) - len(differing),
        counts_equal=sum(not any(errors.values()) for errors in pair_errors),
        tokens=sum(len(pair.reference.token_ids) for pair in pairs),
        count_error=mean([error for errors in label_errors.values() for error in errors], empty=0.0),
        count_errors={label: mean(label_errors[label], empty=0.0) for label in sorted(label_errors)},
        box_iou=mean(overlaps, empty=1.0),
        features_cosine=mean([pair.features_cosine for pair in pairs], empty=1.0),
        seconds=mean([pair.answer.seconds for pair in pairs], empty=0.0),
        reference_seconds=mean([pair.reference.seconds for pair in pairs], empty=0.0),
        differing=differing,
    )


def mean(values: Sequence[float], empty: float) -> float:
    """Return the mean of the values, or `empty` if there are none."""
    return float(np.mean(values)) if values else empty


def count_errors(counts: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    """Return the absolute difference of the two counts of each label that occurs in either."""
    return {label: abs(counts.get(label, 0) - others.get(label, 0)) for label in counts.keys() | others.keys()}


def best_overlaps(pair: AnswerPair) -> list[float]:
    """Return the best intersection over union of each reference box with a box of the same label in the answer."""
    boxes: dict[str, list[Box]] = {}
    for detection in pair.answer.detections:
        boxes.setdefault(detection.label, []).append(detection.box)
    return [
        max((overlap(expected.box, box) for box in boxes.get(expected.label, ())), default=0.0)
        for expected in pair.reference.detections
    ]


def overlap(box: Box, other: Box) -> float:
    """Return the intersection over union; 1 for equal boxes, even if they have no area."""
    return 1.0 if box == other else iou(box, other)


def cosine(a: FloatArray, b: FloatArray) -> float:
    """Return the cosine of the vectors along the last axis of two arrays, averaged over the other axes."""
    products = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float(products.mean())
