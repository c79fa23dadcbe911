"""Comparison of the product on the emulated GPU with the CPU: `python -m gpu.check`, or `make gpu-check`.

Everything runs on OpenVINO's real GPU plugin: each graph is compared with the CPU plugin, the decoder runs random
plans, and the complete product counts objects. The first run builds the kernels, which takes minutes, and caches them.
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
F32_ERROR = 1e-4  # maximum difference of a graph's output
F16_COSINE = 0.9999
TIE = 1e-4  # difference of two answers' scores up to which f32 rounding may decide between them
F16_COUNTS, F16_IOU, CALIBRATED_COUNTS = 0.99, 0.97, 0.98
INFERENCE_PRECISIONS = {"fp16": ("f32", "f16")}
TEXTS = {Task.OPEN_VOCABULARY_DETECTION: "car", Task.PHRASE_GROUNDING: "a car and a backpack"}


@dataclass(frozen=True)
class Extent:
    """Extent of the check.

    Attributes:
        plans: number of random plans of the decoder.
        steps: number of steps of each plan.
        models: precisions of the model folders that the product runs.
        beams: numbers of beams of the product's answers.
        exact_scenes: number of scenes at f32.
        rounded_scenes: number of scenes at f16.
        calibrated_scenes: number of scenes of the calibrated int8 tower at f16.
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
    """Return a folder of the bundled model in a precision; convert it unless it exists."""
    if precision == "fp16":
        return DEFAULT_MODEL
    output = BUILD / precision
    if not (output / "manifest.json").is_file():
        command = [sys.executable, "-m", "convert", "--model", str(CHECKPOINT), "--output", str(output)]
        is_calibrated = precision == "calibrated"
        command += ["--precision", "int8" if is_calibrated else precision]
        command += ["--calibration", str(BUILD / "calibration")] if is_calibrated else []
        if is_calibrated:
            save_scenes(BUILD / "calibration", CALIBRATION_SCENES, seed=1)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=without_emulation())
    return output


def without_emulation() -> dict[str, str]:
    """Return the environment of this process without the emulated GPU's libraries, which conflict with PyTorch."""
    return {name: value for name, value in os.environ.items() if name not in {"LD_PRELOAD", "LD_LIBRARY_PATH"}}


def draw_scenes(number: int, seed: int) -> Iterator[UInt8Array]:
    """Yield pictures of scenes like the training data of the bundled model."""
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
    """Model on a device, one of two that are compared.

    Args:
        precision: precision of the model folder.
        device: name of the device.
        inference_precision: precision that the device computes in.
    """

    def __init__(self, precision: str, device: str, inference_precision: str) -> None:
        self.manifest = load_manifest(folder_of(precision))
        self.graphs = Graphs(self.manifest, RuntimeOptions(device, inference_precision, max_pictures=CAPACITY))
        self._tokenizer = Tokenizer(self.manifest.read_text("tokenizer.json"))
        self.prompt_ids = self._tokenizer.encode(prompt_text(OBJECT_DETECTION))

    def encode(self, pixels: UInt8Array) -> CrossAttention:
        """Return the cross-attention of a picture."""
        return self.graphs.encode(pixels, self.prompt_ids)

    def on_host(self, encoded: CrossAttention) -> CrossAttention:
        """Return a picture's cross-attention as arrays of the host."""
        memory = self.graphs.decoder.memory
        return encoded if memory is None else picture_on_host(encoded, memory)

    def on_device(self, values: CrossAttention) -> CrossAttention:
        """Return a picture's cross-attention, given as arrays of the host, in the memory and layout of the decoder."""
        memory = self.graphs.decoder.memory
        return values if memory is None else picture_on_device(values, memory)

    def decode(self, pictures: Sequence[CrossAttention], settings: GenerationSettings, together: int) -> list[Decoded]:
        """Return the answers for pictures, decoded in batches of up to `together` pictures."""
        batch: Batch[int, CrossAttention] = Batch(self.graphs.decoder)
        waiting, answers, num_running = list(enumerate(pictures)), dict[int, Decoded](), 0
        while waiting or num_running:
            while waiting and num_running < together:
                batch.add(*waiting.pop(0), settings)
                num_running += 1
            for key, decoded in batch.step().items():
                if isinstance(decoded, Exception):
                    raise decoded
                answers[key], num_running = decoded, num_running - 1
        return [answers[key] for key in sorted(answers)]

    def read(self, decoded: Decoded) -> Answer:
        """Return an answer with its parsed detections."""
        height, width = self.manifest.image_size
        detections = parse_detections(decoded, self._tokenizer, Task.OBJECT_DETECTION, width, height)
        return Answer(decoded.token_ids, detections, 0.0)


