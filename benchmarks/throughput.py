"""What batching, overlapping and the cache's precision are worth: the measurements behind docs/performance.md.

`python -m benchmarks.throughput --model DIR` prints two tables. The first is seconds a picture when sixteen come at a
time, by how many are decoded together, and whether encoding overlaps decoding or takes turns with it. The second is
milliseconds of a decoder step in f32 with caches of several precisions.
"""

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import click
import numpy as np

from florence_tagger.florence.decoding import GenerationSettings, StepInput, exactly
from florence_tagger.florence.devices import CORE, RuntimeOptions
from florence_tagger.florence.graphs import without_embedding
from florence_tagger.florence.manifest import ModelManifest, load_manifest
from florence_tagger.florence.model import Florence2
from florence_tagger.florence.stateful_decoder import StatefulDecoder
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import Frame

PICTURES = 16
TOKENS = 100
BEAMS = 3
CACHES = ("f32", "bf16", "u8")


class TakesTurns(Florence2):
    """Encoding and decoding one after the other, whatever the device."""

    exclusive = True


class Overlaps(Florence2):
    """Encoding and decoding at the same time, whatever the device."""

    exclusive = False


def seconds_a_picture(
    kind: type[Florence2], folder: ModelManifest, pictures: int, generation: GenerationSettings
) -> float:
    """Seconds for each of sixteen pictures that come at the same time, `pictures` of them decoded together."""
    florence2 = kind(folder, RuntimeOptions(pictures=pictures), generation)
    scheduler = Scheduler(lambda: florence2, PICTURES)
    while not scheduler.ready:
        time.sleep(0.01)
    height, width = folder.image_size
    rng = np.random.default_rng(0)
    frames = [Frame(rng.integers(0, 256, (height, width, 3), np.uint8), width, height) for _ in range(PICTURES)]
    scheduler.submit(frames[0]).result()
    started = time.perf_counter()
    wait([scheduler.submit(frame) for frame in frames])
    seconds = time.perf_counter() - started
    scheduler.close()
    return seconds / PICTURES


def step_ms(folder: ModelManifest, cache: str, pictures: int) -> float:
    """Milliseconds of a decoder step (median) with so many pictures, in f32 with a cache of a precision."""
    model = without_embedding(CORE.read_model(folder.path / "decoder.xml"))
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": cache}
    decoder = StatefulDecoder(CORE.compile_model(model, "CPU", hints).create_infer_request(), pictures)
    height, width = folder.image_size
    encoded = Florence2(folder, RuntimeOptions("CPU"), folder.generation).encode(
        Frame(np.zeros((height, width, 3), np.uint8), width, height)
    )
    for _ in range(pictures):
        decoder.add(encoded.cross_attention)
    return 1e3 * statistics.median(step_times(decoder, pictures))


def step_times(decoder: StatefulDecoder, pictures: int) -> Iterator[float]:
    """Seconds of each step of answers of `TOKENS` tokens."""
    nothing = (np.empty(0, np.int64),) * BEAMS
    for position in range(TOKENS):
        parents = np.arange(BEAMS) if position else np.zeros(BEAMS, np.int64)
        query = StepInput(np.full(BEAMS, 5), parents, position, nothing)
        started = time.perf_counter()
        decoder.step([query] * pictures)
        yield time.perf_counter() - started


@click.command()
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Model folder.")
def main(model: Path) -> None:
    """Measures both tables and prints them."""
    folder = load_manifest(model)
    generation = exactly(folder.generation, BEAMS, TOKENS)
    click.echo("| decoded together | seconds a picture, taking turns | overlapping |\n|---|---|---|")
    for pictures in (1, 4, 8, 16):
        turns, overlap = (seconds_a_picture(kind, folder, pictures, generation) for kind in (TakesTurns, Overlaps))
        click.echo(f"| {pictures} | {turns:.2f} | {overlap:.2f} |")
    click.echo("\n| cache | step with 1 picture, ms | with 8 |\n|---|---|---|")
    for cache in CACHES:
        click.echo(f"| {cache} | {step_ms(folder, cache, 1):.2f} | {step_ms(folder, cache, 8):.2f} |")


if __name__ == "__main__":
    main()
