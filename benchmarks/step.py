"""The parts of a decoder step with one sequence: `python -m benchmarks.step --model DIR`.

OpenVINO profiles the operations of one decoder; the duration of the step is that of another decoder without profiling.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from florence_tagger.bench.roofline import workload_of
from florence_tagger.bench.stages import ROUNDS, STEPS, measure_step
from florence_tagger.config import Settings, load_settings
from florence_tagger.florence.batch import Batch
from florence_tagger.florence.decoding import GenerationSettings, with_fixed_length
from florence_tagger.florence.devices import CORE, Compiler, RuntimeOptions
from florence_tagger.florence.graphs import CrossAttention, without_embedding
from florence_tagger.florence.manifest import load_manifest
from florence_tagger.florence.model import load_model
from florence_tagger.florence.stateful_decoder import StatefulDecoder
from florence_tagger.schemas import OBJECT_DETECTION, Frame

WEIGHTS, CROSS_ATTENTION, SELF_ATTENTION, OTHERS = (
    "products with weights",
    "products with keys and values of the picture",
    "attention to the answer so far",
    "all other operations",
)
KINDS = {
    "FullyConnected": WEIGHTS,
    "FullyConnectedCompressed": WEIGHTS,
    "MatMul": CROSS_ATTENTION,
    "ScaledDotProductAttentionWithKVCache": SELF_ATTENTION,
}


class ProfilingCore:
    """OpenVINO's core, with profiling enabled."""

    available_devices = CORE.available_devices
    read_model = CORE.read_model

    def compile_model(self, model: Any, device: str, properties: Mapping[str, Any]) -> Any:
        """Compile a graph that records the time of each operation."""
        return CORE.compile_model(model, device, {**properties, "PERF_COUNT": True})


@dataclass(frozen=True)
class Step:
    """The measurements of a decoder step.

    Attributes:
        ms: milliseconds of the step.
        parts: milliseconds of each kind of operation.
        megabytes: MB that some kinds of operations read.
        memory: GB/s at which the machine reads memory.
    """

    ms: float
    parts: Mapping[str, float]
    megabytes: Mapping[str, float]
    memory: float


def measure(model: Path, settings: Settings, rounds: int = ROUNDS) -> Step:
    """Measure a step on the CPU: medians of rounds that alternate, because other processes use the memory, too."""
    manifest = load_manifest(model)
    florence2 = load_model(manifest, settings.model_copy(update={"model_dir": model, "device": "CPU"}))
    height, width = manifest.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cross_attention = florence2.prefill(Frame(pixels, width, height)).cross_attention
    generation = with_fixed_length(florence2.generation, 1, STEPS)
    request = profiled_request(model, RuntimeOptions("CPU", settings.precision, settings.inference_threads))
    steps, parts = [], defaultdict(list)
    for _ in range(rounds):
        steps.append(measure_step(florence2, cross_attention, rounds=1))
        for step in profiled_steps(request, cross_attention, generation):
            for name, ms in step.items():
                parts[name].append(ms)
    megabytes = {
        WEIGHTS: workload_of(model, len(florence2.prompt_ids(OBJECT_DETECTION))).decoder_bytes / 1e6,
        CROSS_ATTENTION: sum(values.nbytes for values in cross_attention.values()) / 1e6,
    }
    medians = {name: statistics.median(values) for name, values in parts.items()}
    memory, seconds = (statistics.median(values) for values in zip(*steps, strict=True))
    return Step(1e3 * seconds, medians, megabytes, memory)


def profiled_request(model: Path, options: RuntimeOptions) -> Any:
    """Return an infer request of the decoder that records the time of each operation."""
    compiler = Compiler(options, ProfilingCore())
    return compiler.compile(lambda _: without_embedding(compiler.read(model / "decoder.xml")), "decoder", "f32").request


def profiled_steps(
    request: Any, cross_attention: CrossAttention, settings: GenerationSettings
) -> Iterator[Mapping[str, float]]:
    """Yield the milliseconds of each kind of operation, for each step of an answer."""
    batch: Batch[None, CrossAttention] = Batch(StatefulDecoder(request, 1))
    batch.add(None, cross_attention, settings)
    while not batch.step():
        yield sum_by_kind(request.profiling_info)


def sum_by_kind(profiling_info: list[Any]) -> dict[str, float]:
    """Return the milliseconds of each kind of operation in a step."""
    parts = dict.fromkeys((WEIGHTS, CROSS_ATTENTION, SELF_ATTENTION, OTHERS), 0.0)
    for node in profiling_info:
        parts[KINDS.get(node.node_type, OTHERS)] += node.real_time.total_seconds() * 1e3
    return parts


def as_table(step: Step) -> str:
    """Return the parts of a step as a Markdown table, in descending order."""
    lines = ["| part of a step | ms | MB read | GB/s |", "|---|---|---|---|"]
    for name, ms in sorted(step.parts.items(), key=lambda part: -part[1]):
        megabytes = step.megabytes.get(name)
        lines.append(f"| {name} | {ms:.2f} | {f'{megabytes:.0f} | {megabytes / ms:.0f}' if megabytes else '|'} |")
    lines.append(f"| no operation: OpenVINO's calls, the search | {step.ms - sum(step.parts.values()):.2f} | | |")
    total = sum(step.megabytes.values())
    lines.append(f"| a step | {step.ms:.2f} | {total:.0f} | {total / step.ms:.0f} |")
    lines.append(f"| reading memory and nothing else | | | {step.memory:.0f} |")
    return "\n".join(lines)


@click.command()
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Model folder.")
def main(model: Path) -> None:
    """Measure and print the table."""
    click.echo(as_table(measure(model, load_settings())))


if __name__ == "__main__":
    main()
