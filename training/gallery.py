"""A sheet of scenes that a model has not seen, with what it finds in them: `python -m training.gallery --output FILE`.

What it counts right has a green frame, what it does not a red one, with what is wrong below.
"""

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from textwrap import shorten

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.media.drawing import draw_detections
from florence_tagger.tagger import Tagger
from training.batches import GALLERY, HELD_OUT
from training.options import SEED, Command
from training.scenes import UNSEEN_DESIGN, Scene, World, draw_scene

HEIGHT, GAP, FRAME, CAPTION, LETTER = 288, 12, 4, 18, 7  # pixels
RIGHT, WRONG = "#009E73", "#D55E00"


def cell(scene: Scene, tagger: Tagger) -> Image.Image:
    """A scene with what is found in it, its frame, and what is wrong with the counts."""
    height, width = scene.pixels.shape[:2]
    file = BytesIO()
    large = Image.fromarray(scene.pixels).resize((round(HEIGHT * width / height), HEIGHT), Image.Resampling.LANCZOS)
    large.save(file, "PNG")
    (frame_result,) = tagger.detect(file.getvalue()).frames
    detections = frame_result.detections
    drawn = draw_detections(np.asarray(large), detections)
    mistakes = differences(Counter(detection.label for detection in detections), Counter(scene.counts))
    framed = Image.new("RGB", (drawn.width + 2 * FRAME, HEIGHT + 2 * FRAME + CAPTION), "white")
    framed.paste(WRONG if mistakes else RIGHT, (0, 0, framed.width, HEIGHT + 2 * FRAME))
    framed.paste(drawn, (FRAME, FRAME))
    told = shorten(mistakes, framed.width // LETTER, placeholder=" …")
    ImageDraw.Draw(framed).text((FRAME, HEIGHT + 2 * FRAME), told, "black", ImageFont.load_default(2 * LETTER))
    return framed


def differences(found: Counter[str], truth: Counter[str]) -> str:
    """What is wrong with counts: `car 3, not 4`."""
    wrong = (label for label in sorted(found | truth) if found[label] != truth[label])
    return ", ".join(f"{label} {found[label]}, not {truth[label]}" for label in wrong)


def sheet(cells: Sequence[Image.Image], width: int) -> Image.Image:
    """Pictures of one height in rows, each row as many as fit."""
    rows: list[list[Image.Image]] = [[]]
    for one in cells:
        if sum(other.width + GAP for other in rows[-1]) + one.width > width:
            rows.append([])
        rows[-1].append(one)
    whole = Image.new("RGB", (width, sum(row[0].height for row in rows)), "white")
    y = 0
    for row in rows:
        x = 0
        for one in row:
            whole.paste(one, (x, y))
            x += one.width + GAP
        y += row[0].height
    return whole


@click.command(cls=Command)
@click.option("--model", type=click.Path(path_type=Path), default=DEFAULT_MODEL, help="Model folder; the bundled one.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Picture to write.")
@click.option("--count", type=click.IntRange(1), default=12, show_default=True, help="Scenes to draw.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Other seeds draw other scenes.")
@click.option("--unseen", is_flag=True, help="Draw scenes of a design that the model was not trained on.")
@click.option("--width", type=click.IntRange(600), default=1280, show_default=True, help="Of the sheet, pixels.")
def main(model: Path, output: Path, count: int, seed: int, unseen: bool, width: int) -> None:
    """Draws the sheet."""
    if output.suffix.lower() not in Image.registered_extensions():
        raise click.BadParameter(f"{output} has no ending of a picture, like .jpg or .png.")
    output.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([HELD_OUT, GALLERY, seed])
    world = World(side=384, designs=(UNSEEN_DESIGN,)) if unseen else World(side=384)
    with Tagger.load(model) as tagger:
        cells = [cell(draw_scene(rng, world), tagger) for _ in range(count)]
    sheet(cells, width).save(output, quality=85)


if __name__ == "__main__":
    main()
