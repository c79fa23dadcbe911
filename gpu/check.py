"""Does the product count on a GPU as on the CPU? `python -m gpu.check`, on the emulated GPU: `make gpu-check`.

Everything runs on OpenVINO's real GPU plugin: each graph beside the CPU plugin, the decoder under random plans, and the
whole product. Kernels are built at the first run, which takes minutes, and kept.
"""

import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import numpy as np
from PIL import Image

from convert.agreement import Agreement, Answer, AnswerPair, cosine, summarize
from deploy.debian import ROOT
from deploy.image_check import Report
from florence_tagger.bench.processes import Serving, body_of, service
from florence_tagger.config import DEFAULT_MODEL, SAMPLES, load_settings
from florence_tagger.counting import DEFAULT_LABELS
from florence_tagger.florence.batch import Batch
from florence_tagger.florence.decoding import Decoded, GenerationSettings, StepInput
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.graphs import CrossAttention, Graphs, truncate
from florence_tagger.florence.manifest import load_manifest
from florence_tagger.florence.packed_decoder import picture_on_device, picture_on_host
from florence_tagger.florence.postprocessing import parse_detections
from florence_tagger.florence.self_test import Difference, Lockstep, Move, make_pictures
from florence_tagger.florence.tasks import prompt_text
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.schemas import OBJECT_DETECTION, Task, UInt8Array
from florence_tagger.tagger import Tagger
from gpu.emulation import SetupError, run_on_emulated_gpu

CHECKPOINT = ROOT / "training" / "florence-2-tiny"
BUILD = ROOT / "build" / "gpu-check"
CALIBRATION_SCENES = 40
PICTURES = sorted(path for path in SAMPLES.iterdir() if path.suffix in {".png", ".jpg"})
VIDEO = SAMPLES / "crossing.webm"
TOGETHER = 8
CAPACITY = 8
F32_ERROR = 1e-4  # of what a graph puts out
F16_COSINE = 0.9999
TIE = 1e-4  # in scores of two answers: f32 rounding decides between them
F16_COUNTS, F16_IOU, CALIBRATED_COUNTS = 0.99, 0.97, 0.98
COMPUTED = {"fp16": ("f32", "f16")}
TEXTS = {Task.OPEN_VOCABULARY_DETECTION: "car", Task.PHRASE_GROUNDING: "a car and a backpack"}


@dataclass(frozen=True)
class Extent:
    """How much is checked.

    Attributes:
        plans, steps: random plans of the decoder, and steps of each.
        models: precisions of folders; beams: of the product's answers.
        exact_scenes, rounded_scenes, calibrated_scenes: at f32, at f16, and of the calibrated int8 tower at f16.
    """

    plans: int
    steps: int
    models: tuple[str, ...]
    beams: tuple[int, ...]
    exact_scenes: int
    rounded_scenes: int
    calibrated_scenes: int


FULL = Extent(8, 80, ("fp16", "int8", "calibrated", "int4"), (1, 3), 60, 200, 100)
QUICK = Extent(2, 40, ("fp16", "calibrated"), (3,), 4, 6, 4)


@cache
def folder_of(precision: str) -> Path:
    """Return a folder of the bundled model in a precision, converted where it was not yet."""
    if precision == "fp16":
        return DEFAULT_MODEL
    output = BUILD / precision
    if not (output / "manifest.json").is_file():
        command = [sys.executable, "-m", "convert", "--model", str(CHECKPOINT), "--output", str(output)]
        calibrated = precision == "calibrated"
        command += ["--precision", "int8" if calibrated else precision]
        command += ["--calibration", str(BUILD / "calibration")] if calibrated else []
        if calibrated:
            save_scenes(BUILD / "calibration", CALIBRATION_SCENES, seed=1)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=without_emulation())
    return output


def without_emulation() -> dict[str, str]:
    """Return this process's environment without what brings the emulated GPU, which PyTorch does not get on with."""
    return {name: value for name, value in os.environ.items() if name not in {"LD_PRELOAD", "LD_LIBRARY_PATH"}}


def draw_scenes(number: int, seed: int) -> Iterator[UInt8Array]:
    """Yield pictures of scenes like those that the bundled model was trained on."""
    from training.scenes import World, draw_scene

    rng = np.random.default_rng([20261128, seed])
    for _ in range(number):
        yield draw_scene(rng, World()).pixels


