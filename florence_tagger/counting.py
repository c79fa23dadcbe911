"""Regions to counts and probabilities by label."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from florence_tagger.schemas import Region, Rules, Sighting, VideoCount

DEFAULT_LABELS = 5  # of a document in an answer of the service, as its contract says
ALL_LABELS = 0  # what people see by default: a table that left labels out would not say so
MOST_LABELS = 10_000


def above(sightings: Iterable[Sighting], min_score: float) -> tuple[Sighting, ...]:
    """What was seen, without the regions of a lower score."""
    return tuple(
        replace(sighting, detection=replace(sighting.detection, regions=kept))
        for sighting in sightings
        for kept in [tuple(region for region in sighting.detection.regions if region.score >= min_score)]
    )


def count_document(sightings: Iterable[Sighting], rules: Rules = Rules()) -> dict[str, int]:  # noqa: B008 - frozen
    """How often each label is in a document, by the rules that its regions were refined by.

    On all its pages together; of a video in the frame that has it most, or how many tracks have it.
    """
    counts = dict.fromkeys(rules.classes, 0)
    for counts in running_counts(sightings, rules):  # noqa: B007 - the last ones are the document's
        pass
    return counts


def running_counts(sightings: Iterable[Sighting], rules: Rules) -> Iterator[dict[str, int]]:
    """Count a document as far as each of its sightings, as `count_document` does."""
    total: Counter[str] = Counter()
    tracks: dict[int, str] = {}
    for sighting in sightings:
        if rules.video_count is VideoCount.DISTINCT and sighting.time_s is not None:
            tracks |= {one.track: one.label for one in sighting.detection.regions if one.track is not None}
        else:
            found = Counter(count_regions(sighting.detection.regions))
            total = total | found if sighting.page is None else total + found
        yield dict.fromkeys(rules.classes, 0) | total | Counter(tracks.values())


def count_regions(regions: Iterable[Region]) -> dict[str, int]:
    """How many regions each label has."""
    return dict(Counter(region.label for region in regions))


def label_probabilities(sightings: Iterable[Sighting], classes: Iterable[str] = ()) -> dict[str, float]:
    """How probable each label is in a document: the largest score of its regions, 0 for a class that has none."""
    found = dict.fromkeys(classes, 0.0)
    for sighting in sightings:
        for region in sighting.detection.regions:
            found[region.label] = max(region.score, found.get(region.label, 0.0))
    return found


def labels_kept(num_labels: int, rules: Rules) -> int:
    """How many labels of a document are told (0: all): all classes that were asked for, whatever `num_labels` is."""
    return ALL_LABELS if rules.classes else num_labels


def highest(values: Mapping[str, float], most: int) -> list[str]:
    """The `most` labels of the highest values (0: all), the highest first, of equal ones the alphabet's first."""
    return sorted(values, key=lambda label: (-values[label], label))[: most or None]


def as_content(counts: Mapping[str, int], num_labels: int) -> list[dict[str, int]]:
    """The `num_labels` highest counts (0: all) as a document's content: one-key dictionaries in alphabetical order."""
    return [{label: counts[label]} for label in sorted(highest(counts, num_labels))]
