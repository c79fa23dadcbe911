"""A picture and its detections -> the picture with boxes, labels and counts drawn on it."""

import zlib
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from florence_tagger.schemas import Box, Detection, UInt8Array

# Okabe and Ito's palette, distinguishable with all kinds of color vision (https://jfly.uni-koeln.de/color/).
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000")
TEXT_COLORS = {"#0072B2": "white", "#000000": "white"}  # by background; black on all others


def draw_detections(
    pixels: UInt8Array,
    detections: Sequence[Detection],
    tiles: Sequence[Box] = (),
    colors: Mapping[str, str] | None = None,
) -> Image.Image:
    """Return a picture with detections and tiles drawn on it.

    Args:
        pixels: uint8 RGB (H, W, 3).
        detections: drawn with their labels.
        tiles: drawn in thin lines.
        colors: by label; those of `label_colors` if None.
    """
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    size = text_size(picture)
    font = ImageFont.load_default(size)
    colors = colors or label_colors(detection.label for detection in detections)
    for tile in tiles:
        pen.rectangle(tile, outline="#808080")
    for detection in detections:
        color = colors[detection.label]
        pen.rectangle(detection.box, outline=color, width=max(2, size // 6))
        name = caption(detection)
        max_x = picture.width - font.getlength(name) - 4
        x, y = max(min(detection.box[0], max_x), 0), max(detection.box[1] - size * 1.3, 0)
        pen.rectangle(pen.textbbox((x + 2, y), name, font), fill=color, outline=color, width=2)
        pen.text((x + 2, y), name, TEXT_COLORS.get(color, "black"), font)
    return picture


def draw_counts(picture: Image.Image, lines: Mapping[str, str], colors: Mapping[str, str]) -> None:
    """Draw a line for each label, in its color, from the upper left corner down to at most half of the height."""
    pen = ImageDraw.Draw(picture)
    size = text_size(picture)
    font = ImageFont.load_default(size)
    line_height = size * 1.4
    max_lines = max(int(picture.height / 2 / line_height), 1)
    for row, (label, text) in enumerate(list(lines.items())[:max_lines]):
        right = font.getlength(text) + size * 0.6
        pen.rectangle((0, row * line_height, right, (row + 1) * line_height - 1), fill=colors[label])
        pen.text((size * 0.3, row * line_height), text, TEXT_COLORS.get(colors[label], "black"), font)


def text_size(picture: Image.Image) -> int:
    """Return the height of text on a picture, pixels."""
    return max(12, max(picture.size) // 60)


def caption(detection: Detection) -> str:
    """Return the text for a detection: its label, and the number of its track if it has one."""
    return detection.label if detection.track is None else f"{detection.label} {detection.track}"


def label_colors(labels: Iterable[str]) -> dict[str, str]:
    """Return a color for each label, the same in all pictures unless another label of the picture has it already."""
    chosen: dict[str, str] = {}
    for label in sorted(set(labels)):
        first = zlib.crc32(label.encode()) % len(COLORS)
        candidates = [*COLORS[first:], *COLORS[:first]]
        chosen[label] = next((color for color in candidates if color not in chosen.values()), candidates[0])
    return chosen
