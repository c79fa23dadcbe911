"""Counts and detections of files: the interface that `Tagger` and `Client` share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from florence_tagger.counting import ALL_LABELS, MAX_LABELS, top_counts
from florence_tagger.errors import RequestError
from florence_tagger.rules import parse_rules
from florence_tagger.schemas import DocumentResult, File, Rules, Task, Tiles, VideoCount


class ObjectCounter(ABC):
    """Base class of the ways to count the objects in files: by a model in this process, or by a service."""

    def count(
        self,
        file: File,
        prompt: str = Task.OBJECT_DETECTION,
        text: str = "",
        num_labels: int = ALL_LABELS,
        min_score: float = 0.0,
        classes: Iterable[str] | None = None,
        merge_iou: float = 0.0,
        video_count: str = VideoCount.PEAK,
        tiles: Tiles | None = None,
    ) -> dict[str, int]:
        """Return the number of objects of each label in a picture or video, in alphabetical order of the labels.

        For a file with several pages it is the sum over them, for a video it depends on `video_count`.

        Args:
            file: path or bytes of the file.
            prompt: name of a task, such as `OD` or `OPEN_VOCABULARY_DETECTION`.
            text: the objects to detect, for the tasks that need it.
            num_labels: maximum number of labels, those with the highest counts; 0, the default, is all.
            min_score: boxes of a lower score, 0 to 1, are left out.
            classes: the only labels to count, each of them also with a count of 0; 1 to 100 names.
            merge_iou: of boxes whose intersection over union is this or more, only the one of the highest score is
                kept; 0 is off.
            video_count: `peak`, the maximum over all frames, or `distinct`, the number of different objects that pass.
            tiles: per side of each picture, 1 to 6 or "auto"; by default those of the settings.

        Raises:
            DocumentError: the file can't be read, is not accepted or is damaged; its text is the reason.
            RequestError: an argument has a value that is not accepted.
            NotReadyError: the counter is closed.
            TaggerError: the service can't be reached, or processes no file at all.
        """
        if not isinstance(num_labels, int) or not 0 <= num_labels <= MAX_LABELS:
            raise RequestError(f"num_labels is {num_labels}; accepted is an integer from 0 to {MAX_LABELS}.")
        rules = parse_rules(classes, merge_iou, video_count)
        return top_counts(self.detect_with(file, prompt, text, min_score, rules, tiles).frames, rules, num_labels)

    def detect(
        self,
        file: File,
        prompt: str = Task.OBJECT_DETECTION,
        text: str = "",
        min_score: float = 0.0,
        classes: Iterable[str] | None = None,
        merge_iou: float = 0.0,
        video_count: str = VideoCount.PEAK,
        tiles: Tiles | None = None,
    ) -> DocumentResult:
        """Return the detections of each page or sampled frame: labels, scores, and boxes in pixels as displayed.

        Arguments and errors are those of `count`. With `distinct` the detections have the numbers of their tracks.
        """
        return self.detect_with(file, prompt, text, min_score, parse_rules(classes, merge_iou, video_count), tiles)

    @abstractmethod
    def detect_with(
        self, file: File, prompt: str, text: str, min_score: float, rules: Rules, tiles: Tiles | None
    ) -> DocumentResult:
        """Return the detections of a file by rules that are accepted; other arguments and errors as of `count`."""

    @abstractmethod
    def close(self) -> None:
        """End what it owns; running calls raise TaggerError. It may be called more than once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
