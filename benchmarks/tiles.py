"""Benefit and cost of tiles: counts of scenes, objects on seams, time and memory.

`python -m benchmarks.tiles` prints the table of docs/counting.md, `python -m benchmarks.tiles seams pairs` these rows.
"""

import io
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from numpy.random import Generator
from PIL import Image

from convert.agreement import count_errors
from florence_tagger import Tagger
from florence_tagger.bench.processes import peak_rss
from florence_tagger.context import RequestContext
from florence_tagger.counting import count_detections
from florence_tagger.media.drawing import draw_detections
from florence_tagger.media.images import open_rgb, to_jpeg
from florence_tagger.media.limits import DecodeOptions, SandboxLimits
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.schemas import AUTO, Detection, Tiles
from florence_tagger.tiling import grid, max_frames_per_picture
from training.grounds import Canvas, draw_ground
from training.matching import overlap_share
from training.scenes import (
    LABELS,
    Pixels,
    Rectangle,
    Scene,
    SceneObject,
    World,
    apply_camera,
    choose_sprite,
    draw_scene,
    draw_shape,
    paste,
)

SEED = 20261130  # of scenes that were used neither in training nor for any choice
SIDE = 1200  # pixels
DENSE = World(side=SIDE, min_objects=15, max_objects=60, min_size=0.03, max_size=0.10)
ORDINARY = World(side=SIDE)
SEAM_TILES = 3  # per side
MAX_LABELS = 5  # objects or pairs on seams in a scene
MIN_OVERLAP_SHARE = 0.5  # intersection over smaller area, of a detection and an object that match
BATCH = 20  # scenes that are counted before the other setting takes its turn
NUM_THREADS = 8  # documents in flight, as many as the model runs at once
INPUT_SIZE = (224, 224)  # of the bundled model
LARGE_INPUT_SIZE = (768, 768)  # of Florence-2, which needs more pixels of a picture
HUGE_SIDE = 10_000
PICTURE = Path(__file__).parents[1] / "docs" / "tiles.jpg"


@dataclass(frozen=True)
class Outcome:
    """Scenes, the detections in each, and the seconds that all took."""

    scenes: Sequence[Scene]
    detections: Sequence[Sequence[Detection]]
    seconds: float

    @property
    def errors(self) -> list[int]:
        """Sum of the errors of all counts, for each scene."""
        return [
            sum(count_errors(count_detections(detections), scene.counts).values())
            for scene, detections in zip(self.scenes, self.detections, strict=True)
        ]

    @property
    def exact(self) -> float:
        """Share of scenes with only correct counts."""
        return self.errors.count(0) / len(self.scenes)

    @property
    def error_rate(self) -> float:
        """Sum of the errors of all counts over the number of objects."""
        return sum(self.errors) / count_objects(self.scenes)

    def exact_labels(self, number: int) -> float:
        """Return the share of labels, of which each scene has `number` objects, with as many matching detections."""
        is_exact = [
            sum(detection.label == label and matches(detection, scene) for detection in detections) == number
            for scene, detections in zip(self.scenes, self.detections, strict=True)
            for label in scene.counts
        ]
        return sum(is_exact) / len(is_exact)


def count_objects(scenes: Iterable[Scene]) -> int:
    """Return the number of objects in all scenes."""
    return sum(len(scene.objects) for scene in scenes)


def matches(detection: Detection, scene: Scene) -> bool:
    """Return whether a detection overlaps an object with its label."""
    return any(
        item.label == detection.label and overlap_share(detection.box, item.box) >= MIN_OVERLAP_SHARE
        for item in scene.objects
    )


def detect_scenes(tagger: Tagger, scenes: Sequence[Scene], tiles: Tiles) -> Outcome:
    """Detect the objects in scenes, several in parallel."""
    files = [png(scene.pixels) for scene in scenes]

    def detect(file: bytes) -> Sequence[Detection]:
        (frame_result,) = tagger.detect(file, tiles=tiles).frames
        return frame_result.detections

    started = time.perf_counter()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        detections = list(pool.map(detect, files))
    return Outcome(scenes, detections, time.perf_counter() - started)


def concatenate(outcomes: Iterable[Outcome]) -> Outcome:
    """Return one outcome with the scenes of several."""
    parts = list(outcomes)
    return Outcome(
        [scene for part in parts for scene in part.scenes],
        [detections for part in parts for detections in part.detections],
        sum(part.seconds for part in parts),
    )


def batches_of(scenes: Sequence[Scene], size: int) -> list[Sequence[Scene]]:
    """Return scenes in batches of `size`."""
    return [scenes[offset : offset + size] for offset in range(0, len(scenes), size)]


