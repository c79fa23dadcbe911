"""Kernels, waits and transfers of each stage and step on the emulated GPU: `python -m benchmarks.gpu`.

It counts kernels, waits of the host, and bytes copied to, from and within the device; it can't measure times of a real
GPU. The emulated GPU has separate memory, like a discrete card, so that all transfers are counted.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.florence.decoding import StepInput
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.graphs import Graphs
from florence_tagger.florence.manifest import ModelManifest, load_manifest
from florence_tagger.florence.packed_decoder import PackedDecoder
from gpu.emulation import Counters, SetupError, read_counters, run_on_emulated_gpu

PROMPT_TOKENS = 13
TOKEN = 5  # arbitrary
NUM_BANS = 5  # of each row
FIGURES: dict[str, Callable[[list[int]], float]] = {"median": statistics.median, "most": max, "mean": statistics.mean}
COLUMNS = ("kernels", "waits", "copies", "bytes to the device", "bytes back", "bytes within")


def count_work(run: Callable[..., Any], *arguments: Any) -> tuple[Any, Counters]:
    """Return a function's result, and the device's work during the call."""
    before = read_counters()
    result = run(*arguments)
    return result, read_counters() - before


@dataclass(frozen=True)
class Work:
    """Work of the device for some answers.

    Attributes:
        stages: counters of each stage by name.
        copied_slots: mean number of cache slots written by a step.
        rows_and_tokens: mean number of tokens of all rows in a step: the size of a cache of rows, which a reordering
            would write twice.
        slot_bytes: size of one token's keys and values of all layers, bytes.
    """

    stages: dict[str, Counters]
    copied_slots: float
    rows_and_tokens: float
    slot_bytes: int


def measure(manifest: ModelManifest, precision: str, pictures: int, beams: int, tokens: int) -> Work:
    """Return the work for answers of `tokens` tokens, measured in a second run, in which nothing is compiled."""
    graphs = Graphs(manifest, RuntimeOptions("GPU", precision, max_pictures=pictures))
    decoder = graphs.decoder
    if not isinstance(decoder, PackedDecoder):
        raise TypeError("The decoder is not on the GPU.")
    pixels, prompt = np.zeros((*manifest.image_size, 3), np.uint8), tuple(range(PROMPT_TOKENS))
    for _ in range(2):
        encoded, encode = count_work(graphs.encode, pixels, prompt)
        _, vision = count_work(graphs.image_features, pixels)
        joins = [count_work(decoder.add, encoded)[1] for _ in range(pictures)]
        copied = decoder.cache.copied_slots
        steps = list(run_steps(decoder, pictures, beams, tokens))
        copied = decoder.cache.copied_slots - copied
        leaves = [count_work(decoder.remove, 0)[1] for _ in range(pictures)]
    stages = {
        "vision, features to the host": vision,
        "vision and encoder, a picture": encode,
        "a picture joins": aggregate(joins, max),
        "a picture leaves": aggregate(leaves, max),
        **{f"step, {pictures} x {beams} rows: {name}": aggregate(steps, figure) for name, figure in FIGURES.items()},
    }
    return Work(stages, copied / tokens, pictures * beams * tokens / 2, decoder.cache.slot_bytes)


def run_steps(decoder: PackedDecoder, pictures: int, beams: int, tokens: int) -> Iterator[Counters]:
    """Yield the work of each step but the first, which has fewer rows; beams are reordered as in real answers.

    A step's ids are in memory that host and device share, so they are not copied, but count as bytes to the device.
    """
    rng = np.random.default_rng(0)
    banned = tuple(np.arange(NUM_BANS) for _ in range(beams))
    for position in range(tokens):
        parents = np.sort(rng.integers(0, beams, beams)) if position else np.zeros(beams, np.int64)
        step_input = StepInput(np.full(beams, TOKEN), parents, position, banned)
        _, counters = count_work(decoder.step, [step_input] * pictures)
        if position:
            yield replace(counters, host_to_device=counters.host_to_device + decoder.input_bytes)


def aggregate(counters: list[Counters], figure: Callable[[list[int]], float]) -> Counters:
    """Return a statistic of each counter."""
    return Counters(*(round(figure(list(values))) for values in zip(*map(astuple, counters), strict=True)))


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=DEFAULT_MODEL, help="Model folder.")
@click.option("--precision", type=click.Choice(["f16", "f32"]), default="f16", show_default=True)
@click.option("--pictures", type=click.IntRange(min=1), default=8, show_default=True, help="Decoded together.")
@click.option("--beams", type=click.IntRange(1, 16), default=3, show_default=True)
@click.option("--tokens", type=click.IntRange(min=2), default=100, show_default=True, help="Of each answer.")
def main(model: Path, precision: str, pictures: int, beams: int, tokens: int) -> None:
    """Count the work of a GPU, and print it as a table."""
    try:
        run_on_emulated_gpu(discrete=True)
    except SetupError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo("| " + " | ".join(("", *COLUMNS)) + " |\n|" + "---|" * (len(fields(Counters)) + 1))
    work = measure(load_manifest(model), precision, pictures, beams, tokens)
    for name, counters in work.stages.items():
        click.echo("| " + " | ".join((name, *(f"{value:,}" for value in astuple(counters)))) + " |")
    packed, reordered = work.copied_slots * work.slot_bytes, 2 * work.rows_and_tokens * work.slot_bytes
    click.echo(
        f"\nWritten into the cache by a step, mean: {packed:,.0f} bytes. A cache that is gathered and joined at each "
        f"step, as rows change places, would write {reordered:,.0f}."
    )


if __name__ == "__main__":
    main()
