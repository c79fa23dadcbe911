"""The model's detections in a document -> those that are counted: by aliases, classes, suppression, tracks, in order.

Cached results are the model's own, so that no rule is part of a cache key.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from florence_tagger.geometry import iou
from florence_tagger.labels import Aliases, name_classes, normalize
from florence_tagger.schemas import Detection, DocumentResult, FrameResult, Rules, VideoCount
from florence_tagger.tracking import track

Detections = tuple[Detection, ...]


@dataclass(frozen=True)
class Refinement:
    """The rules of a request with the aliases of the settings.

    Attributes:
        rules: of the request.
        aliases: of the settings.
        classes: names of the requested classes by their normalized labels; empty for all labels.
    """

    rules: Rules
    aliases: Aliases
    classes: Mapping[str, str]

    @classmethod
    def of(cls, rules: Rules, aliases: Aliases) -> "Refinement":
        """Return the refinement for some rules.

        Raises:
            RequestError: two classes have the same label.
        """
        return cls(rules, aliases, name_classes(rules.classes, aliases))

    def apply(self, result: DocumentResult) -> DocumentResult:
        """Return a document with only the detections that are counted, under the names of their counts."""
        frame_results = map_detections(result.frames, self._refine)
        is_video = all(frame_result.time_s is not None for frame_result in frame_results)
        if self.rules.video_count is VideoCount.DISTINCT and is_video:
            frame_results = track(frame_results)
        return replace(result, frames=frame_results)

    def _refine(self, detections: Detections) -> Detections:
        """Return the counted ones of a frame's detections."""
        named = ((detection, self._name(detection.label)) for detection in detections)
        requested = tuple(replace(detection, label=name) for detection, name in named if name is not None)
        return suppress(requested, self.rules.merge_iou)

    def _name(self, label: str) -> str | None:
        """Return the name under which a label is counted; None for a label that is not requested."""
        folded = self.aliases.fold(label)
        return self.classes.get(normalize(folded)) if self.classes else folded


def map_detections(
    frame_results: Sequence[FrameResult], change: Callable[[Detections], Detections]
) -> tuple[FrameResult, ...]:
    """Return the frames with `change` applied to the detections of each."""
    return tuple(replace(frame_result, detections=change(frame_result.detections)) for frame_result in frame_results)


def suppress(detections: Detections, merge_iou: float) -> Detections:
    """Apply non-maximum suppression across labels: remove boxes with this IoU with a higher-scored box; 0 is off."""
    if not merge_iou:
        return detections
    kept: list[int] = []
    for index in sorted(range(len(detections)), key=lambda index: -detections[index].score):
        if all(iou(detections[index].box, detections[other].box) < merge_iou for other in kept):
            kept.append(index)
    return tuple(detections[index] for index in sorted(kept))
