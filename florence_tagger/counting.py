"""Detections -> counts and probabilities by label."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from florence_tagger.schemas import Detection, FrameResult, Rules, VideoCount

DEFAULT_LABELS = 5  # per document in an answer of the service, as in its contract
ALL_LABELS = 0  # default of the command and of the Python API, whose output does not show that labels are left out
MAX_LABELS = 10_000


def filter_by_score(frame_results: Iterable[FrameResult], min_score: float) -> tuple[FrameResult, ...]:
    """Return the frame results without the detections of a score below `min_score`."""
    return tuple(
        replace(
            frame_result,
            detections=tuple(detection for detection in frame_result.detections if detection.score >= min_score),
        )
        for frame_result in frame_results
    )


def count_document(frame_results: Iterable[FrameResult], rules: Rules = Rules()) -> dict[str, int]:  # noqa: B008 - frozen
    """Return the count of each label in a document, by the rules with which its detections were refined.

    A count is the sum over all pages; for a video it is the maximum over its frames, or the number of tracks.
    """
    counts = dict.fromkeys(rules.classes, 0)
    for counts in running_counts(frame_results, rules):  # noqa: B007 - the last counts are the document's
        pass
    return counts


def running_counts(frame_results: Iterable[FrameResult], rules: Rules) -> Iterator[dict[str, int]]:
    """Yield for each frame result the counts, as of `count_document`, of the document up to it."""
    total: Counter[str] = Counter()
    tracks: dict[int, str] = {}
    for frame_result in frame_results:
        if rules.video_count is VideoCount.DISTINCT and frame_result.time_s is not None:
            tracks |= {
                detection.track: detection.label for detection in frame_result.detections if detection.track is not None
            }
        else:
            counts = Counter(count_detections(frame_result.detections))
            total = total | counts if frame_result.page is None else total + counts
        yield dict.fromkeys(rules.classes, 0) | total | Counter(tracks.values())


def count_detections(detections: Iterable[Detection]) -> dict[str, int]:
    """Return the number of detections of each label."""
    return dict(Counter(detection.label for detection in detections))


def label_probabilities(frame_results: Iterable[FrameResult], classes: Iterable[str] = ()) -> dict[str, float]:
    """Return the probability of each label in a document: the maximum score of its detections, 0 for other classes."""
    probabilities = dict.fromkeys(classes, 0.0)
    for frame_result in frame_results:
        for detection in frame_result.detections:
            probabilities[detection.label] = max(detection.score, probabilities.get(detection.label, 0.0))
    return probabilities


def max_labels_for(num_labels: int, rules: Rules) -> int:
    """Return the maximum number of labels in the output (0: all): `num_labels`, but all if classes are requested."""
    return ALL_LABELS if rules.classes else num_labels


def top_labels(values: Mapping[str, float], max_labels: int) -> list[str]:
    """Return the `max_labels` labels of the highest values (0: all), by falling value, those of equal value by name."""
    return sorted(values, key=lambda label: (-values[label], label))[: max_labels or None]


def top_counts(frame_results: Iterable[FrameResult], rules: Rules, num_labels: int) -> dict[str, int]:
    """Return the `num_labels` highest counts (0: all) of a document, in alphabetical order of the label."""
    counts = count_document(frame_results, rules)
    return {label: counts[label] for label in sorted(top_labels(counts, max_labels_for(num_labels, rules)))}


def as_content(counts: Mapping[str, int], num_labels: int) -> list[dict[str, int]]:
    """Return the `num_labels` highest counts (0: all) as a document's content.

    The content is a list of dictionaries with one key, in alphabetical order of the label.
    """
    return [{label: counts[label]} for label in sorted(top_labels(counts, num_labels))]
