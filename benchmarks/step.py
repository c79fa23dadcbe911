"""Where a step of the decoder with one sequence goes: `python -m benchmarks.step --model DIR`.

OpenVINO times the operations itself, in a decoder that is told to; the whole step is that of a decoder that is not.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from florence_tagger.bench.roofline import work_of
from florence_tagger.bench.stages import ROUNDS, STEPS, measure_step
from florence_tagger.config import Settings, load_settings
from florence_tagger.florence.batch import Batch
from florence_tagger.florence.decoding import GenerationSettings, exactly
from florence_tagger.florence.devices import CORE, Compiler, RuntimeOptions
from florence_tagger.florence.graphs import CrossAttention, without_embedding
from florence_tagger.florence.manifest import load_manifest
from florence_tagger.florence.model import load_model
from florence_tagger.florence.stateful_decoder import StatefulDecoder
from florence_tagger.schemas import OBJECT_DETECTION, Frame

WEIGHTS, PICTURE, SELF, OTHERS = (
    "products with weights",
    "products with keys and values of the picture",
    "attention to the answer so far",
    "all other operations",
)
KINDS = {
    "FullyConnected": WEIGHTS,
    "FullyConnectedCompressed": WEIGHTS,
    "MatMul": PICTURE,
    "ScaledDotProductAttentionWithKVCache": SELF,
}


class Profiling:
    """OpenVINO, told to time each operation."""

    available_devices = CORE.available_devices
    read_model = CORE.read_model

    def compile_model(self, model: Any, device: str, properties: Mapping[str, Any]) -> Any:
        return CORE.compile_model(model, device, {**properties, "PERF_COUNT": True})


@dataclass(frozen=True)
class Step:
    """A step: ms of all of it and of its kinds of operations, MB that some of them read, and GB/s of the memory."""

    ms: float
    parts: Mapping[str, float]
    megabytes: Mapping[str, float]
    memory: float


def measure(model: Path, settings: Settings, rounds: int = ROUNDS) -> Step:
    """A step on the CPU: medians of rounds, since others use the same memory, in which all is measured in turn."""
    folder = load_manifest(model)
    florence2 = load_model(folder, settings.model_copy(update={"model_dir": model, "device": "CPU"}))
    height, width = folder.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    attended = florence2.encode(Frame(pixels, width, height)).cross_attention
    alone = exactly(florence2.generation, 1, STEPS)
    request = profiled_request(model, RuntimeOptions("CPU", settings.precision, settings.inference_threads))
    whole, parts = [], defaultdict(list)
    for _ in range(rounds):
        whole.append(measure_step(florence2, attended, rounds=1))
        for step in profiled_steps(request, attended, alone):
            for name, ms in step.items():
                parts[name].append(ms)
    megabytes = {
        WEIGHTS: work_of(model, len(florence2.prompt_ids(OBJECT_DETECTION))).decoder_bytes / 1e6,
        PICTURE: sum(values.nbytes for values in attended.values()) / 1e6,
    }
    medians = {name: statistics.median(values) for name, values in parts.items()}
    memory, seconds = (statistics.median(values) for values in zip(*whole, strict=True))
    return Step(1e3 * seconds, medians, megabytes, memory)


def profiled_request(model: Path, options: RuntimeOptions) -> Any:
    """A request of the decoder that times its operations."""
    compiler = Compiler(options, Profiling())
    return compiler.compile(lambda _: without_embedding(compiler.read(model / "decoder.xml")), "decoder", "f32").request


def profiled_steps(
    request: Any, attended: CrossAttention, settings: GenerationSettings
) -> Iterator[Mapping[str, float]]:
    """Milliseconds of each kind of operation, in each step of an answer."""
    answers: Batch[None, CrossAttention] = Batch(StatefulDecoder(request, 1))
    answers.start(None, attended, settings)
    while not answers.step():
        yield kinds_of(request.profiling_info)


def kinds_of(profiled: list[Any]) -> dict[str, float]:
    """Milliseconds of each kind of operation in a step."""
    parts = dict.fromkeys((WEIGHTS, PICTURE, SELF, OTHERS), 0.0)
    for node in profiled:
        parts[KINDS.get(node.node_type, OTHERS)] += node.real_time.total_seconds() * 1e3
    return parts


def as_table(step: Step) -> str:
    """A step in Markdown, its largest part first."""
    lines = ["| part of a step | ms | MB read | GB/s |", "|---|---|---|---|"]
    for name, ms in sorted(step.parts.items(), key=lambda part: -part[1]):
        read = step.megabytes.get(name)
        lines.append(f"| {name} | {ms:.2f} | {f'{read:.0f} | {read / ms:.0f}' if read else '|'} |")
    lines.append(f"| no operation: OpenVINO's calls, the search | {step.ms - sum(step.parts.values()):.2f} | | |")
    read = sum(step.megabytes.values())
    lines.append(f"| a step | {step.ms:.2f} | {read:.0f} | {read / step.ms:.0f} |")
    lines.append(f"| reading memory and nothing else | | | {step.memory:.0f} |")
    return "\n".join(lines)


@click.command()
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Model folder.")
def main(model: Path) -> None:
    """Measures and prints the table."""
    click.echo(as_table(measure(model, load_settings())))


if __name__ == "__main__":
    main()
