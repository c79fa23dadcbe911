"""Distinct counts of clips with a known number of moving objects.

`python -m benchmarks.distinct` prints the share of clips with exact counts. With `--curve` it prints the share of
objects counted right by frame rate and by speed, and draws that and a clip for docs/counting.md.
"""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from convert.agreement import count_errors
from florence_tagger.counting import count_document
from florence_tagger.media.drawing import draw_detections
from florence_tagger.schemas import DocumentResult, FrameResult, Rules, VideoCount
from florence_tagger.tagger import Tagger
from florence_tagger.tracking import track
from training.clips import write_video
from training.passing import Clip, draw_passing
from training.scenes import Scene

SEED = 20261130  # of clips that were not used for any choice
SECONDS, FPS = 6, 8
CURVE_FPS = 16
SPEEDS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the curve, in the longer sides of an object per second
STRIDES = (16, 8, 4, 2, 1)  # of the curve: every n-th frame is processed
FIGURE_SPEED = 1.0  # of the clip that is drawn
NUM_OBJECTS = (4, 8)  # minimum and maximum, in a clip of the curve
DOCS = Path(__file__).parents[1] / "docs"
FIGURE_TIMES = (0.3, 0.45, 0.6, 0.75)  # of the drawn frames, as shares of the clip's length
DISTINCT = Rules(video_count=VideoCount.DISTINCT)
NUM_THREADS = 4  # clips in flight


@dataclass(frozen=True)
class Outcome:
    """True and counted number of objects in a clip, by label."""

    truth: dict[str, int]
    counted: dict[str, int]

    @property
    def objects(self) -> int:
        """True number of objects."""
        return sum(self.truth.values())

    @property
    def errors(self) -> int:
        """Sum of the differences of all counts."""
        return sum(count_errors(self.counted, self.truth).values())


def detect_clips(
    num_clips: int, fps: float, draw: Callable[[np.random.Generator], Clip], *seed: int
) -> list[tuple[Clip, DocumentResult]]:
    """Return drawn clips, each with the detections in all frames of its video file."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Tagger.load(video_fps=fps, video_max_frames=SECONDS * CURVE_FPS, result_cache=0) as tagger,
        ThreadPoolExecutor(NUM_THREADS) as pool,
    ):

        def detect_clip(index: int) -> tuple[Clip, DocumentResult]:
            clip, path = draw(np.random.default_rng((*seed, index))), Path(directory) / f"{index}.mp4"
            write_video(path, [Scene(pixels, ()) for pixels in clip.frames], fps)
            return clip, tagger.detect(path)

        return list(pool.map(detect_clip, range(num_clips)))


def count_distinct(truth: dict[str, int], frame_results: Sequence[FrameResult]) -> Outcome:
    """Return the outcome of counting the different objects in the frames of a clip."""
    return Outcome(truth, count_document(track(frame_results), DISTINCT))


def summarize(outcomes: Sequence[Outcome]) -> str:
    """Return the share of exact clips and the error rate in one line."""
    exact = np.mean([outcome.errors == 0 for outcome in outcomes])
    objects = sum(outcome.objects for outcome in outcomes)
    return f"{exact:.0%} exactly right, errors / objects {sum(outcome.errors for outcome in outcomes) / objects:.3f}"


def measure(num_clips: int, seed: int) -> list[str]:
    """Return the lines of the table, for clips of objects that cross, enter, leave and hide for up to a second."""
    results = detect_clips(num_clips, FPS, lambda rng: draw_passing(rng, SECONDS * FPS, FPS), seed, 0)
    distinct = [count_distinct(clip.counts, result.frames) for clip, result in results]
    peak = [Outcome(clip.counts, count_document(result.frames)) for clip, result in results]
    objects = sum(outcome.objects for outcome in distinct)
    return [
        f"{num_clips} clips of {SECONDS} s, {FPS} frames a second, {objects} objects",
        f"distinct: {summarize(distinct)}",
        f"peak: {summarize(peak)}",
    ]


def measure_curve(num_clips: int, seed: int, folder: Path) -> dict[float, dict[float, float]]:
    """Return the accuracy by speed and then by frames per second; draw one of the clips to `folder`."""
    curve: dict[float, dict[float, float]] = {}
    for index, speed in enumerate(SPEEDS):

        def draw(rng: np.random.Generator, speed: float = speed) -> Clip:
            return draw_passing(rng, SECONDS * CURVE_FPS, CURVE_FPS, (speed, speed), NUM_OBJECTS, visible_s=1 / speed)

        results = detect_clips(num_clips, CURVE_FPS, draw, seed, 1, index)
        curve[speed] = {
            CURVE_FPS / stride: accuracy(
                [count_distinct(clip.counts, result.frames[::stride]) for clip, result in results]
            )
            for stride in STRIDES
        }
        if speed == FIGURE_SPEED:
            draw_tracks(results[0][0], results[0][1].frames, folder / "passing.jpg")
    return curve


def draw_tracks(clip: Clip, frame_results: Sequence[FrameResult], path: Path) -> None:
    """Draw some frames of a clip side by side, with the numbers of confirmed tracks."""
    indices, tracked = [int(time * len(frame_results)) for time in FIGURE_TIMES], track(frame_results)
    drawn = []
    for index in indices:
        detections = [detection for detection in tracked[index].detections if detection.track is not None]
        drawn.append(np.asarray(draw_detections(clip.frames[index], detections)))
    Image.fromarray(np.hstack(drawn)).save(path, quality=88)


def accuracy(outcomes: Sequence[Outcome]) -> float:
    """Return 1 - errors / objects, at least 0."""
    errors, objects = sum(outcome.errors for outcome in outcomes), sum(outcome.objects for outcome in outcomes)
    return max(1 - errors / objects, 0.0)


def draw_curve(curve: dict[float, dict[float, float]], path: Path) -> None:
    """Draw a line for each speed."""
    mpl.rcParams["svg.hashsalt"] = "tracking"  # the same file in every run
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    for speed, line in curve.items():
        axes.plot(list(line), list(line.values()), marker="o", label=f"{speed:g} sides a second")
    axes.set(xlabel="frames a second that are looked at", ylabel="1 − errors / objects", ylim=(0, 1.02))
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(line), [f"{rate:g}" for rate in line])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


@click.command()
@click.option("--clips", "num_clips", type=click.IntRange(1), default=100, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=SEED, show_default=True)
@click.option("--curve", "with_curve", is_flag=True, help="Measure by rate and speed, a tenth as many clips each.")
@click.option("--folder", type=click.Path(path_type=Path), default=DOCS, help="For the pictures; docs.")
def main(num_clips: int, seed: int, with_curve: bool, folder: Path) -> None:
    """Measure, and print the figures."""
    if not with_curve:
        click.echo("\n".join(measure(num_clips, seed)))
        return
    curve = measure_curve(max(num_clips // 10, 1), seed, folder)
    click.echo(f"| sides a second | {' | '.join(f'{rate:g} fps' for rate in next(iter(curve.values())))} |")
    click.echo(f"|---|{'---|' * len(STRIDES)}")
    for speed, line in curve.items():
        click.echo(f"| {speed:g} | {' | '.join(f'{share:.0%}' for share in line.values())} |")
    draw_curve(curve, folder / "tracking.svg")


if __name__ == "__main__":
    main()
