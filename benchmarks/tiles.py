"""What tiles are worth and what they cost: counts of scenes, objects on seams, time and memory.

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
from florence_tagger.counting import count_detections
from florence_tagger.media.drawing import draw_detections
from florence_tagger.media.images import open_rgb, to_jpeg
from florence_tagger.media.limits import DecodeOptions, SandboxLimits
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.schemas import AUTO, Detection, Tiles
from florence_tagger.tiling import grid
from training.grounds import Canvas, draw_ground
from training.matching import covered
from training.scenes import (
    LABELS,
    Pixels,
    Rectangle,
    Scene,
    SceneObject,
    World,
    choose_sprite,
    draw_scene,
    draw_shape,
    finish,
    paste,
)

SEED = 20261130  # of scenes that neither training nor any choice has seen
SIDE = 1200  # pixels
DENSE = World(side=SIDE, least=15, most=60, smallest=0.03, largest=0.10)
ORDINARY = World(side=SIDE)
SEAM_TILES = 3  # a side
EACH = 5  # objects or pairs on seams in a scene
ON_OBJECT = 0.5  # the least common area with an object, of the smaller box, of a detection that is on it
PART = 20  # scenes, that are counted in turns
TOGETHER = 8  # documents at a time, as many as the model takes on together
INPUT = (224, 224)  # the bundled model's
LARGE_INPUT = (768, 768)  # Florence-2's own, which needs more of a picture
HUGE_SIDE = 10_000
PICTURE = Path(__file__).parents[1] / "docs" / "tiles.jpg"


@dataclass(frozen=True)
class FileRecord:
    """Scenes, what was found in them, and the seconds that it took."""

    scenes: Sequence[Scene]
    found: Sequence[Sequence[Detection]]
    seconds: float

    @property
    def errors(self) -> list[int]:
        """Of each scene the sum of the errors of its counts."""
        return [
            sum(count_errors(count_detections(found), scene.counts).values())
            for scene, found in zip(self.scenes, self.found, strict=True)
        ]

    @property
    def exact(self) -> float:
        """The share of scenes whose counts are all right."""
        return self.errors.count(0) / len(self.scenes)

    @property
    def error(self) -> float:
        """The sum of the errors of all counts over the number of objects."""
        return sum(self.errors) / objects_in(self.scenes)

    def share(self, number: int) -> float:
        """The share of labels, of which each scene has `number` objects, that are found so often where these are."""
        right = [
            sum(one.label == label and touches(one, scene) for one in found) == number
            for scene, found in zip(self.scenes, self.found, strict=True)
            for label in scene.counts
        ]
        return sum(right) / len(right)


def objects_in(scenes: Iterable[Scene]) -> int:
    """How many objects scenes have."""
    return sum(len(scene.objects) for scene in scenes)


def touches(detection: Detection, scene: Scene) -> bool:
    """Whether a detection is on an object of its label."""
    return any(one.label == detection.label and covered(detection.box, one.box) >= ON_OBJECT for one in scene.objects)


def count(tagger: Tagger, scenes: Sequence[Scene], tiles: Tiles) -> FileRecord:
    """Counts what is in scenes, several at a time."""
    files = [png(scene.pixels) for scene in scenes]

    def found_in(file: bytes) -> Sequence[Detection]:
        (frame_result,) = tagger.detect(file, tiles=tiles).frames
        return frame_result.detections

    started = time.perf_counter()
    with ThreadPoolExecutor(TOGETHER) as pool:
        found = list(pool.map(found_in, files))
    return FileRecord(scenes, found, time.perf_counter() - started)


def joined(counts: Iterable[FileRecord]) -> FileRecord:
    """Counts as one."""
    parts = list(counts)
    return FileRecord(
        [scene for part in parts for scene in part.scenes],
        [found for part in parts for found in part.found],
        sum(part.seconds for part in parts),
    )


def parts_of(scenes: Sequence[Scene], size: int) -> list[Sequence[Scene]]:
    """Scenes, so many at a time."""
    return [scenes[place : place + size] for place in range(0, len(scenes), size)]


def png(pixels: Pixels) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


# ---- scenes ----------------------------------------------------------------------------------------------------------


def scenes_of(world: World, number: int, seed: int) -> list[Scene]:
    """Scenes of a world."""
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, world) for _ in range(number)]


def seam_scene(rng: Generator, least: float, most: float, each: int, pairs: bool) -> Scene:
    """A scene of objects, or touching pairs of them, each over an edge of a tile and the only one of its label.

    Args:
        least, most: longer side of an object, as a share of the picture's.
        each: objects or pairs, at most.
    """
    world = replace(ORDINARY, smallest=least, largest=most)
    canvas = draw_ground(rng, draw_shape(rng, world), world.photographs)
    placed: list[SceneObject] = []
    for label in rng.permutation(LABELS)[:each].tolist():
        for _ in range(100):
            boxes = over_seam(rng, world, canvas, label, pairs)
            if all(covered(box, one.box) == 0 for box, _ in boxes for one in placed):
                for box, sprite in boxes:
                    paste(rng, canvas, sprite, box, world.recoloured)
                    placed.append(SceneObject(label, box))
                break
    return Scene(finish(rng, canvas, world), tuple(placed))


def seam_scenes(rng: Generator, least: float, most: float, number: int, pairs: bool) -> list[Scene]:
    """Scenes with so many objects or pairs on seams in all."""
    scenes: list[Scene] = []
    left = number
    while left > 0:
        scenes.append(seam_scene(rng, least, most, min(left, EACH), pairs))
        left -= len(scenes[-1].counts)
    return scenes


def over_seam(rng: Generator, world: World, canvas: Canvas, label: str, pairs: bool) -> list[tuple[Rectangle, Pixels]]:
    """One or two boxes that touch, with their sprites, over an inner edge of a tile."""
    height, width = canvas.shape[:2]
    _, sprite = choose_sprite(rng, world, [label])
    scale = rng.uniform(world.smallest, world.largest) * world.side / max(sprite.shape[:2])
    h, w = (max(6, round(side * scale)) for side in sprite.shape[:2])
    beside = bool(pairs and rng.random() < 0.5)
    below = pairs and not beside
    across, down = w * (1 + beside), h * (1 + below)
    x, y = int(rng.integers(0, width - across)), int(rng.integers(0, height - down))
    tiles = grid(width, height, SEAM_TILES, INPUT)
    if rng.random() < 0.5:
        seams = sorted({edge for tile in tiles for edge in (tile[0], tile[2])} - {0, width})
        x = int(np.clip(rng.choice(seams) - round(rng.uniform(0.1, 0.9) * across), 0, width - across))
    else:
        seams = sorted({edge for tile in tiles for edge in (tile[1], tile[3])} - {0, height})
        y = int(np.clip(rng.choice(seams) - round(rng.uniform(0.1, 0.9) * down), 0, height - down))
    boxes = [(x, y, x + w, y + h)]
    if pairs:
        boxes.append((x + w * beside, y + h * below, x + w * (1 + beside), y + h * (1 + below)))
    return [(box, sprite) for box in boxes]


# ---- rows ------------------------------------------------------------------------------------------------------------


def dense(tagger: Tagger, number: int, seed: int) -> None:
    """Dense scenes, whole, in tiles, and as the whole calls for."""
    scenes = scenes_of(DENSE, number, seed)
    for tiles in (1, SEAM_TILES, AUTO):
        counted = count(tagger, scenes, tiles)
        what = f"{number} dense scenes, {objects_in(scenes)} objects, tiles {tiles}: errors / objects"
        tell(what, f"{counted.error:.3f}")


def ordinary(tagger: Tagger, number: int, seed: int) -> None:
    """Ordinary scenes, whole and as the whole calls for, in turns, since others may use the machine, too."""
    scenes = scenes_of(ORDINARY, number, seed + 1)
    turns = [[count(tagger, part, tiles) for tiles in (1, AUTO)] for part in parts_of(scenes, PART)]
    whole, auto = (joined(counts) for counts in zip(*turns, strict=True))
    tell(f"{number} ordinary scenes, {objects_in(scenes)} objects, tiles 1: exactly right", f"{whole.exact:.1%}")
    tell(f"{number} ordinary scenes, tiles {AUTO}: exactly right", f"{auto.exact:.1%}")
    tell(f"{number} ordinary scenes, time of tiles {AUTO} over that of tiles 1", f"{auto.seconds / whole.seconds:.2f}")


def seams(tagger: Tagger, number: int, seed: int) -> None:
    """Objects over the edges of tiles."""
    rng = np.random.default_rng(seed + 2)
    for least, most, share in ((0.03, 0.10, 2 / 3), (0.10, 0.30, 1 / 3)):
        scenes = seam_scenes(rng, least, most, round(number * share), pairs=False)
        counted = count(tagger, scenes, SEAM_TILES)
        what = f"{objects_in(scenes)} objects on seams, {least:.0%} to {most:.0%} of the side: counted once"
        tell(what, f"{counted.share(1):.1%}")


def pairs(tagger: Tagger, number: int, seed: int) -> None:
    """Touching neighbours of one label over the edges of tiles."""
    scenes = seam_scenes(np.random.default_rng(seed + 3), 0.04, 0.10, number, pairs=True)
    counted = count(tagger, scenes, SEAM_TILES)
    what = f"{objects_in(scenes) // 2} touching pairs of one label on seams: counted as two"
    tell(what, f"{counted.share(2):.1%}")


def cost(tagger: Tagger, number: int, seed: int) -> None:
    """The time of a picture in tiles beside that of as many pictures, in turns."""
    looks = SEAM_TILES**2 + 1
    scenes, others = scenes_of(DENSE, number, seed + 4), scenes_of(DENSE, number * looks, seed + 5)
    turns = [
        [count(tagger, scenes_of_turn, tiles) for scenes_of_turn, tiles in (([scene], SEAM_TILES), (part, 1))]
        for scene, part in zip(scenes, parts_of(others, looks), strict=True)
    ]
    tiled, alone = (joined(counts) for counts in zip(*turns, strict=True))
    tell(f"time of {looks} looks at a picture over that of {looks} pictures", f"{tiled.seconds / alone.seconds:.2f}")


def memory(tagger: Tagger, number: int, seed: int) -> None:
    """The memory of a decoder process that cuts pictures of 100 megapixels, beyond what it has at its start."""
    rng = np.random.default_rng(seed + 6)
    scene = draw_scene(rng, DENSE)
    pixels = np.asarray(Image.fromarray(scene.pixels).resize((HUGE_SIDE, HUGE_SIDE)))
    files = {"PNG": png(pixels), "JPEG": to_jpeg(pixels)}
    del pixels
    for name, file in files.items():
        confinement = SandboxLimits(DecodeOptions(LARGE_INPUT, HUGE_SIDE**2, reduced=True), int(600e6), 300)
        decoders = DecoderPool(1, confinement)
        try:
            while not decoders.pids:
                time.sleep(0.05)
            (pid,) = decoders.pids
            list(decoders.frames(png(scene.pixels[:64, :64]), Sampling(), time.monotonic() + 60))
            before = peak_rss(pid)
            started = time.perf_counter()
            frames = sum(1 for _ in decoders.frames(file, Sampling(), time.monotonic() + 300, tiles=(6,)))
            seconds = time.perf_counter() - started
            used = (peak_rss(pid) - before) / 1e6
            tell(f"100 megapixels, {name}, in 6 x 6 tiles, {frames} looks: memory", f"{used:.0f} MB, {seconds:.1f} s")
        finally:
            decoders.close()


def picture(tagger: Tagger, number: int, seed: int) -> None:
    """Draws the picture of docs/counting.md: a dense scene, whole and in tiles."""
    file = png(draw_scene(np.random.default_rng(seed + 7), replace(DENSE, widest=1), 45).pixels)
    halves = []
    for tiles in (1, SEAM_TILES):
        (frame_result,) = tagger.detect(file, tiles=tiles).frames
        shown = np.asarray(open_rgb(file, 10**8))
        halves.append(
            np.asarray(draw_detections(shown, frame_result.detections, frame_result.tiles).resize((600, 600)))
        )
    PICTURE.write_bytes(to_jpeg(np.concatenate(halves, axis=1), 80))


ROWS: dict[str, Callable[[Tagger, int, int], None]] = {
    row.__name__: row for row in (dense, ordinary, seams, pairs, cost, memory, picture)
}
NUMBERS = {"dense": 200, "ordinary": 500, "seams": 300, "pairs": 300, "cost": 10}


def tell(what: str, value: str) -> None:
    """Prints a row."""
    click.echo(f"| {what} | {value} |")


@click.command()
@click.argument("rows", nargs=-1, type=click.Choice([*ROWS]))
@click.option("--number", type=click.IntRange(1), help="Scenes or objects of each row.")
@click.option("--seed", type=int, default=SEED, show_default=True, help="Other seeds draw other scenes.")
def main(rows: Sequence[str], number: int | None, seed: int) -> None:
    """Measures, and prints rows of a table."""
    for name in rows or ROWS:
        # What is measured as time is never answered from memory; what is not may be, where pictures are the same.
        with Tagger.load(result_cache=0 if name in ("ordinary", "cost") else 4096, video_max_frames=1) as tagger:
            ROWS[name](tagger, number or NUMBERS.get(name, 1), seed)


if __name__ == "__main__":
    main()
