"""Short videos with known objects that appear, move and disappear on one ground.

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
from training.matching import overlap_share
from training.options import SEED, Command, folder_for
from training.scenes import (
    LABELS,
    Rectangle,
    Scene,
    SceneObject,
    World,
    apply_camera,
    blend,
    choose_sprite,
    draw_shape,
    render_sprite,
    sort_objects,
)

ATTEMPTS = 40
MAX_MOVE = 0.5  # in a clip, as a share of the picture's side
MIN_STAY = 0.3  # as a share of the clip


@dataclass(frozen=True)
class Mover:
    """A moving object: its rendered sprite, (h, w, 4), and its box in each frame, None if it is absent."""

    label: str
    sprite: Canvas
    boxes: tuple[Rectangle | None, ...]


def draw_clip(rng: Generator, world: World, frames: int) -> list[Scene]:
    """Draw the frames of a clip, each a scene with its objects; sides are even, as MPEG-4 requires."""
    height, width = (side - side % 2 for side in draw_shape(rng, world))
    ground = draw_ground(rng, (height, width), world.photographs)
    movers: list[Mover] = []
    for _ in range(int(rng.integers(world.min_objects, world.max_objects + 1))):
        attempts = (draw_mover(rng, world, ground, frames) for _ in range(ATTEMPTS))
        mover = next((new for new in attempts if all(are_apart(new, old, world.max_overlap) for old in movers)), None)
        if mover is not None:
            movers.append(mover)
    camera = int(rng.integers(2**32))  # the same for all frames
    return [draw_frame(np.random.default_rng(camera), world, ground, movers, index) for index in range(frames)]


def draw_mover(rng: Generator, world: World, ground: Canvas, frames: int) -> Mover:
    """Draw an object that moves at constant speed between two random positions during a random part of the clip."""
    label, sprite = choose_sprite(rng, world, LABELS)
    scale = rng.uniform(world.min_size, world.max_size) * world.side / max(sprite.shape[:2])
    size = np.maximum(1, np.round(np.array(sprite.shape[1::-1]) * scale)).astype(int)
    max_position = np.maximum(0, np.array(ground.shape[1::-1]) - size)
    start = rng.uniform(0, max_position)
    end = np.clip(start + rng.uniform(-MAX_MOVE, MAX_MOVE, 2) * world.side, 0, max_position)
    stay = int(rng.integers(max(1, round(MIN_STAY * frames)), frames + 1))
    first = int(rng.integers(frames - stay + 1))
    boxes: list[Rectangle | None] = [None] * frames
    for index in range(stay):
        x, y = np.round(start + (end - start) * index / max(1, stay - 1)).astype(int).tolist()
        boxes[first + index] = (x, y, x + int(size[0]), y + int(size[1]))
    return Mover(label, render_sprite(rng, sprite, (int(size[0]), int(size[1])), world.recolored), tuple(boxes))


def are_apart(first: Mover, second: Mover, max_overlap: float) -> bool:
    """Return whether the boxes of two objects overlap by at most `max_overlap` in all frames."""
    pairs = zip(first.boxes, second.boxes, strict=True)
    return all(a is None or b is None or overlap_share(a, b) <= max_overlap for a, b in pairs)


def draw_frame(rng: Generator, world: World, ground: Canvas, movers: list[Mover], index: int) -> Scene:
    """Draw a frame: the ground with the objects that are present."""
    canvas, objects = ground.copy(), []
    for mover in movers:
        box = mover.boxes[index]
        if box is not None:
            blend(canvas, mover.sprite, box)
            objects.append(SceneObject(mover.label, box))
    return Scene(apply_camera(rng, canvas, world), sort_objects(objects))


def write_video(path: Path, frames: list[Scene], fps: float) -> None:
    """Write frames as an MPEG-4 video; ClickException if OpenCV can't."""
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
        truth[name] = [frame.truth for frame in frames]
    (folder / "truth.json").write_text(json.dumps({"fps": fps, "frames": truth}) + "\n")


if __name__ == "__main__":
    main()
