"""The benchmark's measurements, in order, and its report."""

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from florence_tagger.bench.processes import Serving, Timing, reference, service
from florence_tagger.bench.stages import machine, measure_stages
from florence_tagger.config import SAMPLES, Settings
from florence_tagger.errors import TaggerError
from florence_tagger.florence.decoding import with_fixed_length
from florence_tagger.florence.manifest import GENERATION, MANIFEST, ModelManifest, load_manifest, read_json
from florence_tagger.florence.model import load_model
from florence_tagger.media.images import open_rgb, to_jpeg

OUTSIDE_MODEL = ("base64", "decode_file", "preprocess", "postprocess", "http")  # stages
PHOTO_SIZE = (4032, 3024)  # a phone's twelve megapixels
PHOTO_NOISE = 4.0  # of 255, like a camera's sensor: without it a photo would be decoded faster


@dataclass(frozen=True)
class BenchmarkOptions:
    """The options of a benchmark.

    Attributes:
        model: a model folder.
        compare: the checkpoint that the model was made from, to run through PyTorch; None for no comparison.
        beams: number of beams; None for the model's.
        tokens: exact number of tokens in each answer; None for the model's own answers.
        concurrency: number of concurrent requests.
        rounds: number of rounds of requests, each with one picture through PyTorch.
        images: a folder of pictures; None for photos made from the sample pictures.
    """

    model: Path
    compare: Path | None = None
    beams: int | None = None
    tokens: int | None = None
    concurrency: int = 1
    rounds: int = 5
    images: Path | None = None


@dataclass(frozen=True)
class Measured:
    """Measurements of one run of the benchmark.

    Attributes:
        stages: seconds by stage, and the tokens of a picture.
        limits: those of the machine.
        rounds: each round's timing of the service, and the seconds of PyTorch if it is compared.
        single: timings of single pictures.
        start_seconds: of the service.
        peak_rss_mb: of all processes of the service.
    """

    stages: dict[str, float]
    limits: dict[str, Any]
    rounds: Sequence[tuple[Timing, float | None]]
    single: Sequence[Timing]
    start_seconds: float
    peak_rss_mb: float

    def figures(self, concurrency: int) -> dict[str, Any]:
        """Return the figures of `concurrency` pictures at a time, by name."""
        stages = dict(self.stages)
        picture_seconds = statistics.median(timing.seconds for timing in self.single)
        stages["http"] = statistics.median(timing.seconds - timing.service_seconds for timing in self.single)
        images_per_s = concurrency / statistics.median(timing.seconds for timing, _ in self.rounds)
        reference_seconds = median_or_none([seconds for _, seconds in self.rounds if seconds is not None])
        tokens = stages.pop("tokens")
        outside_seconds = sum(stages[name] for name in OUTSIDE_MODEL)
        model_seconds = stages["vision"] + stages["encoder"] + stages["decoder"]
        return {
            "picture_seconds": picture_seconds,
            "images_per_s": images_per_s,
            "tokens_per_picture": tokens,
            "tokens_per_s": images_per_s * tokens,
            "reference_seconds": reference_seconds,
            "speedup": None if reference_seconds is None else reference_seconds * images_per_s,
            "stages": stages,
            "outside_seconds": outside_seconds,
            "outside_model_share": outside_seconds / picture_seconds,
            "unexplained_seconds": picture_seconds - outside_seconds - model_seconds,
            "start_seconds": self.start_seconds,
            "peak_rss_mb": self.peak_rss_mb,
            "limits": self.limits,
        }


