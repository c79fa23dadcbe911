"""Token ids to regions: a run of text is a label, each four locations of the run after it are a box.

On what the model normally says this equals the reference's regular expressions (`parse_description_with_bboxes` of
transformers' Florence2PostProcessor). What they garble is dropped: locations that no text precedes, and those left over
behind a multiple of four. Labels keep their non-ASCII characters, which the reference removes.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from florence_tagger.florence.decoding import Candidates, Decoded
from florence_tagger.florence.tokenizer import LOCATION_BINS, Kind, Tokenizer
from florence_tagger.schemas import Box, Region

Said = tuple[int, Candidates]  # a token and what it was chosen from

NEARBY_BINS = 10  # 1 % of a side: as near as anybody would mark a corner


def parse_regions(decoded: Decoded, tokenizer: Tokenizer, width: int, height: int) -> tuple[Region, ...]:
    """The regions that an answer describes, in pixels of a picture of `width` and `height`."""
    answer = zip(decoded.token_ids, decoded.candidates, strict=True)
    said = [one for one in answer if tokenizer.kind(one[0]) is not Kind.SEQUENCE]
    regions: list[Region] = []
    label, likely = "", 1.0
    for kind, group in groupby(said, lambda one: tokenizer.kind(one[0])):
        run = list(group)
        if kind is Kind.LOCATION and label:
            for corners in (run[i : i + 4] for i in range(0, len(run) - 3, 4)):
                bins = [token_id - tokenizer.first_location for token_id, _ in corners]
                score = likely * box_probability(corners, tokenizer)
                regions.append(Region(label, dequantize(bins, width, height), score))
        label = tokenizer.decode([token_id for token_id, _ in run]).strip() if kind is Kind.TEXT else ""
        likely = label_probability(run)
    return tuple(regions)


def label_probability(label: Sequence[Said]) -> float:
    """The probability of a label: that of its tokens, each after those before it."""
    return float(np.prod([probability(candidates, candidates.token_ids == token_id) for token_id, candidates in label]))


def box_probability(corners: Sequence[Said], tokenizer: Tokenizer) -> float:
    """The probability that a coordinate lies within `NEARBY_BINS` of what was said: geometric mean of the four.

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


def probability(candidates: Candidates, chosen: NDArray[np.bool_]) -> float:
    """The probability of some candidates together, at most 1."""
    return min(float(np.exp(candidates.log_probs[chosen]).sum()), 1.0)


def dequantize(bins: Sequence[int], width: int, height: int) -> Box:
    """The box whose corners lie in the middle of the location bins x1, y1, x2, y2 (0 to 999 along each side)."""
    x1, y1, x2, y2 = ((location + 0.5) / LOCATION_BINS for location in bins)
    return x1 * width, y1 * height, x2 * width, y2 * height
