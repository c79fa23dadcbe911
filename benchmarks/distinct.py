"""How many different things pass: clips with a known number, counted by `distinct`.

`python -m benchmarks.distinct` prints how many clips are counted right. With `--curve` it prints the share of objects
that is counted right by rate of frames and by speed, and draws that and a clip for docs/counting.md.
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

SEED = 20261130  # of clips that nothing was chosen by
SECONDS, FPS = 6, 8
CURVE_FPS = 16
SPEEDS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the curve, in the longer sides of an object a second
STRIDES = (16, 8, 4, 2, 1)  # of the curve: each so manieth frame is looked at
SHOWN = 1.0  # the speed of the clip that is drawn
OBJECTS = (4, 8)  # of a clip of the curve
DOCS = Path(__file__).parents[1] / "docs"
MOMENTS = (0.3, 0.45, 0.6, 0.75)  # of a clip that is shown, shares of its length
DISTINCT = Rules(video_count=VideoCount.DISTINCT)
TOGETHER = 4  # clips at a time


@dataclass(frozen=True)
class Outcome:
    """What was there and what was counted, by label."""

    truth: dict[str, int]
    counted: dict[str, int]

    @property
    def objects(self) -> int:
        """How many were there."""
        return sum(self.truth.values())

    @property
    def errors(self) -> int:
        """By how many the counts differ."""
        return sum(count_errors(self.counted, self.truth).values())


def clips(
    number: int, fps: float, draw: Callable[[np.random.Generator], Clip], *seed: int
) -> list[tuple[Clip, DocumentResult]]:
    """Return clips, which are written to files, and what is found in all their frames."""
    with (
        tempfile.TemporaryDirectory() as place,
        Tagger.load(video_fps=fps, video_max_frames=SECONDS * CURVE_FPS, result_cache=0) as tagger,
        ThreadPoolExecutor(TOGETHER) as pool,
    ):

        def one(index: int) -> tuple[Clip, DocumentResult]:
            clip, path = draw(np.random.default_rng((*seed, index))), Path(place) / f"{index}.mp4"
            write_video(path, [Scene(pixels, ()) for pixels in clip.frames], fps)
            return clip, tagger.detect(path)

        return list(pool.map(one, range(number)))


def counted(truth: dict[str, int], frame_results: Sequence[FrameResult]) -> Outcome:
    """Return what passes in frames beside what is there."""
    return Outcome(truth, count_document(track(frame_results), DISTINCT))


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return how right counts are, in a line."""
    exact = np.mean([one.errors == 0 for one in outcomes])
    objects = sum(one.objects for one in outcomes)
    return f"{exact:.0%} exactly right, errors / objects {sum(one.errors for one in outcomes) / objects:.3f}"


def measure(number: int, seed: int) -> list[str]:
    """Return the lines of the table: clips in which things cross, enter, leave and hide for up to a second."""
    found = clips(number, FPS, lambda rng: draw_passing(rng, SECONDS * FPS, FPS), seed, 0)
    distinct = [counted(clip.counts, result.frames) for clip, result in found]
    peak = [Outcome(clip.counts, count_document(result.frames)) for clip, result in found]
    objects = sum(one.objects for one in distinct)
    return [
        f"{number} clips of {SECONDS} s, {FPS} frames a second, {objects} objects",
        f"distinct: {summary(distinct)}",
        f"peak: {summary(peak)}",
    ]


def curve(number: int, seed: int, folder: Path) -> dict[float, dict[float, float]]:
    """Return 1 - errors / objects by speed and then by frames a second; draw one of the clips."""
    shares: dict[float, dict[float, float]] = {}
    for place, speed in enumerate(SPEEDS):

        def draw(rng: np.random.Generator, speed: float = speed) -> Clip:
            return draw_passing(rng, SECONDS * CURVE_FPS, CURVE_FPS, (speed, speed), OBJECTS, visible_s=1 / speed)

        found = clips(number, CURVE_FPS, draw, seed, 1, place)
        shares[speed] = {
            CURVE_FPS / stride: share([counted(clip.counts, result.frames[::stride]) for clip, result in found])
            for stride in STRIDES
        }
        if speed == SHOWN:
            draw_tracks(found[0][0], found[0][1].frames, folder / "passing.jpg")
    return shares


def draw_tracks(clip: Clip, frame_results: Sequence[FrameResult], picture: Path) -> None:
    """Draw some frames of a clip beside each other, with the numbers of what counts."""
    places, tracked = [int(moment * len(frame_results)) for moment in MOMENTS], track(frame_results)
    drawn = []
    for place in places:
        detections = [one for one in tracked[place].detections if one.track is not None]
        drawn.append(np.asarray(draw_detections(clip.frames[place], detections)))
    Image.fromarray(np.hstack(drawn)).save(picture, quality=88)


def share(outcomes: Sequence[Outcome]) -> float:
    """Return 1 - errors / objects, 0 at least."""
    return max(1 - sum(one.errors for one in outcomes) / sum(one.objects for one in outcomes), 0.0)


def draw_curve(shares: dict[float, dict[float, float]], picture: Path) -> None:
    """Draw a line for each speed."""
    mpl.rcParams["svg.hashsalt"] = "tracking"  # the same picture each time
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    for speed, line in shares.items():
        axes.plot(list(line), list(line.values()), marker="o", label=f"{speed:g} sides a second")
    axes.set(xlabel="frames a second that are looked at", ylabel="1 − errors / objects", ylim=(0, 1.02))
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(line), [f"{rate:g}" for rate in line])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, metadata={"Date": None})


@click.command()
@click.option("--clips", "number", type=click.IntRange(1), default=100, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=SEED, show_default=True)
@click.option("--curve", "of_curve", is_flag=True, help="Measure by rate and speed, a tenth as many clips each.")
@click.option("--folder", type=click.Path(path_type=Path), default=DOCS, help="For the pictures; docs.")
def main(number: int, seed: int, of_curve: bool, folder: Path) -> None:
    """Measures, and prints the figures."""
    if not of_curve:
        click.echo("\n".join(measure(number, seed)))
        return
    shares = curve(max(number // 10, 1), seed, folder)
    click.echo(f"| sides a second | {' | '.join(f'{rate:g} fps' for rate in next(iter(shares.values())))} |")
    click.echo(f"|---|{'---|' * len(STRIDES)}")
    for speed, line in shares.items():
        click.echo(f"| {speed:g} | {' | '.join(f'{one:.0%}' for one in line.values())} |")
    draw_curve(shares, folder / "tracking.svg")


if __name__ == "__main__":
    main()
