"""Accuracy of a checkpoint on held-out scenes: `python -m training.evaluate`.

The checkpoint is converted to int8 and counts in the service's runtime; PyTorch counts the same scenes in f32.
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
from convert.conversion import ConversionOptions, convert, num_stages
from convert.progress_bars import Bar, megabytes
from convert.quiet import quiet_libraries
from convert.transformers_reference import Reference
from florence_tagger.bench.processes import service
from florence_tagger.config import load_settings
from florence_tagger.schemas import Task
from florence_tagger.tagger import Tagger
from training.batches import CROWDED, HELD_OUT, PROMPTS, SPARSE, UNSEEN, VALIDATION, VIDEOS, choose_label
from training.clips import draw_clip, write_video
from training.objective import TEXT_TASKS
from training.options import Command
from training.scenes import UNSEEN_DESIGN, Scene, SceneObject, World, draw_scene
from training.score import parse_objects, score
from training.train import CHECKPOINT, COMMITTED, RUN

CALIBRATION_SCENES = 100
FEW_OBJECTS = 8
SECONDS, FPS = 8, 4  # of a short video
SCENES_PER_VIDEO = 10  # scenes of each kind for one video


def write_scenes(folder: Path, world: World, num_scenes: int, *seed: int) -> list[tuple[Path, Scene]]:
    """Draw scenes and write them to a new folder; return each with the path of its file."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    scenes = []
    for index in range(num_scenes):
        path, scene = folder / f"{index:04d}.png", draw_scene(rng, world)
        Image.fromarray(scene.pixels).save(path)
        scenes.append((path, scene))
    return scenes


def detect_objects(tagger: Tagger, path: Path) -> list[SceneObject]:
    """Return the detections in a picture, in pixels."""
    (frame_result,) = tagger.detect(path).frames
    return [SceneObject(detection.label, detection.box) for detection in frame_result.detections]


def evaluate_text_task(tagger: Tagger, scenes: Sequence[tuple[Path, Scene]], task: Task) -> Iterator[tuple[str, str]]:
    """Yield the shares of pictures with the right count for a prompt with one label, present or absent."""
    rng, outcomes = np.random.default_rng((HELD_OUT, PROMPTS)), defaultdict[bool, list[bool]](list)
    for path, scene in track(scenes, f"asking for one label ({task})", transient=True):
        label = choose_label(rng, scene.objects)
        truth = {label: scene.counts[label]} if label in scene.counts else {}
        outcomes[bool(truth)].append(tagger.count(path, prompt=task, text=label, num_labels=0) == truth)
    yield f"one label asked for, {task}", f"{statistics.mean(outcomes[True] + outcomes[False]):.1%}"
    for present, condition in ((True, "there"), (False, "not there: nothing found")):
        if outcomes[present]:
            yield f"{len(outcomes[present])} times it is {condition}", f"{statistics.mean(outcomes[present]):.1%}"


def evaluate_videos(tagger: Tagger, folder: Path, num_videos: int) -> tuple[str, str]:
    """Return the share of the sampled frames of short videos whose counts are all right."""
    rng, correct = np.random.default_rng((HELD_OUT, VIDEOS)), []
    folder.mkdir()
    for index in track(range(num_videos), "short videos", transient=True):
        path, frames = folder / f"{index:04d}.mp4", draw_clip(rng, World(), SECONDS * FPS)
        write_video(path, frames, FPS)
        for frame_result in tagger.detect(path).frames:
            labels = (detection.label for detection in frame_result.detections)
            correct.append(Counter(labels) == Counter(frames[round((frame_result.time_s or 0) * FPS)].counts))
    return f"{len(correct)} frames of {num_videos} short videos: counted exactly", f"{statistics.mean(correct):.1%}"


