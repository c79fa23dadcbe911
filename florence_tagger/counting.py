"""Regions to counts by label."""

from collections import Counter
from collections.abc import Iterable, Sequence

from florence_tagger.schemas import Region, Sighting


def count_document(sightings: Sequence[Sighting]) -> dict[str, int]:
    """How often each label is in a document: on all its pages together, or in the frame of a video that has it most."""
    total: Counter[str] = Counter()
    for sighting in sightings:
        found = Counter(count_regions(sighting.detection.regions))
        total = total | found if sighting.page is None else total + found
    return dict(total)


def count_regions(regions: Iterable[Region]) -> dict[str, int]:
    """How many regions each label has."""
    return dict(Counter(region.label for region in regions))


def most_frequent(counts: dict[str, int], most: int) -> dict[str, int]:
    """The `most` labels with the highest counts (0: all), of equal ones the alphabet's first, in its order."""
    ranked = sorted(counts, key=lambda label: (-counts[label], label))
    return {label: counts[label] for label in sorted(ranked[: most or None])}
