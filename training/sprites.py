"""The drawings that scenes are made of, rendered once from icon sets of the npm registry; the pictures are committed.

    npm pack @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5
    npm pack @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/openmoji@1.2.29
    python -m training.sprites --packages .

A drawing is there already where a committed one is: the first eight of Noto come from its font and are kept.
"""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import click
import resvg_py
from PIL import Image

from training.options import Command
from training.scenes import SPRITE_FOLDER

DESIGNS = {
    "noto": "iconify-json-noto-1.2.9.tgz",
    "twemoji": "iconify-json-twemoji-1.2.5.tgz",
    "fluent": "iconify-json-fluent-emoji-flat-1.2.6.tgz",
    "openmoji": "iconify-json-openmoji-1.2.29.tgz",
}
ICONS = {
    "airplane": "airplane",
    "apple": "red-apple",
    "backpack": "backpack",
    "banana": "banana",
    "bicycle": "bicycle",
    "book": "closed-book",
    "bus": "bus",
    "car": "automobile",
    "chair": "chair",
    "clock": "alarm-clock",
    "cup": "hot-beverage",
    "dog": "dog",
    "laptop": "laptop",
    "person": "person-standing",
    "scissors": "scissors",
    "umbrella": "umbrella",
}
SIDE = 160
COLOURS = 128  # of a stored drawing: half the bytes, and no difference to be seen at the sizes of scenes


def read_icons(package: Path) -> dict[str, Any]:
    """The icon set of an npm package of Iconify: names, bodies and the size of the box they are drawn in."""
    with tarfile.open(package) as archive:
        member = archive.extractfile("package/icons.json")
        if member is None:
            raise click.ClickException(f"{package} has no icons.json.")
        icons: dict[str, Any] = json.load(member)
    return icons


def render(icons: dict[str, Any], name: str) -> Image.Image:
    """An icon as a square picture with alpha, SIDE pixels wide."""
    box = f"0 0 {icons['width']} {icons['height']}"
    body = icons["icons"][name]["body"]
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {spaces} viewBox="{box}">{body}</svg>'
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)))).convert("RGBA")


@click.command(cls=Command)
@click.option("--packages", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the packages.")
def main(packages: Path) -> None:
    """Renders the drawings that are not there yet."""
    for design, package in DESIGNS.items():
        icons = read_icons(packages / package)
        for label, name in ICONS.items():
            path = SPRITE_FOLDER / design / f"{label}.png"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                render(icons, name).quantize(COLOURS, Image.Quantize.FASTOCTREE).save(path, optimize=True)


if __name__ == "__main__":
    main()