def measure(checkpoint: Path, num_scenes: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table."""
    crowded = write_scenes(folder / "crowded", World(), num_scenes, HELD_OUT, CROWDED)
    kinds = {
        "0 to 8 objects": write_scenes(folder / "few", World(max_objects=FEW_OBJECTS), num_scenes, HELD_OUT, SPARSE),
        "0 to 15 objects": crowded,
        "of a design never trained on": write_scenes(
            folder / "unseen", World(designs=(UNSEEN_DESIGN,)), num_scenes, HELD_OUT, UNSEEN
        ),
    }
    model = convert_to_int8(checkpoint, folder)
    yield "checkpoint", f"{megabytes(checkpoint):.1f} MB"
    yield "model folder at int8", f"{megabytes(model):.1f} MB"
    with Tagger.load(model, result_cache=0) as tagger:
        detections = {}
        for name, scenes in kinds.items():
            detections[name] = [detect_objects(tagger, path) for path, _ in track(scenes, name, transient=True)]
            result = score(detections[name], [scene.objects for _, scene in scenes])
            yield f"{name}: counted exactly", f"{result.exact:.1%}"
            yield f"{name}: F1 of boxes at IoU 0.5", f"{result.f1:.3f}"
        yield evaluate_videos(tagger, folder / "videos", ceil(num_scenes / SCENES_PER_VIDEO))
        for task in TEXT_TASKS:
            yield from evaluate_text_task(tagger, crowded, task)
    agreement = agreement_with_pytorch(checkpoint, [path for path, _ in crowded], detections["0 to 15 objects"])
    yield "int8 counts as PyTorch in f32 does", f"{agreement:.1%}"
    seconds = time_service(model, [path for path, _ in crowded])
    yield "seconds for a scene through the service, median", f"{statistics.median(seconds):.3f}"


def convert_to_int8(checkpoint: Path, folder: Path) -> Path:
    """Convert the checkpoint to int8, calibrated on scenes that are not used for evaluation."""
    write_scenes(folder / "calibration", World(), CALIBRATION_SCENES, VALIDATION, 1)
    with Bar() as bar:
        bar.set_total(num_stages("int8"))
        convert(ConversionOptions(str(checkpoint), folder / "int8", "int8", folder / "calibration"), bar)
    return folder / "int8"


def agreement_with_pytorch(
    checkpoint: Path, paths: Sequence[Path], detections: Sequence[Sequence[SceneObject]]
) -> float:
    """Return the share of pictures for which PyTorch in f32 gives the same counts as `detections`."""
    source = read_checkpoint(checkpoint)
    reference, tokenizer = Reference(source), PreTrainedTokenizerFast.from_pretrained(checkpoint)
    num_equal = 0
    for path, detected in zip(track(paths, "PyTorch", transient=True), detections, strict=True):
        start = source.generation.decoder_start_token_id
        expected = parse_objects(tokenizer, (start, *reference.generate(path, source.generation)))
        num_equal += Counter(item.label for item in detected) == Counter(item.label for item in expected)
    return num_equal / len(paths)


def time_service(model: Path, paths: Sequence[Path]) -> list[float]:
    """Return the seconds that the service takes for each picture, one after the other."""
    with service(load_settings({"model_dir": model, "result_cache": 0})) as serving:
        serving.post(paths[:1])
        return [serving.post([path]).seconds for path in track(paths, "the service", transient=True)]


def default_checkpoint() -> Path:
    """Return the checkpoint of the local run, finished or not, else the bundled model's."""
    local = RUN / CHECKPOINT
    return local if local.exists() else COMMITTED


@click.command(cls=Command)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True),
    default=default_checkpoint,
    help="That of training/run, where there is none the bundled model's.",
)
@click.option("--scenes", type=click.IntRange(1), default=500, show_default=True, help="Of each kind.")
def main(checkpoint: Path, scenes: int) -> None:
    """Prints the table."""
    quiet_libraries()
    click.echo(f"Evaluating {checkpoint}.", err=True)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):  # the libraries print progress, too
        rows = list(measure(checkpoint, scenes, Path(folder)))
    click.echo(f"| {scenes} scenes of each kind | |\n|---|---|")
    for name, figure in rows:
        click.echo(f"| {name} | {figure} |")


if __name__ == "__main__":
    main()
