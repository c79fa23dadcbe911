"""The table of `benchmarks/RESULTS.md`: a model of Florence-2-base's size with random weights, compared with PyTorch.

`python -m benchmarks.table` makes the model, measures for some minutes and writes the table.
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
from florence_tagger.bench.measurements import BenchmarkOptions, find_pictures, run_benchmark, with_generation_options
from florence_tagger.bench.processes import service
from florence_tagger.bench.stages import machine
from florence_tagger.config import Settings, load_settings
from florence_tagger.florence.manifest import load_manifest
from training.scenes import World, draw_scene

RESULTS = Path(__file__).parent / "RESULTS.md"
TOKENS = 100
CALIBRATION_PICTURES = 16  # speed does not depend on them
REPEATS = 10

Row = tuple[str, str, str]


class LineProgress:
    """The progress of a conversion as lines."""

    def stage(self, name: str) -> None:
        """Print the name of a stage."""
        click.echo(f"  {name}")

    def note(self, text: str) -> None:
        """Print a note."""
        click.echo(f"  {text}")


def prepare(directory: Path) -> tuple[Path, Path]:
    """Return the random checkpoint and its int8 model folder; make them unless they exist."""
    checkpoint, model = directory / "base", directory / "base-int8"
    if not checkpoint.is_dir():
        write_checkpoint(checkpoint)
    if not model.is_dir():
        pictures = directory / "pictures"
        pictures.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for index in range(CALIBRATION_PICTURES):
            Image.fromarray(draw_scene(rng, World(side=768, max_objects=8)).pixels).save(pictures / f"{index}.png")
        convert(ConversionOptions(str(checkpoint), model, "int8", pictures), LineProgress())
    return checkpoint, model


def compare_with_pytorch(options: BenchmarkOptions) -> Iterator[Row]:
    """Yield the speedup over PyTorch for 1 and 16 concurrent pictures, and the shares of the machine's limits."""
    for beams, name in ((1, "greedy"), (3, "3 beams")):
        figures = run_benchmark(replace(options, beams=beams), load_settings(), click.echo)
        yield f"one picture, {name}", f"{figures['speedup']:.1f}x PyTorch f32", format_seconds(figures)
        yield from shares_of(figures, name)
    figures = run_benchmark(replace(options, beams=3, concurrency=16, rounds=3), load_settings(), click.echo)
    detail = f"{figures['images_per_s']:.2f} pictures/s against {1 / figures['reference_seconds']:.3f}"
    yield "16 pictures at a time, 3 beams", f"{figures['speedup']:.1f}x PyTorch's one at a time", detail


def format_seconds(figures: dict[str, Any]) -> str:
    """Return the seconds of a picture and PyTorch's in words."""
    return f"{figures['picture_seconds']:.3f} s against {figures['reference_seconds']:.2f} s"


def shares_of(figures: dict[str, Any], name: str) -> Iterator[Row]:
    """Yield the shares of the machine's limits that a run reached, and the share of its time outside the model."""
    limits, stages = figures["limits"], figures["stages"]
    if figures["generation"]["num_beams"] == 1:
        gflop, limit = limits["vision_gflop"], limits["vision_limit_gflops"]
        detail = f"{stages['vision'] * 1e3:.0f} ms for {gflop:.0f} GFLOP; limit {limit:.0f} GFLOP/s"
        yield "vision, share of the matmul limit", f"{limits['vision_share']:.0%}", detail
        step = f"{limits['decoder_step_ms']:.2f} ms for {limits['decoder_weights_mb']:.0f} MB"
        bandwidth = f"limit {limits['memory_gb_per_s']:.0f} GB/s"
        yield "decoder, share of the memory limit", f"{limits['decoder_share']:.0%}", f"{step}; {bandwidth}"
    outside = f"{figures['outside_seconds'] * 1e3:.0f} ms for base64, JPEG of 12 megapixels, resize, HTTP and envelope"
    unexplained = f"{figures['unexplained_seconds'] * 1e3:.0f} ms more are in no stage"
    yield f"outside the model, {name}", f"{figures['outside_model_share']:.1%}", f"{outside}; {unexplained}"


def measure_service(options: BenchmarkOptions, num_pictures: int) -> Iterator[Row]:
    """Yield the speed of a cached picture, the start with a warm cache, and the memory over many pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        files = find_pictures(None, 1, directory)
        manifest = with_generation_options(load_manifest(options.model), options, directory / "model")
        settings = load_settings({"model_dir": manifest.path, "cache_dir": directory / "cache"})
        with service(settings) as serving:
            sample = directory / "scene.png"
            Image.open(files[0]).resize((768, 768)).save(sample)
            first = serving.post([sample]).seconds
            again = statistics.median(serving.post([sample]).seconds for _ in range(REPEATS))
            yield "a picture that comes again", f"{first / again:.0f}x", f"{again * 1e3:.1f} ms after {first:.2f} s"
        with service(settings) as serving:
            yield "start to ready, warm cache of compiled models", f"{serving.start_seconds:.1f} s", ""
        yield from measure_memory(settings, options, directory, num_pictures)


def measure_memory(settings: Settings, options: BenchmarkOptions, directory: Path, num_pictures: int) -> Iterator[Row]:
    """Yield the resident memory after a tenth of the pictures and after all, with answers of 8 tokens."""
    manifest = with_generation_options(load_manifest(options.model), replace(options, tokens=8), directory / "short")
    files = find_pictures(None, 8, directory)
    with service(settings.model_copy(update={"model_dir": manifest.path, "result_cache": 0})) as serving:
        rss_mb = []
        for index in range(num_pictures):
            serving.post([files[index % len(files)]])
            if index + 1 in (num_pictures // 10, num_pictures):
                rss_mb.append(serving.rss_mb())
        detail = f"after {num_pictures // 10} pictures {rss_mb[0]:.0f} MB, at its peak {serving.peak_rss_mb():.0f} MB"
        yield f"resident memory after {num_pictures} pictures", f"{rss_mb[1]:.0f} MB", detail


@click.command()
@click.option("--work", type=click.Path(path_type=Path), help="Folder for checkpoint and model, kept; else temporary.")
@click.option("--pictures", type=click.IntRange(10), default=1000, show_default=True, help="For the memory.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(work: Path | None, pictures: int, output: Path) -> None:
    """Measure the table and write it."""
    quiet_libraries()
    with tempfile.TemporaryDirectory() as temporary:
        directory = work or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        checkpoint, model = prepare(directory)
        options = BenchmarkOptions(model, compare=checkpoint, tokens=TOKENS)
        rows = [*compare_with_pytorch(options), *measure_service(options, pictures)]
        step = as_table(measure(model, load_settings()))
    lines = [f"| {name} | {result} | {detail} |" for name, result, detail in rows]
    head = (
        f"# Results\n\nFlorence-2-base with random weights, int8 (calibrated), {TOKENS} tokens, default settings, on "
        f"{machine()}.\nWritten by `python -m benchmarks.table --pictures {pictures}`; PyTorch runs in f32, in the "
        "same run.\n\n"
        "| what | result | measured |\n|---|---|---|\n"
    )
    section = f"\n## Where a step of the decoder goes\n\nOne sequence, `python -m benchmarks.step`.\n\n{step}\n"
    output.write_text(head + "\n".join(lines) + "\n" + section)
    click.echo(f"Wrote {output}.")


if __name__ == "__main__":
    main()