def check_graphs(report: Report) -> None:
    """Compare each graph's output on both plugins for the same input, the CPU's output of the previous graph."""
    exact = Side("fp16", "CPU", "f32")
    for precision in ("f32", "f16"):
        side = Side("fp16", "GPU", precision)
        for pixels in make_pictures(side.manifest.image_size)[:2]:
            features = exact.graphs.image_features(pixels)
            cross_attention = exact.encode(pixels)
            tested_cross_attention = side.graphs.encode_features(features, side.prompt_ids)
            outputs = {
                "vision": (side.graphs.image_features(pixels), features),
                "encoder": (flatten(side.on_host(tested_cross_attention)), flatten(cross_attention)),
                "decoder": tuple(first_step(model, model.on_device(cross_attention)) for model in (side, exact)),
            }
            for name, (tested, reference) in outputs.items():
                report_graph(report, f"{name} at {precision}", tested, reference, precision == "f32")


def report_graph(report: Report, name: str, tested: Any, reference: Any, exact: bool) -> None:
    """Report the difference of a graph's output from the CPU's: by maximum error if `exact`, otherwise by cosine."""
    error, similarity = float(np.abs(tested - reference).max()), cosine(tested.ravel(), reference.ravel())
    holds = error <= F32_ERROR if exact else similarity >= F16_COSINE
    report.check(holds, f"graphs: {name}: {error:.2g} from the CPU's at most, cosine {similarity:.7f}")


def flatten(encoded: CrossAttention) -> Any:
    """Return all cross-attention keys and values as one vector."""
    return np.concatenate([encoded[name].ravel() for name in sorted(encoded)])


def first_step(side: Side, picture: CrossAttention) -> Any:
    """Return the eight highest log-probabilities of the first token, in descending order."""
    side.graphs.decoder.add(picture)
    (top_k,) = side.graphs.decoder.step([StepInput(np.array([2]), np.zeros(1, np.int64), 0, (np.empty(0, np.int64),))])
    side.graphs.decoder.remove(0)
    return top_k.log_probs[0][:8]


def check_plans(report: Report, extent: Extent) -> None:
    """Run random plans in the decoders of both plugins: rows grow and shrink, pictures join and leave, bans vary."""
    exact = Side("fp16", "CPU", "f32")
    for precision, tolerance in (("f32", F32_ERROR * 10), ("f16", 0.5)):
        side = Side("fp16", "GPU", precision)
        encoded = [side.encode(pixels) for pixels in make_pictures(side.manifest.image_size)]
        on_host = [truncate(side.on_host(picture), tokens) for picture, tokens in zip(encoded, (0, 4, 1), strict=True)]
        pictures = [(side.on_device(picture), picture) for picture in on_host]
        for seed in range(extent.plans):
            lockstep = Lockstep(side.graphs.decoder, exact.graphs.decoder, pictures, CAPACITY, seed)
            difference = sum((lockstep.step(move) for move in random_plan(seed, extent.steps)), Difference())
            lockstep.clear()
            report.check(not difference.exceeds(tolerance), f"plans: {seed} at {precision}: {difference}")


def random_plan(seed: int, steps: int) -> Iterator[Move]:
    """Yield moves in which pictures join and leave, rows grow and shrink, and bans vary."""
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
    """Count objects of samples, of a video's frames and in all tasks through the Python API on both devices."""
    for model in extent.models:
        for beams in extent.beams:
            for precision in INFERENCE_PRECISIONS.get(model, ("f16",)):
                with (
                    Tagger.load(folder_of(model), num_beams=beams, device="GPU", precision=precision) as gpu,
                    Tagger.load(folder_of(model), num_beams=beams, device="CPU") as cpu,
                ):
                    for path in (*PICTURES, VIDEO):
                        counts = gpu.count(path), cpu.count(path)
                        name = f"product: {model}, {precision}, {beams} beams, {path.name}"
                        report.check(counts[0] == counts[1], f"{name}: {counts[0]}, the CPU {counts[1]}")
                    if model == "fp16":
                        check_tasks(report, f"{precision}, {beams} beams", gpu, cpu)


def check_tasks(report: Report, name: str, gpu: Tagger, cpu: Tagger) -> None:
    """Compare counts of one picture in all five tasks."""
    for task in Task:
        counts = [tagger.count(PICTURES[1], task, TEXTS.get(task, "")) for tagger in (gpu, cpu)]
        report.check(counts[0] == counts[1], f"product: {task}, {name}: {counts[0]}, the CPU {counts[1]}")


