"""What the score of a detection is worth: boxes of held-out scenes, the right and the wrong ones, by their scores.

`python -m benchmarks.scores` prints the table of docs/scores.md and draws its picture.
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
from training.matching import claims
from training.scenes import World, draw_scene

PICTURE = Path(__file__).parents[1] / "docs" / "scores.svg"
SEED = 20261125  # of scenes that neither training nor any choice has seen
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def measure(scenes: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """The score of each box that the bundled model finds, whether the box is right, and how many objects there are."""
    folder = load_manifest(DEFAULT_MODEL)
    florence2 = Florence2(folder, RuntimeOptions(), folder.generation)
    rng = np.random.default_rng(SEED)
    scores, right, objects = [], [], 0
    for _ in range(scenes):
        scene = draw_scene(rng, World())
        height, width = scene.pixels.shape[:2]
        detections = florence2.detect(Frame(model_input(scene.pixels), width, height)).detections
        strongest_first = sorted(detections, key=lambda one: -one.score)
        scores += [detection.score for detection in strongest_first]
        right += list(claims(strongest_first, scene.objects))
        objects += len(scene.objects)
    return np.array(scores), np.array(right), objects


def draw(scores: NDArray[np.float64], right: NDArray[np.bool_], picture: Path) -> None:
    """Draws what shares of right and wrong boxes a threshold keeps."""
    mpl.rcParams["svg.hashsalt"] = "scores"  # the same picture each time
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    thresholds = np.linspace(0, 1, 201)
    for chosen, label, colour in ((right, "right boxes", "#0072b2"), (~right, "wrong boxes", "#d55e00")):
        axes.plot(thresholds, [(scores[chosen] >= one).mean() for one in thresholds], label=label, color=colour)
    axes.set(xlabel="min_score", ylabel="share that is kept", ylim=(0, 1.02), xlim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, metadata={"Date": None})


@click.command()
@click.option("--scenes", type=click.IntRange(1), default=500, show_default=True)
@click.option("--picture", type=click.Path(path_type=Path), default=PICTURE, show_default=True)
def main(scenes: int, picture: Path) -> None:
    """Measures, prints the table and draws the picture."""
    scores, right, objects = measure(scenes)
    click.echo(f"{len(scores)} boxes for {objects} objects in {scenes} scenes; {(~right).sum()} boxes are wrong.\n")
    click.echo("| `min_score` | right boxes kept | wrong boxes kept |\n|---|---|---|")
    for threshold in THRESHOLDS:
        kept = scores >= threshold
        click.echo(f"| {threshold:g} | {kept[right].mean():.1%} | {kept[~right].mean():.1%} |")
    draw(scores, right, picture)


if __name__ == "__main__":
    main()