def png(pixels: Pixels) -> bytes:
    """Return a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def draw_scenes(world: World, number: int, seed: int) -> list[Scene]:
    """Draw scenes of a world."""
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, world) for _ in range(number)]


def draw_seam_scene(rng: Generator, min_size: float, max_size: float, max_labels: int, pairs: bool) -> Scene:
    """Draw a scene of objects, or touching pairs, each over an edge of a tile and the only one with its label.

    Args:
        rng: source of all random choices.
        min_size: minimum of an object's longer side, as a share of the picture's.
        max_size: maximum, likewise.
        max_labels: maximum number of objects or pairs.
        pairs: draw pairs.
    """
    world = replace(ORDINARY, min_size=min_size, max_size=max_size)
    canvas = draw_ground(rng, draw_shape(rng, world), world.photographs)
    items: list[SceneObject] = []
    for label in rng.permutation(LABELS)[:max_labels].tolist():
        for _ in range(100):
            candidates = choose_seam_boxes(rng, world, canvas, label, pairs)
            if all(overlap_share(box, item.box) == 0 for box, _ in candidates for item in items):
                for box, sprite in candidates:
                    paste(rng, canvas, sprite, box, world.recolored)
                    items.append(SceneObject(label, box))
                break
    return Scene(apply_camera(rng, canvas, world), tuple(items))


def draw_seam_scenes(rng: Generator, min_size: float, max_size: float, number: int, pairs: bool) -> list[Scene]:
    """Draw scenes with `number` objects or pairs on seams in all."""
    scenes: list[Scene] = []
    remaining = number
    while remaining > 0:
        scenes.append(draw_seam_scene(rng, min_size, max_size, min(remaining, MAX_LABELS), pairs))
        remaining -= len(scenes[-1].counts)
    return scenes


def choose_seam_boxes(
    rng: Generator, world: World, canvas: Canvas, label: str, pairs: bool
) -> list[tuple[Rectangle, Pixels]]:
    """Return one box or two touching boxes, each with its sprite, over an inner edge of a tile."""
    height, width = canvas.shape[:2]
    _, sprite = choose_sprite(rng, world, [label])
    scale = rng.uniform(world.min_size, world.max_size) * world.side / max(sprite.shape[:2])
    h, w = (max(6, round(side * scale)) for side in sprite.shape[:2])
    beside = bool(pairs and rng.random() < 0.5)
    below = pairs and not beside
    total_w, total_h = w * (1 + beside), h * (1 + below)
    x, y = int(rng.integers(0, width - total_w)), int(rng.integers(0, height - total_h))
    tiles = grid(width, height, SEAM_TILES, INPUT_SIZE)
    if rng.random() < 0.5:
        seams = sorted({edge for tile in tiles for edge in (tile[0], tile[2])} - {0, width})
        x = int(np.clip(rng.choice(seams) - round(rng.uniform(0.1, 0.9) * total_w), 0, width - total_w))
    else:
        seams = sorted({edge for tile in tiles for edge in (tile[1], tile[3])} - {0, height})
        y = int(np.clip(rng.choice(seams) - round(rng.uniform(0.1, 0.9) * total_h), 0, height - total_h))
    boxes = [(x, y, x + w, y + h)]
    if pairs:
        boxes.append((x + w * beside, y + h * below, x + w * (1 + beside), y + h * (1 + below)))
    return [(box, sprite) for box in boxes]


def measure_dense(tagger: Tagger, number: int, seed: int) -> None:
    """Measure the counts of dense scenes without tiles, in tiles, and with automatic tiles."""
    scenes = draw_scenes(DENSE, number, seed)
    for tiles in (1, SEAM_TILES, AUTO):
        outcome = detect_scenes(tagger, scenes, tiles)
        name = f"{number} dense scenes, {count_objects(scenes)} objects, tiles {tiles}: errors / objects"
        print_row(name, f"{outcome.error_rate:.3f}")


def measure_ordinary(tagger: Tagger, number: int, seed: int) -> None:
    """Measure ordinary scenes without tiles and with automatic tiles, in turns, because the machine may be shared."""
    scenes = draw_scenes(ORDINARY, number, seed + 1)
    turns = [[detect_scenes(tagger, batch, tiles) for tiles in (1, AUTO)] for batch in batches_of(scenes, BATCH)]
    plain, auto = (concatenate(outcomes) for outcomes in zip(*turns, strict=True))
    print_row(
        f"{number} ordinary scenes, {count_objects(scenes)} objects, tiles 1: exactly right", f"{plain.exact:.1%}"
    )
    print_row(f"{number} ordinary scenes, tiles {AUTO}: exactly right", f"{auto.exact:.1%}")
    ratio = auto.seconds / plain.seconds
    print_row(f"{number} ordinary scenes, time of tiles {AUTO} over that of tiles 1", f"{ratio:.2f}")


def measure_seams(tagger: Tagger, number: int, seed: int) -> None:
    """Measure the counts of objects over the edges of tiles."""
    rng = np.random.default_rng(seed + 2)
    for min_size, max_size, share in ((0.03, 0.10, 2 / 3), (0.10, 0.30, 1 / 3)):
        scenes = draw_seam_scenes(rng, min_size, max_size, round(number * share), pairs=False)
        outcome = detect_scenes(tagger, scenes, SEAM_TILES)
        name = f"{count_objects(scenes)} objects on seams, {min_size:.0%} to {max_size:.0%} of the side: counted once"
        print_row(name, f"{outcome.exact_labels(1):.1%}")


def measure_pairs(tagger: Tagger, number: int, seed: int) -> None:
    """Measure the counts of touching neighbors with one label over the edges of tiles."""
    scenes = draw_seam_scenes(np.random.default_rng(seed + 3), 0.04, 0.10, number, pairs=True)
    outcome = detect_scenes(tagger, scenes, SEAM_TILES)
    name = f"{count_objects(scenes) // 2} touching pairs of one label on seams: counted as two"
    print_row(name, f"{outcome.exact_labels(2):.1%}")


def measure_cost(tagger: Tagger, number: int, seed: int) -> None:
    """Measure the time of a picture in tiles relative to that of as many pictures, in turns."""
    frames = max_frames_per_picture(SEAM_TILES)
    scenes, others = draw_scenes(DENSE, number, seed + 4), draw_scenes(DENSE, number * frames, seed + 5)
    turns = [
        [detect_scenes(tagger, [scene], SEAM_TILES), detect_scenes(tagger, batch, 1)]
        for scene, batch in zip(scenes, batches_of(others, frames), strict=True)
    ]
    tiled, plain = (concatenate(outcomes) for outcomes in zip(*turns, strict=True))
    ratio = tiled.seconds / plain.seconds
    print_row(f"time of {frames} looks at a picture over that of {frames} pictures", f"{ratio:.2f}")


def measure_memory(tagger: Tagger, number: int, seed: int) -> None:
    """Measure the memory of a decoder process that tiles pictures of 100 megapixels, beyond that after its start."""
    rng = np.random.default_rng(seed + 6)
    scene = draw_scene(rng, DENSE)
    pixels = np.asarray(Image.fromarray(scene.pixels).resize((HUGE_SIDE, HUGE_SIDE)))
    files = {"PNG": png(pixels), "JPEG": to_jpeg(pixels)}
    del pixels
    for name, file in files.items():
        limits = SandboxLimits(DecodeOptions(LARGE_INPUT_SIZE, HUGE_SIDE**2, reduced=True), int(600e6), 300)
        decoders = DecoderPool(1, limits)
        try:
            while not decoders.pids:
                time.sleep(0.05)
            (pid,) = decoders.pids
            list(decoders.frames(png(scene.pixels[:64, :64]), Sampling(), RequestContext.within(60)))
            before = peak_rss(pid)
            started = time.perf_counter()
            frames = sum(1 for _ in decoders.frames(file, Sampling(), RequestContext.within(300), tiles=(6,)))
            seconds = time.perf_counter() - started
            used = (peak_rss(pid) - before) / 1e6
            value = f"{used:.0f} MB, {seconds:.1f} s"
            print_row(f"100 megapixels, {name}, in 6 x 6 tiles, {frames} looks: memory", value)
        finally:
            decoders.close()


def draw_picture(tagger: Tagger, number: int, seed: int) -> None:
    """Draw the picture of docs/counting.md: a dense scene without tiles and in tiles."""
    file = png(draw_scene(np.random.default_rng(seed + 7), replace(DENSE, max_aspect=1), 45).pixels)
    halves = []
    for tiles in (1, SEAM_TILES):
        (frame_result,) = tagger.detect(file, tiles=tiles).frames
        pixels = np.asarray(open_rgb(file, 10**8))
        halves.append(
            np.asarray(draw_detections(pixels, frame_result.detections, frame_result.tiles).resize((600, 600)))
        )
    PICTURE.write_bytes(to_jpeg(np.concatenate(halves, axis=1), 80))


ROWS: dict[str, Callable[[Tagger, int, int], None]] = {
    "dense": measure_dense,
    "ordinary": measure_ordinary,
    "seams": measure_seams,
    "pairs": measure_pairs,
    "cost": measure_cost,
    "memory": measure_memory,
    "picture": draw_picture,
}
NUMBERS = {"dense": 200, "ordinary": 500, "seams": 300, "pairs": 300, "cost": 10}


def print_row(name: str, value: str) -> None:
    """Print a row of the table."""
    click.echo(f"| {name} | {value} |")


@click.command()
@click.argument("rows", nargs=-1, type=click.Choice([*ROWS]))
@click.option("--number", type=click.IntRange(1), help="Scenes or objects of each row.")
@click.option("--seed", type=int, default=SEED, show_default=True, help="Other seeds draw other scenes.")
def main(rows: Sequence[str], number: int | None, seed: int) -> None:
    """Measure, and print rows of a table."""
    for name in rows or ROWS:
        # Rows of times must not be answered from the cache; other rows may be, if pictures are the same.
        with Tagger.load(result_cache=0 if name in ("ordinary", "cost") else 4096, video_max_frames=1) as tagger:
            ROWS[name](tagger, number or NUMBERS.get(name, 1), seed)


if __name__ == "__main__":
    main()
