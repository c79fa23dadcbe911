"""What people ask of counting -> the rules that are meant, or what is accepted."""

from collections.abc import Iterable
from typing import Any

from florence_tagger.errors import RequestError
from florence_tagger.schemas import Rules, VideoCount

MAX_CLASSES = 100
MAX_NAME = 100  # characters
CLASSES = f"accepted is a list of 1 to {MAX_CLASSES} names of at most {MAX_NAME} characters"


def rules_named(
    classes: Iterable[str] | None = None, merge_iou: float = 0.0, video_count: str = VideoCount.PEAK
) -> Rules:
    """Return the rules of some values; RequestError where one is not accepted."""
    if isinstance(merge_iou, bool) or not isinstance(merge_iou, int | float) or not 0 <= merge_iou <= 1:
        raise RequestError(f"merge_iou is {merge_iou}; accepted is a number from 0 to 1, and 0 is off.")
    if video_count not in tuple(VideoCount):
        raise RequestError(f"video_count is {video_count}; accepted is {' or '.join(VideoCount)}.")
    return Rules(class_names(classes), merge_iou, VideoCount(video_count))


def class_names(classes: Any) -> tuple[str, ...]:
    """Return the names of classes, none for None; RequestError where they are not accepted."""
    if classes is None:
        return ()
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise RequestError(f"classes is {str(classes)[:50]!r}; {CLASSES}.")
    names = tuple(classes)
    if not 1 <= len(names) <= MAX_CLASSES:
        raise RequestError(f"classes has {len(names)} names; {CLASSES}.")
    for name in names:
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
            raise RequestError(f"classes has {str(name)[:50]!r}; {CLASSES}.")
    return names
