"""What the model found in a document -> what is counted: aliases, classes, suppression, tracks, in this order.

Results are kept as the model gave them, so that no rule is part of a result's key.
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
        classes: those that are asked for, by the normalized labels that they stand for; empty for all labels.
    """

    rules: Rules
    aliases: Aliases
    classes: Mapping[str, str]

    @classmethod
    def of(cls, rules: Rules, aliases: Aliases) -> "Refinement":
        """Return the refinement by some rules; RequestError where two classes are the same thing."""
        return cls(rules, aliases, name_classes(rules.classes, aliases))

    def apply(self, result: DocumentResult) -> DocumentResult:
        """Return a document with what is counted, under the labels that it is counted by."""
        frame_results = each(result.frames, self._counted)
        if self.rules.video_count is VideoCount.DISTINCT and all(one.time_s is not None for one in frame_results):
            frame_results = track(frame_results)
        return replace(result, frames=frame_results)

    def _counted(self, detections: Detections) -> Detections:
        """Return what is counted of the detections of a frame."""
        named = (replace(one, label=label) for one in detections if (label := self._label(one.label)) is not None)
        return suppress(tuple(named), self.rules.merge_iou)

    def _label(self, label: str) -> str | None:
        """Return what a label is counted by; None where it is not asked for."""
        folded = self.aliases.fold(label)
        return self.classes.get(normalize(folded)) if self.classes else folded


def each(frame_results: Sequence[FrameResult], change: Callable[[Detections], Detections]) -> tuple[FrameResult, ...]:
    """Return frames with their detections changed."""
    return tuple(replace(one, detections=change(one.detections)) for one in frame_results)


def suppress(detections: Detections, merge_iou: float) -> Detections:
    """Leave out each region that a stronger one, of any label, covers with this intersection over union; 0 is off."""
    if not merge_iou:
        return detections
    kept: list[int] = []
    for place in sorted(range(len(detections)), key=lambda place: -detections[place].score):
        if all(iou(detections[place].box, detections[other].box) < merge_iou for other in kept):
            kept.append(place)
    return tuple(detections[place] for place in sorted(kept))