def save_scenes(folder: Path, number: int, seed: int) -> list[Path]:
    """Write pictures of scenes as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:04d}.png" for index in range(number)]
    for path, pixels in zip(paths, draw_scenes(number, seed), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


class Side:
    """A model folder on a device."""

    def __init__(self, precision: str, device: str, computed: str) -> None:
        self.manifest = load_manifest(folder_of(precision))
        self.graphs = Graphs(self.manifest, RuntimeOptions(device, computed, pictures=CAPACITY))
        self._tokenizer = Tokenizer(self.manifest.read_text("tokenizer.json"))
        self.prompt_ids = self._tokenizer.encode(prompt_text(OBJECT_DETECTION))

    def encode(self, pixels: UInt8Array) -> CrossAttention:
        """Return what the decoder attends to of a picture."""
        return self.graphs.encode(pixels, self.prompt_ids)

    def on_host(self, encoded: CrossAttention) -> CrossAttention:
        """Return the same as arrays of the host."""
        memory = self.graphs.decoder.memory
        return encoded if memory is None else picture_on_host(encoded, memory)

    def on_device(self, values: CrossAttention) -> CrossAttention:
        """Return arrays of the host as the decoder takes them."""
        memory = self.graphs.decoder.memory
        return values if memory is None else picture_on_device(values, memory)

    def decode(self, pictures: Sequence[CrossAttention], settings: GenerationSettings, together: int) -> list[Decoded]:
        """Return the answers for pictures, so many decoded together as there are."""
        batch: Batch[int, CrossAttention] = Batch(self.graphs.decoder)
        waiting, said, running = list(enumerate(pictures)), dict[int, Decoded](), 0
        while waiting or running:
            while waiting and running < together:
                batch.add(*waiting.pop(0), settings)
                running += 1
            for key, decoded in batch.step().items():
                if isinstance(decoded, Exception):
                    raise decoded
                said[key], running = decoded, running - 1
        return [said[key] for key in sorted(said)]

    def read(self, decoded: Decoded) -> Answer:
        """Return an answer with its boxes."""
        height, width = self.manifest.image_size
        detections = parse_detections(decoded, self._tokenizer, Task.OBJECT_DETECTION, width, height)
        return Answer(decoded.token_ids, detections, 0.0)


def check_graphs(report: Report) -> None:
    """Compare what each graph puts out on both plugins, for the same input: what the CPU's graph before put out."""
    exact = Side("fp16", "CPU", "f32")
    for computed in ("f32", "f16"):
        side = Side("fp16", "GPU", computed)
        for pixels in make_pictures(side.manifest.image_size)[:2]:
            features = exact.graphs.image_features(pixels)
            attended = exact.encode(pixels)
            ours = side.graphs.encode_features(features, side.prompt_ids)
            outputs = {
                "vision": (side.graphs.image_features(pixels), features),
                "encoder": (flat(side.on_host(ours)), flat(attended)),
                "decoder": tuple(first_step(one, one.on_device(attended)) for one in (side, exact)),
            }
            for name, (tested, reference) in outputs.items():
                report_graph(report, f"{name} at {computed}", tested, reference, computed == "f32")


def report_graph(report: Report, name: str, ours: Any, theirs: Any, exact: bool) -> None:
    """Report how far a graph's output is from the CPU's; only at f32 it can be `exact`."""
    apart, alike = float(np.abs(ours - theirs).max()), cosine(ours.ravel(), theirs.ravel())
    holds = apart <= F32_ERROR if exact else alike >= F16_COSINE
    report.check(holds, f"graphs: {name}: {apart:.2g} from the CPU's at most, cosine {alike:.7f}")


def flat(encoded: CrossAttention) -> Any:
    """Return all that the decoder attends to as one vector."""
    return np.concatenate([encoded[name].ravel() for name in sorted(encoded)])


def first_step(side: Side, picture: CrossAttention) -> Any:
    """Return the log-probabilities of the first token, the likeliest, in the order of the tokens' ids."""
    side.graphs.decoder.add(picture)
    (said,) = side.graphs.decoder.step([StepInput(np.array([2]), np.zeros(1, np.int64), 0, (np.empty(0, np.int64),))])
    side.graphs.decoder.remove(0)
    return said.log_probs[0][:8]


