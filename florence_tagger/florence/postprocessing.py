"""Token ids to regions: a run of text is a label, each four locations of the run after it are a box.

On what the model normally says this equals the reference's regular expressions (`parse_description_with_bboxes` of
transformers' Florence2PostProcessor). What they garble is dropped: locations that no text precedes, and those left over
behind a multiple of four. Labels keep their non-ASCII characters, which the reference removes.
"""

from collections.abc import Sequence
from itertools import groupby

from florence_tagger.florence.tokenizer import LOCATION_BINS, Kind, Tokenizer
from florence_tagger.schemas import Box, Region


def parse_regions(token_ids: Sequence[int], tokenizer: Tokenizer, width: int, height: int) -> tuple[Region, ...]:
    """The regions that `token_ids` describe, in pixels of a picture of `width` and `height`."""
    said = [token_id for token_id in token_ids if tokenizer.kind(token_id) is not Kind.SEQUENCE]
    regions: list[Region] = []
    label = ""
    for kind, group in groupby(said, tokenizer.kind):
        run = list(group)
        if kind is Kind.LOCATION and label:
            bins = [token_id - tokenizer.first_location for token_id in run]
            regions += [Region(label, dequantize(bins[i : i + 4], width, height)) for i in range(0, len(bins) - 3, 4)]
        label = tokenizer.decode(run).strip() if kind is Kind.TEXT else ""
    return tuple(regions)


def dequantize(bins: Sequence[int], width: int, height: int) -> Box:
    """The box whose corners lie in the middle of the location bins x1, y1, x2, y2 (0 to 999 along each side)."""
    x1, y1, x2, y2 = ((location + 0.5) / LOCATION_BINS for location in bins)
    return x1 * width, y1 * height, x2 * width, y2 * height
