"""The table of docs and issues: a model of Florence-2-base's size with random weights, measured beside PyTorch.

`python -m benchmarks.table` makes what it needs, measures for some minutes and writes `benchmarks/RESULTS.md`.
"""

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.step import as_table, measure
from convert.conversion import ConversionOptions, convert
from convert.quiet import quiet_libraries
from florence_tagger.bench.measurements import BenchmarkOptions, adjusted, find_pictures, run_benchmark
from florence_tagger.bench.processes import service
from florence_tagger.bench.stages import machine
from florence_tagger.config import Settings, load_settings
from florence_tagger.florence.manifest import load_manifest
from training.scenes import World, draw_scene

RESULTS = Path(__file__).parent / "RESULTS.md"
TOKENS = 100
CALIBRATION_PICTURES = 16  # speed does not depend on them
COPIES = 10

Row = tuple[str, str, str]


class RequestObserver:
    """Tells the stages of the conversion as lines."""

    def stage(self, name: str) -> None:
        click.echo(f"  {name}")

    def note(self, text: str) -> None:
        click.echo(f"  {text}")


def prepare(work: Path) -> tuple[Path, Path]:
    """The random checkpoint and its int8 model folder, made unless they are there."""
    checkpoint, model = work / "base", work / "base-int8"
    if not checkpoint.is_dir():
        write_checkpoint(checkpoint)
    if not model.is_dir():
        pictures = work / "pictures"
        pictures.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for index in range(CALIBRATION_PICTURES):
            Image.fromarray(draw_scene(rng, World(side=768, most=8)).pixels).save(pictures / f"{index}.png")
        convert(ConversionOptions(str(checkpoint), model, "int8", pictures), RequestObserver())
    return checkpoint, model


def against_pytorch(options: BenchmarkOptions) -> Iterator[Row]:
    """Speed beside PyTorch, one picture at a time and sixteen, and the shares of the machine's limits."""
    for beams, name in ((1, "greedy"), (3, "3 beams")):
        figures = run_benchmark(replace(options, beams=beams), load_settings(), click.echo)
        yield f"one picture, {name}", f"{figures['speedup']:.1f}x PyTorch f32", seconds_of(figures)
        yield from shares_of(figures, name)
    figures = run_benchmark(replace(options, beams=3, concurrency=16, rounds=3), load_settings(), click.echo)
    detail = f"{figures['images_per_s']:.2f} pictures/s against {1 / figures['reference_seconds']:.3f}"
    yield "16 pictures at a time, 3 beams", f"{figures['speedup']:.1f}x PyTorch's one at a time", detail


def seconds_of(figures: dict[str, Any]) -> str:
    return f"{figures['picture_seconds']:.3f} s against {figures['reference_seconds']:.2f} s"


def shares_of(figures: dict[str, Any], name: str) -> Iterator[Row]:
    """What of the machine's limits a run reached, and what of its time was not the model's."""
    limits, stages = figures["limits"], figures["stages"]
    if figures["generation"]["num_beams"] == 1:
        work, limit = limits["vision_gflop"], limits["vision_limit_gflops"]
        detail = f"{stages['vision'] * 1e3:.0f} ms for {work:.0f} GFLOP; limit {limit:.0f} GFLOP/s"
        yield "vision, share of the matmul limit", f"{limits['vision_share']:.0%}", detail
        step = f"{limits['decoder_step_ms']:.2f} ms for {limits['decoder_weights_mb']:.0f} MB"
        bandwidth = f"limit {limits['memory_gb_per_s']:.0f} GB/s"
        yield "decoder, share of the memory limit", f"{limits['decoder_share']:.0%}", f"{step}; {bandwidth}"
    what = f"{figures['outside_seconds'] * 1e3:.0f} ms for base64, JPEG of 12 megapixels, resize, HTTP and envelope"
    rest = f"{figures['unexplained_seconds'] * 1e3:.0f} ms more are in no stage"
    yield f"outside the model, {name}", f"{figures['outside_model_share']:.1%}", f"{what}; {rest}"


def of_the_service(options: BenchmarkOptions, pictures: int) -> Iterator[Row]:
    """A picture that comes again, memory over many pictures, and the start with a warm cache."""
    with tempfile.TemporaryDirectory() as place:
        files = find_pictures(None, 1, Path(place))
        folder = adjusted(load_manifest(options.model), options, Path(place) / "model")
        settings = load_settings({"model_dir": folder.path, "cache_dir": Path(place) / "cache"})
        with service(settings) as serving:
            sample = Path(place) / "scene.png"
            Image.open(files[0]).resize((768, 768)).save(sample)
            first = serving.post([sample]).seconds
            again = statistics.median(serving.post([sample]).seconds for _ in range(COPIES))
            yield "a picture that comes again", f"{first / again:.0f}x", f"{again * 1e3:.1f} ms after {first:.2f} s"
        with service(settings) as serving:
            yield "start to ready, warm cache of compiled models", f"{serving.start_seconds:.1f} s", ""
        yield from memory(settings, options, Path(place), pictures)


def memory(settings: Settings, options: BenchmarkOptions, place: Path, pictures: int) -> Iterator[Row]:
    """Resident memory after some pictures and after many, with answers of a few tokens."""
    folder = adjusted(load_manifest(options.model), replace(options, tokens=8), place / "short")
    files = find_pictures(None, 8, place)
    with service(settings.model_copy(update={"model_dir": folder.path, "result_cache": 0})) as serving:
        seen = []
        for index in range(pictures):
            serving.post([files[index % len(files)]])
            if index + 1 in (pictures // 10, pictures):
                seen.append(serving.rss_mb())
        detail = f"after {pictures // 10} pictures {seen[0]:.0f} MB, at its peak {serving.peak_rss_mb():.0f} MB"
        yield f"resident memory after {pictures} pictures", f"{seen[1]:.0f} MB", detail


@click.command()
@click.option("--work", type=click.Path(path_type=Path), help="Folder for checkpoint and model, kept; else temporary.")
@click.option("--pictures", type=click.IntRange(10), default=1000, show_default=True, help="For the memory.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(work: Path | None, pictures: int, output: Path) -> None:
    """Measures the table and writes it."""
    quiet_libraries()
    with tempfile.TemporaryDirectory() as temporary:
        place = work or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        checkpoint, model = prepare(place)
        options = BenchmarkOptions(model, compare=checkpoint, tokens=TOKENS)
        rows = [*against_pytorch(options), *of_the_service(options, pictures)]
        step = as_table(measure(model, load_settings()))
    lines = [f"| {what} | {figure} | {detail} |" for what, figure, detail in rows]
    head = (
        f"# Results\n\nFlorence-2-base with random weights, int8 (calibrated), {TOKENS} tokens, default settings, on "
        f"{machine()}.\nWritten by `python -m benchmarks.table --pictures {pictures}`; PyTorch runs in f32, in the "
        "same run.\n\n"
        "| what | result | measured |\n|---|---|---|\n"
    )
    told = f"\n## Where a step of the decoder goes\n\nOne sequence, `python -m benchmarks.step`.\n\n{step}\n"
    output.write_text(head + "\n".join(lines) + "\n" + told)
    click.echo(f"Wrote {output}.")


if __name__ == "__main__":
    main()
