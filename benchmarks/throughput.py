"""The effects of batching, overlap and the KV cache's precision: the measurements behind docs/performance.md.

`python -m benchmarks.throughput --model DIR` prints two tables. The first has the seconds per picture of sixteen
concurrent pictures, by the number that are decoded together, with and without overlap of prefill and decode. The second
has the milliseconds of a decoder step in f32, by the precision of the KV cache.
"""

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import click
import numpy as np

from florence_tagger.florence.decoding import GenerationSettings, StepInput, with_fixed_length
from florence_tagger.florence.devices import CORE, RuntimeOptions
from florence_tagger.florence.graphs import without_embedding
from florence_tagger.florence.manifest import ModelManifest, load_manifest
from florence_tagger.florence.model import Florence2
from florence_tagger.florence.stateful_decoder import StatefulDecoder
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import Frame

NUM_PICTURES = 16
TOKENS = 100
BEAMS = 3
CACHE_PRECISIONS = ("f32", "bf16", "u8")


class ExclusiveModel(Florence2):
    """A model whose prefill and decode never overlap, on any device."""

    exclusive = True


class OverlappingModel(Florence2):
    """A model whose prefill and decode may overlap, on any device."""

    exclusive = False


def seconds_per_picture(
    model_class: type[Florence2], manifest: ModelManifest, batch_size: int, generation: GenerationSettings
) -> float:
    """Return the seconds per picture of sixteen concurrent pictures, at most `batch_size` of them decoded together."""
    florence2 = model_class(manifest, RuntimeOptions(max_pictures=batch_size), generation)
    scheduler = Scheduler(lambda: florence2, NUM_PICTURES)
    while not scheduler.ready:
        time.sleep(0.01)
    height, width = manifest.image_size
    rng = np.random.default_rng(0)
    frames = [Frame(rng.integers(0, 256, (height, width, 3), np.uint8), width, height) for _ in range(NUM_PICTURES)]
    scheduler.add_request(frames[0]).result()
    started = time.perf_counter()
    wait([scheduler.add_request(frame) for frame in frames])
    seconds = time.perf_counter() - started
    scheduler.close()
    return seconds / NUM_PICTURES


def step_ms(manifest: ModelManifest, cache_precision: str, num_pictures: int) -> float:
    """Return the median milliseconds of a decoder step with `num_pictures` pictures, in f32."""
    model = without_embedding(CORE.read_model(manifest.path / "decoder.xml"))
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": cache_precision}
    decoder = StatefulDecoder(CORE.compile_model(model, "CPU", hints).create_infer_request(), num_pictures)
    height, width = manifest.image_size
    prefilled = Florence2(manifest, RuntimeOptions("CPU"), manifest.generation).prefill(
        Frame(np.zeros((height, width, 3), np.uint8), width, height)
    )
    for _ in range(num_pictures):
        decoder.add(prefilled.cross_attention)
    return 1e3 * statistics.median(step_times(decoder, num_pictures))


def step_times(decoder: StatefulDecoder, num_pictures: int) -> Iterator[float]:
    """Yield the seconds of each step of answers of `TOKENS` tokens."""
    no_bans = (np.empty(0, np.int64),) * BEAMS
    for position in range(TOKENS):
        parents = np.arange(BEAMS) if position else np.zeros(BEAMS, np.int64)
        step_input = StepInput(np.full(BEAMS, 5), parents, position, no_bans)
        started = time.perf_counter()
        decoder.step([step_input] * num_pictures)
        yield time.perf_counter() - started


@click.command()
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Model manifest.")
def main(model: Path) -> None:
    """Measure both tables and print them."""
    manifest = load_manifest(model)
    generation = with_fixed_length(manifest.generation, BEAMS, TOKENS)
    click.echo("| decoded together | seconds a picture, taking turns | overlapping |\n|---|---|---|")
    for batch_size in (1, 4, 8, 16):
        exclusive, overlapping = (
            seconds_per_picture(model_class, manifest, batch_size, generation)
            for model_class in (ExclusiveModel, OverlappingModel)
        )
        click.echo(f"| {batch_size} | {exclusive:.2f} | {overlapping:.2f} |")
    click.echo("\n| cache | step with 1 picture, ms | with 8 |\n|---|---|---|")
    for precision in CACHE_PRECISIONS:
        click.echo(f"| {precision} | {step_ms(manifest, precision, 1):.2f} | {step_ms(manifest, precision, 8):.2f} |")


if __name__ == "__main__":
    main()