def run_benchmark(
    options: BenchmarkOptions, settings: Settings, report_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Run the benchmark, and return its figures by name, as in the JSON file.

    Args:
        options: what to measure.
        settings: of the service.
        report_progress: called with the name of each measurement before it begins.

    Raises:
        TaggerError: the model or the checkpoint can't be used, or the service fails.
    """
    options = replace(options, beams=options.beams or settings.num_beams)
    checkpoint = options.compare
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        manifest = with_generation_options(load_manifest(options.model), options, directory / "model")
        # the model folder's generation settings apply to both sides
        unset = dict.fromkeys(("num_beams", "no_repeat_ngram", "max_new_tokens"))
        settings = settings.model_copy(update={"model_dir": manifest.path, "result_cache": 0} | unset)
        florence2 = load_model(manifest, settings)
        pictures = find_pictures(options.images, options.concurrency, directory)
        with reference(checkpoint, options.beams, options.tokens) if checkpoint else nullcontext() as time_reference:
            if time_reference:
                report_progress("PyTorch's first picture")  # a warm-up that fails early if PyTorch can't be compared
                time_reference(pictures[0])
            report_progress("the machine's limits and the stages")
            stages, limits = measure_stages(florence2, settings, pictures[: options.rounds])
            report_progress("the service" + (" and PyTorch" if checkpoint else ""))
            with service(settings) as serving:
                rounds = measure_rounds(serving, time_reference, options, pictures, report_progress)
                single = [serving.post(pictures[:1]) for _ in range(options.rounds)]
                peak_rss_mb = serving.peak_rss_mb()
    measured = Measured(stages, limits, rounds, single, serving.start_seconds, peak_rss_mb)
    name = load_manifest(options.model).name
    return {
        "machine": machine(),
        "model": {"name": name, "precision": manifest.precision},
        "generation": asdict(manifest.generation),
        "concurrency": options.concurrency,
        "tiles": settings.tiles,
    } | measured.figures(options.concurrency)


def median_or_none(values: Sequence[float]) -> float | None:
    """Return the median of some values, None if there are none."""
    return statistics.median(values) if values else None


def find_pictures(images: Path | None, min_pictures: int, directory: Path) -> list[Path]:
    """Return at least `min_pictures` pictures: the files in `images`, repeated, or distinct photos in `directory`."""
    if images is not None:
        paths = sorted(path for path in images.iterdir() if path.is_file()) if images.is_dir() else []
        if not paths:
            raise TaggerError(f"{images} has no pictures.")
        return [paths[index % len(paths)] for index in range(max(min_pictures, len(paths)))]
    rng = np.random.default_rng(0)
    samples = sorted(SAMPLES.glob("*.png"))
    return [
        write_photo(samples[index % len(samples)], rng, directory / f"{index}.jpg")
        for index in range(max(min_pictures, 5))
    ]


def write_photo(sample: Path, rng: np.random.Generator, path: Path) -> Path:
    """Write a sample picture as a phone's photo: twelve megapixels, noise, JPEG."""
    scene = open_rgb(sample.read_bytes(), 10**8).resize(PHOTO_SIZE)
    noise = rng.normal(0, PHOTO_NOISE, (*reversed(PHOTO_SIZE), 3)).astype(np.float32)
    path.write_bytes(to_jpeg((np.asarray(scene) + noise).clip(0, 255).astype(np.uint8)))
    return path


def with_generation_options(manifest: ModelManifest, options: BenchmarkOptions, directory: Path) -> ModelManifest:
    """Write a copy of a model folder with the options' generation settings to `directory`; large files are links."""
    directory.mkdir()
    for path in manifest.path.iterdir():
        (directory / path.name).symlink_to(path.resolve())
    generation = json.dumps(asdict(with_fixed_length(manifest.generation, options.beams, options.tokens)))
    contents = read_json(manifest.path / MANIFEST)
    contents["files"][GENERATION] |= {"size": len(generation.encode()), "sha256": None}
    for name, text in ((GENERATION, generation), (MANIFEST, json.dumps(contents))):
        (directory / name).unlink()
        (directory / name).write_text(text)
    return load_manifest(directory)


def measure_rounds(
    serving: Serving,
    time_reference: Callable[[Path], float] | None,
    options: BenchmarkOptions,
    pictures: Sequence[Path],
    report_progress: Callable[[str], None],
) -> list[tuple[Timing, float | None]]:
    """Return the timing of each round of requests to the service, with PyTorch's seconds for one of its pictures."""
    serving.post(pictures[:1])
    rounds: list[tuple[Timing, float | None]] = []
    for index in range(options.rounds):
        report_progress(f"round {index + 1} of {options.rounds}")
        start = index * options.concurrency % len(pictures)
        sent = [pictures[(start + offset) % len(pictures)] for offset in range(options.concurrency)]
        timing = serving.post(sent)
        rounds.append((timing, time_reference(sent[0]) if time_reference else None))
    return rounds


def report(figures: dict[str, Any]) -> None:
    """Print the figures as tables."""
    console = Console()
    table = Table("stage", "ms", "share of the limit", title=f"{figures['model']['name']} on {figures['machine']}")
    for name, seconds in figures["stages"].items():
        share = figures["limits"].get(f"{name}_share") if name != "decoder" else None
        table.add_row(name.replace("_", " "), f"{seconds * 1e3:.2f}", f"{share:.0%}" if share else "")
    table.add_row("a picture by itself", f"{figures['picture_seconds'] * 1e3:.1f}")
    console.print(table)
    rows = {name: value for name, value in figures.items() if isinstance(value, int | float)} | figures["limits"]
    for name, value in rows.items():
        console.print(f"{name.replace('_', ' ')}: {value:.4g}", highlight=False)
