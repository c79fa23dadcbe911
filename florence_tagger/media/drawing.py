"""A picture and what was found in it -> the picture with boxes, labels and counts drawn on it."""

import zlib
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from florence_tagger.schemas import Box, Detection, UInt8Array

# Okabe and Ito's, which all kinds of colour vision tell apart (https://jfly.uni-koeln.de/color/).
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000")
INK = {"#0072B2": "white", "#000000": "white"}  # on these; black on the others


def draw_detections(
    pixels: UInt8Array,
    detections: Sequence[Detection],
    tiles: Sequence[Box] = (),
    colours: Mapping[str, str] | None = None,
) -> Image.Image:
    """A picture, uint8 RGB (H, W, 3), with `detections` and, in fine lines, the `tiles` drawn on it.

    Labels have the `colours` that are given, or those of `colours_of`.
    """
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    size = text_size(picture)
    font = ImageFont.load_default(size)
    colours = colours or colours_of(detection.label for detection in detections)
    for tile in tiles:
        pen.rectangle(tile, outline="#808080")
    for detection in detections:
        colour = colours[detection.label]
        pen.rectangle(detection.box, outline=colour, width=max(2, size // 6))
        name = name_of(detection)
        room = picture.width - font.getlength(name) - 4
        x, y = max(min(detection.box[0], room), 0), max(detection.box[1] - size * 1.3, 0)
        pen.rectangle(pen.textbbox((x + 2, y), name, font), fill=colour, outline=colour, width=2)
        pen.text((x + 2, y), name, INK.get(colour, "black"), font)
    return picture


def draw_counts(picture: Image.Image, lines: Mapping[str, str], colours: Mapping[str, str]) -> None:
    """Draw a line for each label, in its colour, from the upper left corner down to at most half of the height."""
    pen = ImageDraw.Draw(picture)
    size = text_size(picture)
    font = ImageFont.load_default(size)
    height = size * 1.4
    room = max(int(picture.height / 2 / height), 1)
    for row, (label, text) in enumerate(list(lines.items())[:room]):
        right = font.getlength(text) + size * 0.6
        pen.rectangle((0, row * height, right, (row + 1) * height - 1), fill=colours[label])
        pen.text((size * 0.3, row * height), text, INK.get(colours[label], "black"), font)


def text_size(picture: Image.Image) -> int:
    """Return the height of what is written on a picture, pixels."""
    return max(12, max(picture.size) // 60)


def name_of(detection: Detection) -> str:
    """Return what is written at a detection: its label, with the number of its track where it has one."""
    return detection.label if detection.track is None else f"{detection.label} {detection.track}"


def colours_of(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label: from picture to picture the same, unless another label of the picture has it."""
    chosen: dict[str, str] = {}
    for label in sorted(set(labels)):
        first = zlib.crc32(label.encode()) % len(COLOURS)
        turn = [*COLOURS[first:], *COLOURS[:first]]
        chosen[label] = next((colour for colour in turn if colour not in chosen.values()), turn[0])
    return chosen
