"""Token ids to detections: a run of text is a label, each four locations of the run after it are a box.

On what the model normally says this equals the reference's regular expressions (Florence2PostProcessor of
transformers), polygons included, of which the box around each is taken. What they garble is dropped: locations that no
text precedes, and those left over behind a multiple of four. Labels keep their non-ASCII characters, which the
reference removes, and have no part of `<and>`, of which the reference leaves `and>` before the next label.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from florence_tagger.florence.decoding import Decoded, TopK
from florence_tagger.florence.tasks import BANNED_PHRASES, REGION
from florence_tagger.florence.tokenizer import LOCATION_BINS, Kind, Tokenizer
from florence_tagger.schemas import Box, Detection, Task

Said = tuple[int, TopK]  # a token and what it was chosen from
Labelled = tuple[str, float, Sequence[Said]]  # a label, its probability, and the locations x, y, x, y, … of one region

UNNAMED = ("", 1.0)  # what no text precedes
NEARBY_BINS = 10  # 1 % of a side: as near as anybody would mark a corner


def parse_detections(
    decoded: Decoded, tokenizer: Tokenizer, task: Task, width: int, height: int
) -> tuple[Detection, ...]:
    """The detections that the answer to a task describes, in pixels of a picture of `width` and `height`."""
    answer = zip(decoded.token_ids, decoded.candidates, strict=True)
    said = [one for one in answer if tokenizer.kind(one[0]) is not Kind.SEQUENCE]
    in_polygons = any(token_id == tokenizer.polygon_start for token_id, _ in said)
    shapes = polygons if in_polygons and task is Task.OPEN_VOCABULARY_DETECTION else boxes
    detections = []
    for label, likely, corners in shapes(said, tokenizer):
        name = REGION if task is Task.REGION_PROPOSAL else label
        if name and not (task is Task.PHRASE_GROUNDING and name in BANNED_PHRASES):
            bins = [token_id - tokenizer.first_location for token_id, _ in corners]
            score = likely * corner_probability(corners, tokenizer)
            detections.append(Detection(name, dequantize(hull(bins), width, height), score))
    return tuple(detections)


def boxes(said: Sequence[Said], tokenizer: Tokenizer) -> Iterator[Labelled]:
    """Each four locations in a row are a box, of what the text before them says; `<and>` may stand between."""
    label, likely = last = UNNAMED
    for kind, group in groupby(said, lambda one: tokenizer.kind(one[0])):
        run = list(group)
        if kind is Kind.LOCATION:
            yield from ((label, likely, run[place : place + 4]) for place in range(0, len(run) - 3, 4))
            last, (label, likely) = (label, likely), UNNAMED
        elif kind is Kind.SEPARATOR:
            label, likely = (label, likely) if label else last
        elif kind is Kind.TEXT:
            label, likely = read_label(run, tokenizer)
        else:
            label, likely = last = UNNAMED


def polygons(said: Sequence[Said], tokenizer: Tokenizer) -> Iterator[Labelled]:
    """An answer in polygons: what stands between a start and the next start, or the next text, is one."""
    label, likely, corners = "", 1.0, list[Said]()
    for kind, group in groupby(said, lambda one: tokenizer.kind(one[0])):
        run = list(group)
        if kind is Kind.LOCATION:
            corners += run[: len(run) // 2 * 2]
        elif kind is Kind.TEXT or run[-1][0] == tokenizer.polygon_start:
            if corners:
                yield label, likely, corners
            corners = []
            if kind is Kind.TEXT:
                label, likely = read_label(run, tokenizer)
    if corners:
        yield label, likely, corners


def read_label(run: Sequence[Said], tokenizer: Tokenizer) -> tuple[str, float]:
    """A label, trimmed, and its probability: that of its tokens, each after those before it."""
    label = tokenizer.decode([token_id for token_id, _ in run]).strip()
    likely = np.prod([probability(candidates, candidates.token_ids == token_id) for token_id, candidates in run])
    return label, float(likely)


def corner_probability(corners: Sequence[Said], tokenizer: Tokenizer) -> float:
    """The probability that a coordinate lies within `NEARBY_BINS` of what was said: geometric mean of all.

    Of the location token alone it would say how sharp the model is, which spreads over the bins beside: on the bundled
    model 0.06 for boxes that are right and 0.04 for others.
    """
    first = tokenizer.first_location
    sides = []
    for token_id, candidates in corners:
        bins = candidates.token_ids - first
        is_location = (bins >= 0) & (bins < LOCATION_BINS)
        sides.append(probability(candidates, is_location & (np.abs(bins - (token_id - first)) <= NEARBY_BINS)))
    return float(np.prod(sides) ** (1 / len(sides)))


def probability(candidates: TopK, chosen: NDArray[np.bool_]) -> float:
    """The probability of some candidates together, at most 1."""
    return min(float(np.exp(candidates.log_probs[chosen]).sum()), 1.0)


def hull(bins: Sequence[int]) -> Sequence[int]:
    """The box around corners x, y, x, y, …; of two corners it is they as they were said, in whatever order."""
    xs, ys = bins[::2], bins[1::2]
    return bins if len(bins) == 4 else (min(xs), min(ys), max(xs), max(ys))


def dequantize(bins: Sequence[int], width: int, height: int) -> Box:
    """The box whose corners lie in the middle of the location bins x1, y1, x2, y2 (0 to 999 along each side)."""
    x1, y1, x2, y2 = ((location + 0.5) / LOCATION_BINS for location in bins)
    return x1 * width, y1 * height, x2 * width, y2 * height
