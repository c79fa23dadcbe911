"""A file and its detections -> an annotated picture, or an annotated video of its frames: boxes, labels and counts."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np

from florence_tagger.counting import count_document, running_counts
from florence_tagger.errors import DocumentError
from florence_tagger.media.drawing import draw_counts, draw_detections, label_colors
from florence_tagger.media.frames import frame_at, sampled_frames
from florence_tagger.media.limits import DecodeOptions
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.video_writer import write_video
from florence_tagger.schemas import DocumentResult, FrameResult, Rules, UInt8Array, VideoCount

VIDEO_SUFFIX = ".webm"
TIME_TOLERANCE_S = 0.01  # between two times of one frame: answers have rounded ones
SINGLE_FRAME_SECONDS = 1.0  # for which the only frame of a video is shown
COUNTS = {VideoCount.PEAK: "{label}: {now}, max {so_far}", VideoCount.DISTINCT: "{label}: {now}, {so_far} so far"}
OTHER_FRAMES = "the service looks at other frames of videos than the settings here say"


@dataclass(frozen=True)
class Annotator:
    """A thread-safe annotator, which draws detections and counts on the frames of files.

    Attributes:
        limits: for decoding the files.
        sampling: of videos.
        rules: for counting.
    """

    limits: DecodeOptions
    sampling: Sampling
    rules: Rules
    _video_lock: Lock = field(default_factory=Lock, repr=False, compare=False)  # bounds the encoders' memory

    def annotate(self, target: Path, content: bytes, result: DocumentResult, labels: Sequence[str]) -> None:
        """Write all sampled frames of a video as a video, or the picture or page that has most detections.

        Args:
            target: path of the picture; that of a video has `VIDEO_SUFFIX` instead of the last suffix.
            content: the file.
            result: of the file, with at least one frame.
            labels: those whose counts are written on the frames of a video.

        Raises:
            DocumentError: the file can't be drawn on.
            OSError: the drawing can't be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        if result.frames[0].time_s is None:
            self._write_picture(target, content, result.frames)
        else:
            with self._video_lock:
                self._write_video(target.with_suffix(VIDEO_SUFFIX), content, result.frames, labels)

    def _write_picture(self, target: Path, content: bytes, frame_results: Sequence[FrameResult]) -> None:
        index = max(range(len(frame_results)), key=lambda index: len(frame_results[index].detections))
        frame = frame_at(content, index, self.limits, self.sampling)
        frame_result = frame_results[index]
        draw_detections(frame.pixels, frame_result.detections, frame_result.tiles).save(target, "PNG")

    def _write_video(
        self, target: Path, content: bytes, frame_results: Sequence[FrameResult], labels: Sequence[str]
    ) -> None:
        timestamps = frame_timestamps([frame_result.time_s or 0.0 for frame_result in frame_results])
        with target.open("wb") as file, closing(self._draw_frames(content, frame_results, labels)) as pictures:
            try:
                write_video(file, pictures, timestamps)
            except BaseException:
                target.unlink(missing_ok=True)  # a truncated video looks like a complete one
                raise

    def _draw_frames(
        self, content: bytes, frame_results: Sequence[FrameResult], labels: Sequence[str]
    ) -> Generator[UInt8Array]:
        """Yield the annotated frames of a video: uint8 RGB (H, W, 3), each at its own size."""
        detections = (detection for frame_result in frame_results for detection in frame_result.detections)
        colors = label_colors([*(detection.label for detection in detections), *labels])
        with closing(sampled_frames(BytesIO(content), self.limits, self.sampling)) as frames:
            for frame_result, captions in zip(
                frame_results, count_captions(frame_results, self.rules, labels), strict=True
            ):
                frame = next(frames, None)
                if frame is None or abs((frame.time_s or 0) - (frame_result.time_s or 0)) > TIME_TOLERANCE_S:
                    raise DocumentError(OTHER_FRAMES)
                picture = draw_detections(frame.pixels, frame_result.detections, frame_result.tiles, colors)
                draw_counts(picture, captions, colors)
                yield np.asarray(picture)


def count_captions(
    frame_results: Sequence[FrameResult], rules: Rules, labels: Sequence[str]
) -> Iterator[dict[str, str]]:
    """Yield the captions of each frame of a video by label: the count in the frame, and that of the video so far."""
    template = COUNTS[rules.video_count]
    for frame_result, so_far in zip(frame_results, running_counts(frame_results, rules), strict=True):
        now = count_document([frame_result], rules)
        yield {
            label: template.format(label=label, now=now.get(label, 0), so_far=so_far.get(label, 0)) for label in labels
        }


def frame_timestamps(times: Sequence[float]) -> list[float]:
    """Return the start of each frame of a video and the end of the last, which is shown as long as the one before.

    Args:
        times: of the frames, seconds, at least one.
    """
    duration = times[-1] - times[-2] if len(times) > 1 else SINGLE_FRAME_SECONDS
    return [*times, times[-1] + duration]
