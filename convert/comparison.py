"""A checkpoint in PyTorch beside the model folder made from it: the same pictures through both.

Both sides' answers are read by the runtime's own parsers, so that what differs is what the models say.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint, describe_weights, read_checkpoint
from convert.errors import ConversionError
from convert.pictures import read_frame
from convert.reference import Reference
from florence_tagger.counting import count_regions
from florence_tagger.florence.decoding import FloatArray, GenerationSettings, certainly
from florence_tagger.florence.detector import Detector
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.folder import MANIFEST, ModelFolder, check_hashes, read_folder, read_json
from florence_tagger.florence.postprocessing import parse_regions
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.schemas import Box, Region, Task


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


class Comparison:
    """A checkpoint folder and a model folder, both loaded.

    Raises:
        ConversionError: the folder was not made from the checkpoint: weights, size of pictures, tokenizer or generation
            settings are others.
        ModelError: a file of the folder is not as its manifest says.
    """

    def __init__(self, checkpoint: Path, ir: Path, options: RuntimeOptions) -> None:
        original = read_checkpoint(checkpoint)
        self._folder = read_folder(ir)
        check_origin(original, self._folder)
        self._reference = Reference(original)
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
        frame = read_frame(picture, self._folder.image_size)
        started = time.perf_counter()
        ours = self._detector.generate(frame.pixels, settings)
        between = time.perf_counter()
        theirs = certainly(self._reference.generate(picture, settings))
        ended = time.perf_counter()
        if picture not in self._cosines:  # which no mode of decoding changes
            features = self._detector.image_features(frame.pixels), self._reference.image_features(picture)
            self._cosines[picture] = cosine(*features)
        read = partial(
            parse_regions,
            tokenizer=self._tokenizer,
            task=Task.OBJECT_DETECTION,
            width=frame.width,
            height=frame.height,
        )
        return Pair(
            picture.name,
            Answer(ours.token_ids, read(ours), between - started),
            Answer(theirs.token_ids, read(theirs), ended - between),
            self._cosines[picture],
        )


def check_origin(checkpoint: Checkpoint, folder: ModelFolder) -> None:
    """ConversionError where a model folder was made from something else than a checkpoint."""
    check_hashes(folder)
    source = read_json(folder.path / MANIFEST).get("source")
    made_from = source.get("weights_sha256") if isinstance(source, dict) else None
    differing = {
        "weights": made_from != describe_weights(checkpoint)["weights_sha256"],
        "size of pictures": folder.image_size != checkpoint.preprocessing.image_size,
        "tokenizer": folder.read_text("tokenizer.json") != checkpoint.tokenizer_json,
        "generation settings": folder.generation != checkpoint.generation,
    }
    if any(differing.values()):
        named = ", ".join(name for name, differs in differing.items() if differs)
        raise ConversionError(f"{folder.path} was made from another checkpoint than {checkpoint.path}: other {named}.")


def is_lossless(manifest: dict[str, Any]) -> bool:
    """Whether a model folder stores the weights of its checkpoint unrounded, so that token ids must be equal."""
    precision, stored = manifest.get("precision"), manifest.get("source", {}).get("dtypes")
    return precision == "fp32" or (precision == "fp16" and stored == ["float16"])


def sum_up(mode: str, pairs: Sequence[Pair]) -> Agreement:
    """The agreement of the pairs of a mode, of which there must be one at least."""
    differing = tuple(pair.picture for pair in pairs if pair.ours.token_ids != pair.theirs.token_ids)
    errors: dict[str, list[int]] = {}
    for pair in pairs:
        for label, error in count_errors(pair).items():
            errors.setdefault(label, []).append(error)
    overlaps = [overlap for pair in pairs for overlap in best_overlaps(pair)]
    return Agreement(
        mode=mode,
        pictures=len(pairs),
        ids_equal=len(pairs) - len(differing),
        counts_equal=sum(not any(count_errors(pair).values()) for pair in pairs),
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


def count_errors(pair: Pair) -> dict[str, int]:
    """By how much the counts of each label differ that either side found."""
    ours, theirs = count_regions(pair.ours.regions), count_regions(pair.theirs.regions)
    return {label: abs(ours.get(label, 0) - theirs.get(label, 0)) for label in ours.keys() | theirs.keys()}


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
