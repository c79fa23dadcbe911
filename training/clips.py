"""Short videos with known objects: some come, move and go over one ground.

`python -m training.clips --output DIR --count 10 --seed 1` writes MP4 files and `truth.json`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import numpy as np
from numpy.random import Generator

from training.grounds import Canvas, draw_ground
from training.matching import covered
from training.options import SEED, Command, folder_for
from training.scenes import (
    LABELS,
    Rectangle,
    Scene,
    SceneObject,
    World,
    blend,
    choose_sprite,
    draw_shape,
    finish,
    in_order,
    lit,
)

ATTEMPTS = 40
LARGEST_MOVE = 0.5  # of the picture's side in a clip
SHORTEST_STAY = 0.3  # of a clip


@dataclass(frozen=True)
class Mover:
    """An object as it is drawn, (h, w, 4), and its box in each frame, None where it is not there."""

    label: str
    drawn: Canvas
    boxes: tuple[Rectangle | None, ...]


def draw_clip(rng: Generator, world: World, frames: int) -> list[Scene]:
    """Frames of one clip, of even sides as MPEG-4 wants them, each a scene of its own with what is in it."""
    height, width = (side - side % 2 for side in draw_shape(rng, world))
    ground = draw_ground(rng, (height, width), world.photographs)
    movers: list[Mover] = []
    for _ in range(int(rng.integers(world.least, world.most + 1))):
        attempts = (draw_mover(rng, world, ground, frames) for _ in range(ATTEMPTS))
        mover = next((one for one in attempts if all(apart(one, other, world.hidden) for other in movers)), None)
        if mover is not None:
            movers.append(mover)
    camera = int(rng.integers(2**32))  # one for all frames
    return [draw_frame(np.random.default_rng(camera), world, ground, movers, index) for index in range(frames)]


def draw_mover(rng: Generator, world: World, ground: Canvas, frames: int) -> Mover:
    """An object that moves evenly from somewhere to somewhere else while it is there."""
    label, sprite = choose_sprite(rng, world, LABELS)
    scale = rng.uniform(world.smallest, world.largest) * world.side / max(sprite.shape[:2])
    size = np.maximum(1, np.round(np.array(sprite.shape[1::-1]) * scale)).astype(int)
    room = np.maximum(0, np.array(ground.shape[1::-1]) - size)
    start = rng.uniform(0, room)
    end = np.clip(start + rng.uniform(-LARGEST_MOVE, LARGEST_MOVE, 2) * world.side, 0, room)
    stay = int(rng.integers(max(1, round(SHORTEST_STAY * frames)), frames + 1))
    first = int(rng.integers(frames - stay + 1))
    boxes: list[Rectangle | None] = [None] * frames
    for index in range(stay):
        x, y = np.round(start + (end - start) * index / max(1, stay - 1)).astype(int).tolist()
        boxes[first + index] = (x, y, x + int(size[0]), y + int(size[1]))
    return Mover(label, lit(rng, sprite, (int(size[0]), int(size[1])), world.recoloured), tuple(boxes))


def apart(one: Mover, other: Mover, most: float) -> bool:
    """Whether two objects never hide more than `most` of each other."""
    return all(a is None or b is None or covered(a, b) <= most for a, b in zip(one.boxes, other.boxes, strict=True))


def draw_frame(rng: Generator, world: World, ground: Canvas, movers: list[Mover], index: int) -> Scene:
    """The ground with what is there in a frame."""
    canvas, objects = ground.copy(), []
    for mover in movers:
        box = mover.boxes[index]
        if box is not None:
            blend(canvas, mover.drawn, box)
            objects.append(SceneObject(mover.label, box))
    return Scene(finish(rng, canvas, world), in_order(objects))


def write_video(path: Path, frames: list[Scene], fps: float) -> None:
    """Writes frames as MPEG-4."""
    height, width = frames[0].pixels.shape[:2]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    if not video.isOpened():
        raise click.ClickException(f"{path} can't be written as MPEG-4 by this OpenCV.")
    for frame in frames:
        video.write(np.ascontiguousarray(frame.pixels[..., ::-1]))
    video.release()


@click.command(cls=Command)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for videos and truth.json.")
@click.option("--count", type=click.IntRange(min=1), default=10, show_default=True, help="Videos to draw.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Other seeds draw other videos.")
@click.option("--seconds", type=click.IntRange(1, 60), default=8, show_default=True)
@click.option("--fps", type=click.IntRange(1, 30), default=4, show_default=True)
def main(output: Path, count: int, seed: int, seconds: int, fps: int) -> None:
    """Draws videos with known objects."""
    rng = np.random.default_rng(seed)
    folder, truth = folder_for(output, "clip{}.mp4"), {}
    for index in range(count):
        frames, name = draw_clip(rng, World(), seconds * fps), f"clip{index:04d}.mp4"
        write_video(folder / name, frames, fps)
        truth[name] = [one.truth for one in frames]
    (folder / "truth.json").write_text(json.dumps({"fps": fps, "frames": truth}) + "\n")


if __name__ == "__main__":
    main()
