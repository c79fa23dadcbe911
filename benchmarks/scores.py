"""The quality of detection scores: correct and wrong boxes of held-out scenes, by their scores.

`python -m benchmarks.scores` prints the table of docs/scores.md and draws its figure.
"""

from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.manifest import load_manifest
from florence_tagger.florence.model import Florence2
from florence_tagger.schemas import Frame
from training.batches import model_input
from training.matching import match_detections
from training.scenes import World, draw_scene

PICTURE = Path(__file__).parents[1] / "docs" / "scores.svg"
SEED = 20261125  # of scenes that were used neither in training nor for any choice
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def measure(scenes: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """Return the score of each box of the bundled model, the mask of correct boxes, and the number of objects."""
    manifest = load_manifest(DEFAULT_MODEL)
    florence2 = Florence2(manifest, RuntimeOptions(), manifest.generation)
    rng = np.random.default_rng(SEED)
    scores, correct, num_objects = [], [], 0
    for _ in range(scenes):
        scene = draw_scene(rng, World())
        height, width = scene.pixels.shape[:2]
        detections = florence2.detect(Frame(model_input(scene.pixels), width, height)).detections
        by_score = sorted(detections, key=lambda detection: -detection.score)
        scores += [detection.score for detection in by_score]
        correct += list(match_detections(by_score, scene.objects))
        num_objects += len(scene.objects)
    return np.array(scores), np.array(correct), num_objects


def draw(scores: NDArray[np.float64], correct: NDArray[np.bool_], path: Path) -> None:
    """Draw the shares of correct and wrong boxes that each threshold keeps."""
    mpl.rcParams["svg.hashsalt"] = "scores"  # makes the file reproducible
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    thresholds = np.linspace(0, 1, 201)
    for boxes, label, color in ((correct, "right boxes", "#0072b2"), (~correct, "wrong boxes", "#d55e00")):
        shares = [(scores[boxes] >= threshold).mean() for threshold in thresholds]
        axes.plot(thresholds, shares, label=label, color=color)
    axes.set(xlabel="min_score", ylabel="share that is kept", ylim=(0, 1.02), xlim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


@click.command()
@click.option("--scenes", type=click.IntRange(1), default=500, show_default=True)
@click.option("--picture", type=click.Path(path_type=Path), default=PICTURE, show_default=True)
def main(scenes: int, picture: Path) -> None:
    """Measure, print the table and draw the figure."""
    scores, correct, num_objects = measure(scenes)
    num_wrong = (~correct).sum()
    click.echo(f"{len(scores)} boxes for {num_objects} objects in {scenes} scenes; {num_wrong} boxes are wrong.\n")
    click.echo("| `min_score` | right boxes kept | wrong boxes kept |\n|---|---|---|")
    for threshold in THRESHOLDS:
        kept = scores >= threshold
        click.echo(f"| {threshold:g} | {kept[correct].mean():.1%} | {kept[~correct].mean():.1%} |")
    draw(scores, correct, picture)


if __name__ == "__main__":
    main()
