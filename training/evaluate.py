"""How well a checkpoint counts, on scenes that neither training nor any choice has seen: `python -m training.evaluate`.

It is converted to int8, as people would, and counts as the service does; PyTorch counts the same scenes in f32.
"""

import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from math import ceil
from pathlib import Path

import click
import numpy as np
from PIL import Image
from rich.progress import track
from transformers import PreTrainedTokenizerFast

from convert.checkpoint import read_checkpoint
from convert.conversion import ConversionOptions, convert, stages_of
from convert.progress_bars import Bar, megabytes
from convert.quiet import quiet_libraries
from convert.transformers_reference import Reference
from florence_tagger.bench.processes import service
from florence_tagger.config import load_settings
from florence_tagger.schemas import Task
from florence_tagger.tagger import Tagger
from training.batches import CHOOSING, CROWDED, HELD_OUT, QUESTIONS, SPARSE, UNSEEN, VIDEOS, ask
from training.clips import draw_clip, write_video
from training.objective import ASKED_TASKS
from training.options import Command
from training.scenes import UNSEEN_DESIGN, Scene, SceneObject, World, draw_scene
from training.score import read, score
from training.train import CHECKPOINT, COMMITTED, RUN

CALIBRATION_SCENES = 100
FEW = 8  # objects
SECONDS, FPS = 8, 4  # of a short video
PER_VIDEO = 10  # scenes of each kind for a video


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
    (frame_result,) = tagger.detect(path).frames
    return [SceneObject(detection.label, detection.box) for detection in frame_result.detections]


def asked_for_one(tagger: Tagger, drawn: Sequence[tuple[Path, Scene]], task: Task) -> Iterator[tuple[str, str]]:
    """The shares of pictures in which a label that is asked for is counted, and nothing else, there or not."""
    rng, outcomes = np.random.default_rng((HELD_OUT, QUESTIONS)), defaultdict[bool, list[bool]](list)
    for path, scene in track(drawn, f"asking for one label ({task})", transient=True):
        label = ask(rng, scene.objects)
        truth = {label: scene.counts[label]} if label in scene.counts else {}
        outcomes[bool(truth)].append(tagger.count(path, prompt=task, text=label, num_labels=0) == truth)
    yield f"one label asked for, {task}", f"{statistics.mean(outcomes[True] + outcomes[False]):.1%}"
    for there, what in ((True, "there"), (False, "not there: nothing found")):
        if outcomes[there]:
            yield f"{len(outcomes[there])} times it is {what}", f"{statistics.mean(outcomes[there]):.1%}"


def counted_in_videos(tagger: Tagger, place: Path, number: int) -> tuple[str, str]:
    """The share of the sampled frames of short videos in which everything is counted right."""
    rng, right = np.random.default_rng((HELD_OUT, VIDEOS)), []
    place.mkdir()
    for index in track(range(number), "short videos", transient=True):
        path, frames = place / f"{index:04d}.mp4", draw_clip(rng, World(), SECONDS * FPS)
        write_video(path, frames, FPS)
        for frame_result in tagger.detect(path).frames:
            labels = (detection.label for detection in frame_result.detections)
            right.append(Counter(labels) == Counter(frames[round((frame_result.time_s or 0) * FPS)].counts))
    return f"{len(right)} frames of {number} short videos: counted exactly", f"{statistics.mean(right):.1%}"


def measure(checkpoint: Path, number: int, place: Path) -> Iterator[tuple[str, str]]:
    """The rows of the table."""
    crowded = draw(place / "crowded", World(), number, HELD_OUT, CROWDED)
    kinds = {
        "0 to 8 objects": draw(place / "few", World(most=FEW), number, HELD_OUT, SPARSE),
        "0 to 15 objects": crowded,
        "of a design never trained on": draw(
            place / "unseen", World(designs=(UNSEEN_DESIGN,)), number, HELD_OUT, UNSEEN
        ),
    }
    model = quantised(checkpoint, place)
    yield "checkpoint", f"{megabytes(checkpoint):.1f} MB"
    yield "model folder at int8", f"{megabytes(model):.1f} MB"
    with Tagger.load(model, result_cache=0) as tagger:
        found = {}
        for name, drawn in kinds.items():
            found[name] = [found_in(tagger, path) for path, _ in track(drawn, name, transient=True)]
            result = score(found[name], [scene.objects for _, scene in drawn])
            yield f"{name}: counted exactly", f"{result.exact:.1%}"
            yield f"{name}: F1 of boxes at IoU 0.5", f"{result.f1:.3f}"
        yield counted_in_videos(tagger, place / "videos", ceil(number / PER_VIDEO))
        for task in ASKED_TASKS:
            yield from asked_for_one(tagger, crowded, task)
    agreement = agreement_with_pytorch(checkpoint, [path for path, _ in crowded], found["0 to 15 objects"])
    yield "int8 counts as PyTorch in f32 does", f"{agreement:.1%}"
    seconds = seconds_of_the_service(model, [path for path, _ in crowded])
    yield "seconds for a scene through the service, median", f"{statistics.median(seconds):.3f}"


def quantised(checkpoint: Path, place: Path) -> Path:
    """The checkpoint at int8, calibrated on scenes that nothing is measured on."""
    draw(place / "calibration", World(), CALIBRATION_SCENES, CHOOSING, 1)
    with Bar() as bar:
        bar.expect(stages_of("int8"))
        convert(ConversionOptions(str(checkpoint), place / "int8", "int8", place / "calibration"), bar)
    return place / "int8"


def agreement_with_pytorch(checkpoint: Path, paths: Sequence[Path], found: Sequence[Sequence[SceneObject]]) -> float:
    """The share of pictures in which PyTorch counts, in f32, as was found."""
    read_in = read_checkpoint(checkpoint)
    reference, tokenizer = Reference(read_in), PreTrainedTokenizerFast.from_pretrained(checkpoint)
    same = 0
    for path, ours in zip(track(paths, "PyTorch", transient=True), found, strict=True):
        start = read_in.generation.decoder_start_token_id
        theirs = read(tokenizer, (start, *reference.generate(path, read_in.generation)))
        same += Counter(one.label for one in ours) == Counter(one.label for one in theirs)
    return same / len(paths)


def seconds_of_the_service(model: Path, paths: Sequence[Path]) -> list[float]:
    """How long the service takes for each picture, one after the other."""
    with service(load_settings({"model_dir": model, "result_cache": 0})) as serving:
        serving.post(paths[:1])
        return [serving.post([path]).seconds for path in track(paths, "the service", transient=True)]


def trained() -> Path:
    """The checkpoint of a run here, finished or not, else the bundled model's."""
    own = RUN / CHECKPOINT
    return own if own.exists() else COMMITTED


@click.command(cls=Command)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True),
    default=trained,
    help="That of training/run, where there is none the bundled model's.",
)
@click.option("--scenes", type=click.IntRange(1), default=500, show_default=True, help="Of each kind.")
def main(checkpoint: Path, scenes: int) -> None:
    """Prints the table."""
    quiet_libraries()
    click.echo(f"Evaluating {checkpoint}.", err=True)
    with tempfile.TemporaryDirectory() as place, redirect_stdout(sys.stderr):  # for the libraries' progress, too
        rows = list(measure(checkpoint, scenes, Path(place)))
    click.echo(f"| {scenes} scenes of each kind | |\n|---|---|")
    for name, figure in rows:
        click.echo(f"| {name} | {figure} |")


if __name__ == "__main__":
    main()