def check_service(report: Report) -> None:
    """Send requests to a real service from eight concurrent clients, some of which leave; repeat after a restart."""
    with Tagger.load(device="CPU") as cpu:
        expected = {path.name: cpu.count(path, num_labels=DEFAULT_LABELS) for path in PICTURES}
    paths = PICTURES * TOGETHER
    shutil.rmtree(BUILD / "cache", ignore_errors=True)
    for start in ("first", "second"):
        with service(load_settings({"device": "GPU", "cache_dir": BUILD / "cache"})) as serving:
            for path in PICTURES:
                send_and_disconnect(serving, path)
            with ThreadPoolExecutor(TOGETHER) as pool:
                counts = list(pool.map(lambda path: request_counts(serving, path), paths))
            num_right = sum(answer == expected[path.name] for path, answer in zip(paths, counts, strict=True))
            report.check(
                num_right == len(paths), f"service, {start} start: {num_right} of {len(paths)} answers are right"
            )
            report.note(f"service, {start} start: ready after {serving.start_seconds:.1f} s")


def send_and_disconnect(serving: Serving, path: Path) -> None:
    """Send a picture and close the connection without reading the answer."""
    connection = http.client.HTTPConnection(urlsplit(serving.client.url).netloc)
    connection.request("POST", "/process", body_of(path), {"Content-Type": "application/json"})
    connection.close()


def request_counts(serving: Serving, path: Path) -> dict[str, int]:
    """Return the service's counts of a picture."""
    (document,) = serving.request("POST", "/process", body_of(path))["data"]
    return {label: count for counts in document["source"]["content"] for label, count in counts.items()}


def check_scenes(report: Report, extent: Extent) -> None:
    """Compare answers on scenes: token ids at f32, counts and boxes at f16."""
    for together in (1, TOGETHER):
        for beams in (1, 3):
            agreement, score_difference = compare_scenes("fp16", "f32", extent.exact_scenes, beams, together)
            text = f"token ids are equal on {agreement.ids_equal} of {agreement.pictures}"
            if agreement.differing:
                names = ", ".join(agreement.differing)
                text += f"; on {names} the scores of both answers are {score_difference:.2g} apart"
            # If two answers are almost equally probable, f32 rounding decides, here as against PyTorch (test_parity).
            max_differing = max(1, agreement.pictures // 100)
            holds = agreement.ids_equal >= agreement.pictures - max_differing and score_difference <= TIE
            report.check(holds, f"scenes: f32, {beams} beams, {together} together: {text}")
    for model, precision, scenes, share, min_iou in (
        ("fp16", "f16", extent.rounded_scenes, F16_COUNTS, F16_IOU),
        ("calibrated", "f16", extent.calibrated_scenes, CALIBRATED_COUNTS, 0.0),  # int8 rounds boxes, too
    ):
        agreement, _ = compare_scenes(model, precision, scenes, 3, TOGETHER)
        holds = agreement.counts_equal >= share * scenes and agreement.box_iou >= min_iou
        text = f"counts are equal on {agreement.counts_equal} of {scenes}, boxes' IoU {agreement.box_iou:.4f}"
        report.check(holds, f"scenes: {model} at {precision}, 3 beams, {TOGETHER} together: {text}")


def compare_scenes(model: str, precision: str, number: int, beams: int, together: int) -> tuple[Agreement, float]:
    """Return the agreement with the CPU at f32 on scenes, and the maximum score difference of differing answers."""
    sides = Side(model, "GPU", precision), Side(model, "CPU", "f32")
    settings = replace(sides[0].manifest.generation, num_beams=beams)
    height, width = sides[0].manifest.image_size
    pictures = [
        np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
        for pixels in draw_scenes(number, seed=2)
    ]
    both = [side.decode([side.encode(picture) for picture in pictures], settings, together) for side in sides]
    tested, reference = (list(map(side.read, decoded)) for side, decoded in zip(sides, both, strict=True))
    names = map(str, range(number))
    pairs = [AnswerPair(*answers, 1.0) for answers in zip(names, tested, reference, strict=True)]
    differing = [pair for pair in zip(*both, strict=True) if pair[0].token_ids != pair[1].token_ids]
    differences = (abs(score(first, settings) - score(second, settings)) for first, second in differing)
    return summarize("", pairs), max(differences, default=0.0)


def score(decoded: Decoded, settings: GenerationSettings) -> float:
    """Return an answer's beam search score: its log-probability divided by its length to the length penalty's power."""
    chosen = [
        top_k.log_probs[top_k.token_ids == token_id][0]
        for token_id, top_k in zip(decoded.token_ids, decoded.top_k, strict=False)
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
    """Check the product on an emulated GPU; exit with 1 if a check fails."""
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
