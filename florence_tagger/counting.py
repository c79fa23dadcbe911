"""Regions to counts and probabilities by label."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from florence_tagger.schemas import Detection, FrameResult, Rules, VideoCount

DEFAULT_LABELS = 5  # of a document in an answer of the service, as its contract says
ALL_LABELS = 0  # what people see by default: a table that left labels out would not say so
MAX_LABELS = 10_000


def above(frame_results: Iterable[FrameResult], min_score: float) -> tuple[FrameResult, ...]:
    """What was seen, without the detections of a lower score."""
    return tuple(
        replace(frame_result, detections=kept)
        for frame_result in frame_results
        for kept in [tuple(detection for detection in frame_result.detections if detection.score >= min_score)]
    )


def count_document(frame_results: Iterable[FrameResult], rules: Rules = Rules()) -> dict[str, int]:  # noqa: B008 - frozen
    """How often each label is in a document, by the rules that its detections were refined by.

    On all its pages together; of a video in the frame that has it most, or how many tracks have it.
    """
    counts = dict.fromkeys(rules.classes, 0)
    for counts in running_counts(frame_results, rules):  # noqa: B007 - the last ones are the document's
        pass
    return counts


def running_counts(frame_results: Iterable[FrameResult], rules: Rules) -> Iterator[dict[str, int]]:
    """Count a document as far as each of its frame results, as `count_document` does."""
    total: Counter[str] = Counter()
    tracks: dict[int, str] = {}
    for frame_result in frame_results:
        if rules.video_count is VideoCount.DISTINCT and frame_result.time_s is not None:
            tracks |= {one.track: one.label for one in frame_result.detections if one.track is not None}
        else:
            found = Counter(count_detections(frame_result.detections))
            total = total | found if frame_result.page is None else total + found
        yield dict.fromkeys(rules.classes, 0) | total | Counter(tracks.values())


def count_detections(detections: Iterable[Detection]) -> dict[str, int]:
    """How many detections each label has."""
    return dict(Counter(detection.label for detection in detections))


def label_probabilities(frame_results: Iterable[FrameResult], classes: Iterable[str] = ()) -> dict[str, float]:
    """How probable each label is in a document: the largest score of its detections, 0 for a class that has none."""
    found = dict.fromkeys(classes, 0.0)
    for frame_result in frame_results:
        for detection in frame_result.detections:
            found[detection.label] = max(detection.score, found.get(detection.label, 0.0))
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