def check_plans(report: Report, extent: Extent) -> None:
    """Take the decoder through random plans on both plugins: rows grow and shrink, pictures come and go, bans."""
    exact = Side("fp16", "CPU", "f32")
    for computed, tolerance in (("f32", F32_ERROR * 10), ("f16", 0.5)):
        side = Side("fp16", "GPU", computed)
        encoded = [side.encode(pixels) for pixels in make_pictures(side.manifest.image_size)]
        on_host = [truncate(side.on_host(one), tokens) for one, tokens in zip(encoded, (0, 4, 1), strict=True)]
        pictures = [(side.on_device(one), one) for one in on_host]
        for seed in range(extent.plans):
            lockstep = Lockstep(side.graphs.decoder, exact.graphs.decoder, pictures, CAPACITY, seed)
            difference = sum((lockstep.step(move) for move in random_plan(seed, extent.steps)), Difference())
            lockstep.clear()
            report.check(not difference.exceeds(tolerance), f"plans: {seed} at {computed}: {difference}")


def random_plan(seed: int, steps: int) -> Iterator[Move]:
    """Yield moves of pictures that join and leave, of rows that wax and wane, and of bans."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        clear = bool(rng.random() < 0.06)
        yield Move(
            join=int(rng.integers(1, 3)) if not step or clear or rng.random() < 0.25 else 0,
            leave=int(rng.integers(CAPACITY)) if rng.random() < 0.3 else None,
            clear=clear,
            width=int(rng.choice([1, 2, 3])),
            bans=int(rng.integers(0, 8)),
            repeats=int(rng.integers(1, 4)),
        )


def check_product(report: Report, extent: Extent) -> None:
    """Count samples, pages of a video and all tasks through the Python API on both devices."""
    for model in extent.models:
        for beams in extent.beams:
            for computed in COMPUTED.get(model, ("f16",)):
                with (
                    Tagger.load(folder_of(model), num_beams=beams, device="GPU", precision=computed) as gpu,
                    Tagger.load(folder_of(model), num_beams=beams, device="CPU") as cpu,
                ):
                    for path in (*PICTURES, VIDEO):
                        counts = gpu.count(path), cpu.count(path)
                        name = f"product: {model}, {computed}, {beams} beams, {path.name}"
                        report.check(counts[0] == counts[1], f"{name}: {counts[0]}, the CPU {counts[1]}")
                    if model == "fp16":
                        check_tasks(report, f"{computed}, {beams} beams", gpu, cpu)


def check_tasks(report: Report, name: str, gpu: Tagger, cpu: Tagger) -> None:
    """Ask all five tasks of a picture."""
    for task in Task:
        counts = [tagger.count(PICTURES[1], task, TEXTS.get(task, "")) for tagger in (gpu, cpu)]
        report.check(counts[0] == counts[1], f"product: {task}, {name}: {counts[0]}, the CPU {counts[1]}")


def check_service(report: Report) -> None:
    """Ask a real service by eight clients at a time, some of which leave; then start it again from its cache."""
    with Tagger.load(device="CPU") as cpu:
        expected = {path.name: cpu.count(path, num_labels=DEFAULT_LABELS) for path in PICTURES}
    paths = PICTURES * TOGETHER
    shutil.rmtree(BUILD / "cache", ignore_errors=True)
    for start in ("first", "second"):
        with service(load_settings({"device": "GPU", "cache_dir": BUILD / "cache"})) as serving:
            for path in PICTURES:
                leave(serving, path)
            with ThreadPoolExecutor(TOGETHER) as pool:
                counts = list(pool.map(lambda path: ask(serving, path), paths))
            right = sum(said == expected[path.name] for path, said in zip(paths, counts, strict=True))
            report.check(right == len(paths), f"service, {start} start: {right} of {len(paths)} answers are right")
            report.note(f"service, {start} start: ready after {serving.start_seconds:.1f} s")


def leave(serving: Serving, path: Path) -> None:
    """Ask for a picture and close the connection."""
    connection = http.client.HTTPConnection(urlsplit(serving.client.url).netloc)
    connection.request("POST", "/process", body_of(path), {"Content-Type": "application/json"})
    connection.close()


def ask(serving: Serving, path: Path) -> dict[str, int]:
    """Return the counts of a picture."""
    (document,) = serving.request("POST", "/process", body_of(path))["data"]
    return {label: count for one in document["source"]["content"] for label, count in one.items()}


def check_scenes(report: Report, extent: Extent) -> None:
    """Compare answers on scenes: token ids at f32, counts and boxes at f16."""
    for together in (1, TOGETHER):
        for beams in (1, 3):
            agreement, apart = compare_scenes("fp16", "f32", extent.exact_scenes, beams, together)
            said = f"token ids are equal on {agreement.ids_equal} of {agreement.pictures}"
            if agreement.differing:
                said += f"; on {', '.join(agreement.differing)} the scores of both answers are {apart:.2g} apart"
            # Two answers can be so nearly as likely that f32 rounding decides, here as beside PyTorch (test_parity).
            holds = agreement.ids_equal >= agreement.pictures - max(1, agreement.pictures // 100) and apart <= TIE
            report.check(holds, f"scenes: f32, {beams} beams, {together} together: {said}")
    for model, computed, scenes, share, least_iou in (
        ("fp16", "f16", extent.rounded_scenes, F16_COUNTS, F16_IOU),
        ("calibrated", "f16", extent.calibrated_scenes, CALIBRATED_COUNTS, 0.0),  # int8 rounds boxes, too
    ):
        agreement, _ = compare_scenes(model, computed, scenes, 3, TOGETHER)
        holds = agreement.counts_equal >= share * scenes and agreement.box_iou >= least_iou
        said = f"counts are equal on {agreement.counts_equal} of {scenes}, boxes' IoU {agreement.box_iou:.4f}"
        report.check(holds, f"scenes: {model} at {computed}, 3 beams, {TOGETHER} together: {said}")


def compare_scenes(model: str, computed: str, number: int, beams: int, together: int) -> tuple[Agreement, float]:
    """Return how far answers for scenes agree with the CPU's at f32, and how far scores of differing ones are apart."""
    sides = Side(model, "GPU", computed), Side(model, "CPU", "f32")
    settings = replace(sides[0].manifest.generation, num_beams=beams)
    height, width = sides[0].manifest.image_size
    pictures = [
        np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
        for pixels in draw_scenes(number, seed=2)
    ]
    both = [side.decode([side.encode(one) for one in pictures], settings, together) for side in sides]
    ours, theirs = ([side.read(one) for one in decoded] for side, decoded in zip(sides, both, strict=True))
    names = map(str, range(number))
    pairs = [AnswerPair(*one, 1.0) for one in zip(names, ours, theirs, strict=True)]
    differing = [pair for pair in zip(*both, strict=True) if pair[0].token_ids != pair[1].token_ids]
    apart = max((abs(score(one, settings) - score(other, settings)) for one, other in differing), default=0.0)
    return summarize("", pairs), apart


