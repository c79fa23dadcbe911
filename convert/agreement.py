"""How far two sides' answers for the same pictures agree: token ids, counts, boxes. No side is loaded here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from florence_tagger.counting import count_detections
from florence_tagger.florence.decoding import FloatArray
from florence_tagger.geometry import iou
from florence_tagger.schemas import Box, Detection


@dataclass(frozen=True)
class Answer:
    """What one side says of a picture, and how long it took."""

    token_ids: tuple[int, ...]
    detections: tuple[Detection, ...]
    seconds: float


@dataclass(frozen=True)
class Pair:
    """Both sides' answers for a picture, and the cosine of their image features (mean over tokens)."""

    picture: str
    ours: Answer
    theirs: Answer
    features_cosine: float


@dataclass(frozen=True)
class Agreement:
    """How far both sides agree in a mode of decoding.

    Attributes:
        pictures: compared; ids_equal, counts_equal: of them.
        tokens: that the reference said.
        count_error: mean difference of a label's count in a picture, over the labels that either side found;
            count_errors: the same for each label.
        box_iou: mean over the reference's boxes of the best overlap with a box of the same label.
        features_cosine: mean over pictures.
        seconds, reference_seconds: mean of a picture.
        differing: the pictures whose token ids differ.
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


def sum_up(mode: str, pairs: Sequence[Pair]) -> Agreement:
    """The agreement of the pairs of a mode, of which there must be one at least."""
    differing = tuple(pair.picture for pair in pairs if pair.ours.token_ids != pair.theirs.token_ids)
    counts = [[count_detections(side.detections) for side in (pair.ours, pair.theirs)] for pair in pairs]
    apart = [count_errors(ours, theirs) for ours, theirs in counts]
    errors: dict[str, list[int]] = {}
    for of_pair in apart:
        for label, error in of_pair.items():
            errors.setdefault(label, []).append(error)
    overlaps = [overlap for pair in pairs for overlap in best_overlaps(pair)]
    return Agreement(
        mode=mode,
        pictures=len(pairs),
        ids_equal=len(pairs) - len(differing),
        counts_equal=sum(not any(of_pair.values()) for of_pair in apart),
        tokens=sum(len(pair.theirs.token_ids) for pair in pairs),
        count_error=mean([error for one in errors.values() for error in one], empty=0.0),
        count_errors={label: mean(errors[label], empty=0.0) for label in sorted(errors)},
        box_iou=mean(overlaps, empty=1.0),
        features_cosine=mean([pair.features_cosine for pair in pairs], empty=1.0),
        seconds=mean([pair.ours.seconds for pair in pairs], empty=0.0),
        reference_seconds=mean([pair.theirs.seconds for pair in pairs], empty=0.0),
        differing=differing,
    )


def mean(values: Sequence[float], empty: float) -> float:
    """The mean, or `empty` where there is nothing to take it of."""
    return float(np.mean(values)) if values else empty


def count_errors(counts: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    """Return by how much the counts of each label differ that either side found."""
    return {label: abs(counts.get(label, 0) - others.get(label, 0)) for label in counts.keys() | others.keys()}


def best_overlaps(pair: Pair) -> list[float]:
    """For each box of the reference the best intersection over union with one of ours of the same label."""
    return [
        max((overlap(one.box, other.box) for other in pair.ours.detections if other.label == one.label), default=0.0)
        for one in pair.theirs.detections
    ]


def overlap(box: Box, other: Box) -> float:
    """Return intersection over union, 1 for equal boxes even if they have no area."""
    return 1.0 if box == other else iou(box, other)


def cosine(a: FloatArray, b: FloatArray) -> float:
    """The cosine of two arrays' vectors along the last axis, mean over the others."""
    products = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float(products.mean())
