"""The benchmark: what is measured, in which order, and what is told of it."""

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
from florence_tagger.bench.stages import machine, measure_inside
from florence_tagger.config import SAMPLES, Settings
from florence_tagger.errors import TaggerError
from florence_tagger.florence.decoding import exactly
from florence_tagger.florence.manifest import GENERATION, MANIFEST, ModelManifest, load_manifest, read_json
from florence_tagger.florence.model import load_model
from florence_tagger.media.images import open_rgb, to_jpeg

OUTSIDE = ("base64", "decode_file", "preprocess", "postprocess", "http")  # the stages that are not the model's
PHOTO_SIZE = (4032, 3024)  # a phone's twelve megapixels
PHOTO_NOISE = 4.0  # of 255, as a camera's sensor has it: what makes a photo cost what it costs to decode


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure.

    Attributes:
        model: a model folder; compare: the checkpoint that it was made from, to run through PyTorch beside it.
        tokens: exactly so many in each answer, however the model would end it; None for its own answers.
        concurrency: requests at a time.
        rounds: how often the pictures go through the service, and one through PyTorch.
        images: a folder of pictures; None for photos made from the sample pictures.
    """

    model: Path
    compare: Path | None = None
    beams: int | None = None
    tokens: int | None = None
    concurrency: int = 1
    rounds: int = 5
    images: Path | None = None


def run_benchmark(options: BenchmarkOptions, settings: Settings, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measures; `tell` is told what is being measured. The figures by name, as the JSON file has them.

    Raises:
        TaggerError: the model or the checkpoint can't be used, or the service fails.
    """
    options = replace(options, beams=options.beams or settings.num_beams)
    compared = options.compare
    with tempfile.TemporaryDirectory() as place:
        folder = adjusted(load_manifest(options.model), options, Path(place) / "model")
        # what the folder says of generation goes for both sides
        own = dict.fromkeys(("num_beams", "no_repeat_ngram", "max_new_tokens"))
        settings = settings.model_copy(update={"model_dir": folder.path, "result_cache": 0} | own)
        florence2 = load_model(folder, settings)
        pictures = find_pictures(options.images, options.concurrency, Path(place))
        with reference(compared, options.beams, options.tokens) if compared else nullcontext() as theirs:
            if theirs:
                tell("PyTorch's first picture")  # it counts on neither side; what can't be compared is known at once
                theirs(pictures[0])
            tell("the machine's limits and the stages")
            stages, limits = measure_inside(florence2, settings, pictures[: options.rounds])
            tell("the service" + (" and PyTorch" if compared else ""))
            with service(settings) as serving:
                rounds = measure_rounds(serving, theirs, options, pictures, tell)
                alone = [serving.post(pictures[:1]) for _ in range(options.rounds)]
                peak = serving.peak_rss_mb()
    whole = statistics.median(one.seconds for one in alone)
    stages["http"] = statistics.median(one.seconds - one.inside for one in alone)
    images_per_s = options.concurrency / statistics.median(one.seconds for one, _ in rounds)
    compared_seconds = [seconds for _, seconds in rounds if seconds is not None]
    tokens = stages.pop("tokens")
    outside = sum(stages[name] for name in OUTSIDE)
    model_seconds = stages["vision"] + stages["encoder"] + stages["decoder"]
    return {
        "machine": machine(),
        "model": {"name": load_manifest(options.model).name, "precision": folder.precision},
        "generation": asdict(folder.generation),
        "concurrency": options.concurrency,
        "tiles": settings.tiles,
        "picture_seconds": whole,
        "images_per_s": images_per_s,
        "tokens_per_picture": tokens,
        "tokens_per_s": images_per_s * tokens,
        "reference_seconds": statistics.median(compared_seconds) if compared_seconds else None,
        "speedup": statistics.median(compared_seconds) * images_per_s if compared_seconds else None,
        "stages": stages,
        "outside_seconds": outside,
        "outside_model_share": outside / whole,
        "unexplained_seconds": whole - outside - model_seconds,
        "start_seconds": serving.start_seconds,
        "peak_rss_mb": peak,
        "limits": limits,
    }


def find_pictures(images: Path | None, number: int, place: Path) -> list[Path]:
    """The pictures to send, `number` or more, each other bytes than the rest."""
    if images is not None:
        found = sorted(path for path in images.iterdir() if path.is_file()) if images.is_dir() else []
        if not found:
            raise TaggerError(f"{images} has no pictures.")
        return [found[index % len(found)] for index in range(max(number, len(found)))]
    rng = np.random.default_rng(0)
    samples = sorted(SAMPLES.glob("*.png"))
    return [photo(samples[index % len(samples)], rng, place / f"{index}.jpg") for index in range(max(number, 5))]


def photo(sample: Path, rng: np.random.Generator, path: Path) -> Path:
    """A sample picture as a phone's camera would take it: twelve megapixels, noise, JPEG."""
    scene = open_rgb(sample.read_bytes(), 10**8).resize(PHOTO_SIZE)
    noise = rng.normal(0, PHOTO_NOISE, (*reversed(PHOTO_SIZE), 3)).astype(np.float32)
    path.write_bytes(to_jpeg((np.asarray(scene) + noise).clip(0, 255).astype(np.uint8)))
    return path


def adjusted(folder: ModelManifest, options: BenchmarkOptions, place: Path) -> ModelManifest:
    """The model folder with other generation settings, at `place`; its large files are links."""
    place.mkdir()
    for path in folder.path.iterdir():
        (place / path.name).symlink_to(path.resolve())
    wanted = json.dumps(asdict(exactly(folder.generation, options.beams, options.tokens)))
    manifest = read_json(folder.path / MANIFEST)
    manifest["files"][GENERATION] |= {"size": len(wanted.encode()), "sha256": None}
    for name, text in ((GENERATION, wanted), (MANIFEST, json.dumps(manifest))):
        (place / name).unlink()
        (place / name).write_text(text)
    return load_manifest(place)


def measure_rounds(
    serving: Serving,
    theirs: Callable[[Path], float] | None,
    options: BenchmarkOptions,
    pictures: Sequence[Path],
    tell: Callable[[str], None],
) -> list[tuple[Timing, float | None]]:
    """Rounds of requests to the service, each with a picture through PyTorch after it if that is wanted."""
    serving.post(pictures[:1])
    rounds: list[tuple[Timing, float | None]] = []
    for index in range(options.rounds):
        tell(f"round {index + 1} of {options.rounds}")
        start = index * options.concurrency % len(pictures)
        chosen = [pictures[(start + place) % len(pictures)] for place in range(options.concurrency)]
        ours = serving.post(chosen)
        rounds.append((ours, theirs(chosen[0]) if theirs else None))
    return rounds


def report(figures: dict[str, Any]) -> None:
    """Prints the figures as tables."""
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
