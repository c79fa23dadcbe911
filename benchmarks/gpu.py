"""What a GPU is asked for by each stage and step: `python -m benchmarks.gpu`, on the emulated one.

It counts kernels, waits of the host, and bytes that cross to the device, back, and within it. How long any of it takes
on a real GPU can't be told here. The emulated one has memory of its own, as a discrete card has, so that nothing
crosses unseen.
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
TOKEN = 5  # any
BANS = 5  # of each row
FIGURES: dict[str, Callable[[list[int]], float]] = {"median": statistics.median, "most": max, "mean": statistics.mean}
COLUMNS = ("kernels", "waits", "copies", "bytes to the device", "bytes back", "bytes within")


def counted(run: Callable[..., Any], *arguments: Any) -> tuple[Any, Counters]:
    """Return what a function returns, and what it asked of the device."""
    before = read_counters()
    result = run(*arguments)
    return result, read_counters() - before


@dataclass(frozen=True)
class Work:
    """What some answers asked for.

    Attributes:
        stages: by name.
        copied_slots: of the cache that were written by a step, mean.
        rows_and_tokens: of all rows by a step, mean: what a cache of rows has, which is written twice to be reordered.
        slot_bytes: of keys and values of all layers for a token.
    """

    stages: dict[str, Counters]
    copied_slots: float
    rows_and_tokens: float
    slot_bytes: int


def measure(folder: ModelManifest, precision: str, pictures: int, beams: int, tokens: int) -> Work:
    """Return what answers of so many tokens ask for: of the second time, where nothing is compiled."""
    runtime = Graphs(folder, RuntimeOptions("GPU", precision, pictures=pictures))
    decoder = runtime.decoder
    if not isinstance(decoder, PackedDecoder):
        raise TypeError("The decoder is not on the GPU.")
    pixels, prompt = np.zeros((*folder.image_size, 3), np.uint8), tuple(range(PROMPT_TOKENS))
    for _ in range(2):
        encoded, encode = counted(runtime.encode, pixels, prompt)
        _, vision = counted(runtime.image_features, pixels)
        joins = [counted(decoder.add, encoded)[1] for _ in range(pictures)]
        copied = decoder.cache.copied_slots
        steps = list(take_steps(decoder, pictures, beams, tokens))
        copied = decoder.cache.copied_slots - copied
        leaves = [counted(decoder.remove, 0)[1] for _ in range(pictures)]
    stages = {
        "vision, features to the host": vision,
        "vision and encoder, a picture": encode,
        "a picture joins": summed(joins, max),
        "a picture leaves": summed(leaves, max),
        **{f"step, {pictures} x {beams} rows: {name}": summed(steps, figure) for name, figure in FIGURES.items()},
    }
    return Work(stages, copied / tokens, pictures * beams * tokens / 2, decoder.cache.slot_bytes)


def take_steps(decoder: PackedDecoder, pictures: int, beams: int, tokens: int) -> Iterator[Counters]:
    """Yield what each step asks for but the first, whose rows are fewer; beams change places as they do in answers.

    The ids of a step are in memory that host and device share: they are not copied, but they cross all the same.
    """
    rng = np.random.default_rng(0)
    banned = tuple(np.arange(BANS) for _ in range(beams))
    for position in range(tokens):
        parents = np.sort(rng.integers(0, beams, beams)) if position else np.zeros(beams, np.int64)
        query = StepInput(np.full(beams, TOKEN), parents, position, banned)
        _, counters = counted(decoder.step, [query] * pictures)
        if position:
            yield replace(counters, host_to_device=counters.host_to_device + decoder.input_bytes)


def summed(counters: list[Counters], figure: Callable[[list[int]], float]) -> Counters:
    """Return a figure of each counter."""
    return Counters(*(round(figure(list(values))) for values in zip(*map(astuple, counters), strict=True)))


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=DEFAULT_MODEL, help="Model folder.")
@click.option("--precision", type=click.Choice(["f16", "f32"]), default="f16", show_default=True)
@click.option("--pictures", type=click.IntRange(min=1), default=8, show_default=True, help="Decoded together.")
@click.option("--beams", type=click.IntRange(1, 16), default=3, show_default=True)
@click.option("--tokens", type=click.IntRange(min=2), default=100, show_default=True, help="Of each answer.")
def main(model: Path, precision: str, pictures: int, beams: int, tokens: int) -> None:
    """Count what a GPU is asked for, and print it as a table."""
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
