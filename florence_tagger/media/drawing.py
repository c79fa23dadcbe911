"""A picture and what was found in it -> the picture with boxes and labels drawn on it, as a PNG file."""

import zlib
from collections.abc import Iterable, Sequence
from io import BytesIO

from PIL import ImageDraw, ImageFont

from florence_tagger.media.images import open_rgb
from florence_tagger.schemas import Region

# Okabe and Ito's, which all kinds of colour vision tell apart (https://jfly.uni-koeln.de/color/).
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000")
INK = {"#0072B2": "white", "#000000": "white"}  # on these; black on the others


def draw_regions(content: bytes, regions: Sequence[Region], max_pixels: int) -> bytes:
    """The picture of a file, of several the first, as displayed and with `regions` drawn: a PNG file.

    Raises:
        DocumentError: it is a video, damaged, or of more than `max_pixels`.
    """
    picture = open_rgb(content, max_pixels)
    pen = ImageDraw.Draw(picture)
    size = max(12, max(picture.size) // 60)
    font = ImageFont.load_default(size)
    colours = colours_of(region.label for region in regions)
    for region in regions:
        colour = colours[region.label]
        pen.rectangle(region.box, outline=colour, width=max(2, size // 6))
        room = picture.width - font.getlength(region.label) - 4
        x, y = max(min(region.box[0], room), 0), max(region.box[1] - size * 1.3, 0)
        pen.rectangle(pen.textbbox((x + 2, y), region.label, font), fill=colour, outline=colour, width=2)
        pen.text((x + 2, y), region.label, INK.get(colour, "black"), font)
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def colours_of(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label: from picture to picture the same, unless another label of the picture has it."""
    chosen: dict[str, str] = {}
    for label in sorted(set(labels)):
        first = zlib.crc32(label.encode()) % len(COLOURS)
        turn = [*COLOURS[first:], *COLOURS[:first]]
        chosen[label] = next((colour for colour in turn if colour not in chosen.values()), turn[0])
    return chosen