def score(decoded: Decoded, settings: GenerationSettings) -> float:
    """Return the score by which beam search chose an answer: its log-probability over its length's power."""
    chosen = [
        likely.log_probs[likely.token_ids == token_id][0]
        for token_id, likely in zip(decoded.token_ids, decoded.top_k, strict=False)
    ]
    return float(np.sum(chosen) / len(decoded.token_ids) ** settings.length_penalty)


SECTIONS: dict[str, Callable[[Report, Extent], None]] = {
    "graphs": lambda report, _: check_graphs(report),
    "plans": check_plans,
    "product": check_product,
    "service": lambda report, _: check_service(report),
    "scenes": check_scenes,
}


@click.command()
@click.option("--quick", is_flag=True, help="A part of it, within minutes once kernels are built.")
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="Only these sections.")
def main(quick: bool, only: tuple[str, ...]) -> None:
    """Check the product on an emulated GPU; fails where anything comes out otherwise than on the CPU."""
    try:
        run_on_emulated_gpu()
    except SetupError as exc:
        raise click.ClickException(str(exc)) from exc
    report = Report()
    for name, check in SECTIONS.items():
        if not only or name in only:
            check(report, QUICK if quick else FULL)
    click.echo(f"{report.failures} of the findings do not hold." if report.failures else "All holds.")
    sys.exit(report.failures > 0)


if __name__ == "__main__":
    main()
