"""A checkpoint in PyTorch beside the model folder made from it: the same pictures through both.

Both sides' answers are read by the runtime's own parsers, so that what differs is what the models say.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convert.checkpoint import read_checkpoint
from convert.errors import ConversionError
from convert.precision import MOST_PIXELS, PICTURES, picture_files
from convert.reference import Reference
from florence_tagger.counting import count_regions
from florence_tagger.florence.decoding import FloatArray, GenerationSettings
from florence_tagger.florence.detector import Detector
from florence_tagger.florence.folder import read_folder
from florence_tagger.florence.postprocessing import parse_regions
from florence_tagger.florence.runtime import RuntimeOptions
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.media.images import open_picture
from florence_tagger.schemas import Box, Region


@dataclass(frozen=True)
class Answer:
    """What one side says of a picture, and how long it took."""

    token_ids: tuple[int, ...]
    regions: tuple[Region, ...]
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
        count_error: mean difference of a label's count in a picture, over the labels that either side found.
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
    box_iou: float
    features_cosine: float
    seconds: float
    reference_seconds: float
    differing: tuple[str, ...]


class Comparison:
    """A checkpoint folder and a model folder, both loaded."""

    def __init__(self, checkpoint: Path, ir: Path, options: RuntimeOptions) -> None:
        self._reference = Reference(read_checkpoint(checkpoint))
        self._folder = read_folder(ir)
        self._detector = Detector(self._folder, options, self._folder.generation)
        self._cosines: dict[Path, float] = {}
        self._tokenizer = Tokenizer(self._folder.read_text("tokenizer.json"))

    def modes(self, max_new_tokens: int | None) -> dict[str, GenerationSettings]:
        """Greedy and the checkpoint's own settings, by a name for each."""
        own = self._detector.generation
        own = replace(own, max_new_tokens=min(max_new_tokens or own.max_new_tokens, own.max_new_tokens))
        greedy = replace(own, num_beams=1)
        return {"greedy": greedy} | ({f"{own.num_beams} beams": own} if own.num_beams > 1 else {})

    def pair(self, picture: Path, settings: GenerationSettings) -> Pair:
        """Both sides' answers for a picture; DocumentError where it can't be read."""
        frame = open_picture(picture.read_bytes(), self._folder.image_size, MOST_PIXELS)
        started = time.perf_counter()
        ours = self._detector.generate(frame.pixels, settings).token_ids
        between = time.perf_counter()
        theirs = self._reference.generate(picture, settings)
        ended = time.perf_counter()
        if picture not in self._cosines:  # which no mode of decoding changes
            features = self._detector.image_features(frame.pixels), self._reference.image_features(picture)
            self._cosines[picture] = cosine(*features)
        size = (frame.width, frame.height)
        return Pair(
            picture.name,
            Answer(ours, parse_regions(ours, self._tokenizer, *size), between - started),
            Answer(theirs, parse_regions(theirs, self._tokenizer, *size), ended - between),
            self._cosines[picture],
        )


def sum_up(mode: str, pairs: Sequence[Pair]) -> Agreement:
    """The agreement of the pairs of a mode, of which there must be one at least."""
    differing = tuple(pair.picture for pair in pairs if pair.ours.token_ids != pair.theirs.token_ids)
    errors = [error for pair in pairs for error in count_errors(pair)]
    overlaps = [overlap for pair in pairs for overlap in best_overlaps(pair)]
    return Agreement(
        mode=mode,
        pictures=len(pairs),
        ids_equal=len(pairs) - len(differing),
        counts_equal=sum(not any(count_errors(pair)) for pair in pairs),
        tokens=sum(len(pair.theirs.token_ids) for pair in pairs),
        count_error=mean(errors, empty=0.0),
        box_iou=mean(overlaps, empty=1.0),
        features_cosine=mean([pair.features_cosine for pair in pairs], empty=1.0),
        seconds=mean([pair.ours.seconds for pair in pairs], empty=0.0),
        reference_seconds=mean([pair.theirs.seconds for pair in pairs], empty=0.0),
        differing=differing,
    )


def mean(values: Sequence[float], empty: float) -> float:
    """The mean, or `empty` where there is nothing to take it of."""
    return float(np.mean(values)) if values else empty


def count_errors(pair: Pair) -> list[int]:
    """By how much the counts of each label differ that either side found."""
    ours, theirs = count_regions(pair.ours.regions), count_regions(pair.theirs.regions)
    return [abs(ours.get(label, 0) - theirs.get(label, 0)) for label in ours.keys() | theirs.keys()]


def best_overlaps(pair: Pair) -> list[float]:
    """For each box of the reference the best intersection over union with one of ours of the same label."""
    return [
        max((iou(one.box, other.box) for other in pair.ours.regions if other.label == one.label), default=0.0)
        for one in pair.theirs.regions
    ]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 1 for equal ones of no area."""
    if a == b:
        return 1.0
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - common
    return common / area if area > 0 else 0.0


def cosine(a: FloatArray, b: FloatArray) -> float:
    """The cosine of two arrays' vectors along the last axis, mean over the others."""
    products = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float(products.mean())


def find_pictures(folder: Path, limit: int | None) -> list[Path]:
    """The pictures of a folder by name, the first `limit` of them; ConversionError where there are none."""
    pictures = picture_files(folder)[:limit]
    if not pictures:
        raise ConversionError(f"{folder} has no pictures ({', '.join(PICTURES)}).")
    return pictures
