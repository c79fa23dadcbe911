"""How well a checkpoint counts, on scenes that neither training nor any choice has seen: `python -m training.evaluate`.

It is converted to int8, as people would, and counts as the service does; PyTorch counts the same scenes in f32.
"""

import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from PIL import Image
from rich.progress import track
from transformers import PreTrainedTokenizerFast

from convert.__main__ import Bar
from convert.checkpoint import read_checkpoint
from convert.conversion import ConversionOptions, convert, stages_of
from convert.quiet import quiet_libraries
from convert.reference import Reference
from florence_tagger.benchmark.processes import service
from florence_tagger.config import load_settings
from florence_tagger.schemas import Task
from florence_tagger.tagger import Tagger
from training.batches import CHOOSING, HELD_OUT, ask
from training.scenes import RICH, UNSEEN_DESIGN, Scene, SceneObject, World, draw_scene
from training.score import read, score
from training.train import RUN

CHECKPOINT = RUN / "checkpoint"
CALIBRATION_SCENES = 100
FEW = 8  # objects


def draw(folder: Path, world: World, number: int, *seed: int) -> list[tuple[Path, Scene]]:
    """Scenes and the files they are written to."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    drawn = []
    for index in range(number):
        path, scene = folder / f"{index:04d}.png", draw_scene(rng, world)
        Image.fromarray(scene.pixels).save(path)
        drawn.append((path, scene))
    return drawn


def found_in(tagger: Tagger, path: Path) -> list[SceneObject]:
    """What is found in a picture, in pixels."""
    (sighting,) = tagger.detect(path).sightings
    return [SceneObject(region.label, region.box) for region in sighting.detection.regions]


def asked_for_one(tagger: Tagger, drawn: Sequence[tuple[Path, Scene]], task: Task) -> float:
    """The share of pictures in which a label that is asked for, there or not, is counted right."""
    rng = np.random.default_rng((HELD_OUT, 9))
    right = 0
    for path, scene in track(drawn, f"asking for one label ({task})", transient=True):
        label = ask(rng, scene.objects)
        right += tagger.count(path, prompt=task, text=label, num_labels=0).get(label, 0) == scene.counts.get(label, 0)
    return right / len(drawn)


def measure(checkpoint: Path, number: int, place: Path) -> Iterator[tuple[str, str]]:
    """The rows of the table."""
    seen = draw(place / "scenes", RICH, number, HELD_OUT, 0)
    few = draw(place / "few", replace(RICH, most=FEW), number, HELD_OUT, 1)
    unseen = draw(place / "unseen", replace(RICH, designs=(UNSEEN_DESIGN,)), number, HELD_OUT, 2)
    draw(place / "calibration", RICH, CALIBRATION_SCENES, CHOOSING, 1)
    with Bar() as bar:
        bar.expect(stages_of("int8"))
        convert(ConversionOptions(str(checkpoint), place / "int8", "int8", place / "calibration"), bar)
    size = sum(path.stat().st_size for path in (place / "int8").iterdir()) / 1e6
    yield (
        "checkpoint, model folder at int8",
        f"{sum(p.stat().st_size for p in checkpoint.iterdir()) / 1e6:.1f}, {size:.1f} MB",
    )
    with Tagger.load(place / "int8", result_cache=0) as tagger:
        found = {}
        for name, drawn in (
            ("0 to 8 objects", few),
            ("0 to 15 objects", seen),
            ("of a design never trained on", unseen),
        ):
            found[name] = [found_in(tagger, path) for path, _ in track(drawn, name, transient=True)]
            result = score(found[name], [scene.objects for _, scene in drawn])
            yield f"{name}: counted exactly", f"{result.exact:.1%}"
            yield f"{name}: F1 of boxes at IoU 0.5", f"{result.f1:.3f}"
        for task in (Task.OPEN_VOCABULARY_DETECTION, Task.PHRASE_GROUNDING):
            yield f"one label asked for, {task}", f"{asked_for_one(tagger, seen, task):.1%}"
    read_in = read_checkpoint(checkpoint)
    reference, tokenizer = Reference(read_in), PreTrainedTokenizerFast.from_pretrained(checkpoint)
    same = 0
    for (path, _), ours in zip(track(seen, "PyTorch", transient=True), found["0 to 15 objects"], strict=True):
        theirs = read(tokenizer, (0, *reference.generate(path, read_in.generation)))
        same += Counter(one.label for one in ours) == Counter(one.label for one in theirs)
    yield "int8 counts as PyTorch in f32 does", f"{same / number:.1%}"
    with service(load_settings({"model_dir": place / "int8", "result_cache": 0})) as serving:
        serving.post([seen[0][0]])
        seconds = [serving.post([path]).seconds for path, _ in track(seen, "the service", transient=True)]
    yield "seconds for a scene through the service, median", f"{statistics.median(seconds):.3f}"


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), default=CHECKPOINT, show_default=True)
@click.option("--scenes", type=click.IntRange(1), default=500, show_default=True, help="Of each kind.")
def main(checkpoint: Path, scenes: int) -> None:
    """Prints the table."""
    quiet_libraries()
    with tempfile.TemporaryDirectory() as place:
        rows = list(measure(checkpoint, scenes, Path(place)))
    click.echo(f"\n| {scenes} scenes of each kind | |\n|---|---|")
    for name, figure in rows:
        click.echo(f"| {name} | {figure} |")


if __name__ == "__main__":
    main()
