"""A file and what was found in it -> a picture, or a video of its frames, with boxes, labels and counts on them."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np

from florence_tagger.counting import count_document, running_counts
from florence_tagger.errors import DocumentError
from florence_tagger.media.drawing import colours_of, draw_counts, draw_detections
from florence_tagger.media.frames import frame_at, sampled_frames
from florence_tagger.media.limits import DecodeOptions
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.video_writer import write_video
from florence_tagger.schemas import DocumentResult, FrameResult, Rules, UInt8Array, VideoCount

VIDEO_SUFFIX = ".webm"
SAME_SECONDS = 0.01  # by which the times of one frame may differ: answers have rounded ones
LAST_SECONDS = 1.0  # that the frame of a video is shown that is its only one
COUNTS = {VideoCount.PEAK: "{label}: {now}, max {so_far}", VideoCount.DISTINCT: "{label}: {now}, {so_far} so far"}
OTHER_FRAMES = "the service looks at other frames of videos than the settings here say"


@dataclass(frozen=True)
class Annotator:
    """Draws what was found in files on their frames; for any thread.

    Attributes:
        limits, sampling: of the files.
        rules: by which they are counted.
    """

    limits: DecodeOptions
    sampling: Sampling
    rules: Rules
    _one_video: Lock = field(default_factory=Lock, repr=False, compare=False)  # for an encoder's memory

    def annotate(self, target: Path, content: bytes, found: DocumentResult, labels: Sequence[str]) -> None:
        """Write a video with all frames that were looked at, of pictures and pages the one that has most.

        Args:
            target: where the picture goes; a video has `VIDEO_SUFFIX` in the place of its last suffix.
            content: the file, in which there is something to look at.
            labels: those whose counts are written on the frames of a video.

        Raises:
            DocumentError: the file can't be drawn on.
            OSError: the drawing can't be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        if found.frames[0].time_s is None:
            self._write_picture(target, content, found.frames)
        else:
            with self._one_video:
                self._write_video(target.with_suffix(VIDEO_SUFFIX), content, found.frames, labels)

    def _write_picture(self, target: Path, content: bytes, frame_results: Sequence[FrameResult]) -> None:
        fullest = max(range(len(frame_results)), key=lambda place: len(frame_results[place].detections))
        frame = frame_at(content, fullest, self.limits, self.sampling)
        frame_result = frame_results[fullest]
        draw_detections(frame.pixels, frame_result.detections, frame_result.tiles).save(target, "PNG")

    def _write_video(
        self, target: Path, content: bytes, frame_results: Sequence[FrameResult], labels: Sequence[str]
    ) -> None:
        edges = edges_of([frame_result.time_s or 0.0 for frame_result in frame_results])
        with target.open("wb") as file, closing(self._drawn(content, frame_results, labels)) as pictures:
            try:
                write_video(file, pictures, edges)
            except BaseException:
                target.unlink(missing_ok=True)  # a part of a video looks like a whole one
                raise

    def _drawn(
        self, content: bytes, frame_results: Sequence[FrameResult], labels: Sequence[str]
    ) -> Generator[UInt8Array]:
        """Draw on the frames of a video one after the other: uint8 RGB (H, W, 3), each at its own size."""
        detections = (detection for frame_result in frame_results for detection in frame_result.detections)
        colours = colours_of([*(detection.label for detection in detections), *labels])
        with closing(sampled_frames(BytesIO(content), self.limits, self.sampling)) as frames:
            for frame_result, lines in zip(
                frame_results, counts_in_words(frame_results, self.rules, labels), strict=True
            ):
                frame = next(frames, None)
                if frame is None or abs((frame.time_s or 0) - (frame_result.time_s or 0)) > SAME_SECONDS:
                    raise DocumentError(OTHER_FRAMES)
                picture = draw_detections(frame.pixels, frame_result.detections, frame_result.tiles, colours)
                draw_counts(picture, lines, colours)
                yield np.asarray(picture)


def counts_in_words(
    frame_results: Sequence[FrameResult], rules: Rules, labels: Sequence[str]
) -> Iterator[dict[str, str]]:
    """Write the counts of each frame of a video, by label: those in the frame, and those of the video until then."""
    words = COUNTS[rules.video_count]
    for frame_result, so_far in zip(frame_results, running_counts(frame_results, rules), strict=True):
        now = count_document([frame_result], rules)
        yield {one: words.format(label=one, now=now.get(one, 0), so_far=so_far.get(one, 0)) for one in labels}


def edges_of(times: Sequence[float]) -> list[float]:
    """Return when each frame of a video begins to be shown, and when the last one ends, which takes as long as before.

    Args:
        times: of the frames, seconds, at least one.
    """
    last = times[-1] - times[-2] if len(times) > 1 else LAST_SECONDS
    return [*times, times[-1] + last]
