"""Whether `classes` and aliases count exactly what the model finds: scenes that nothing was chosen by.

`python -m benchmarks.classes` prints how many scenes are answered right, zeros included.
"""

import json
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np

from benchmarks.tiles import png
from florence_tagger.tagger import Tagger
from training.scenes import LABELS, World, draw_scene

SEED = 20261130
FOLDED = {"vehicle": ["cars", "Bus", "bicycles"], "fruit": ["apple", "bananas"]}
BY_NAME = {"car": "vehicle", "bus": "vehicle", "bicycle": "vehicle", "apple": "fruit", "banana": "fruit"}
# Names as people write them, and the label that each stands for once aliases are folded.
NAMES = {f" {label.upper()}S " if label[-1] not in "hsn" else label.title(): label for label in LABELS} | {
    "Vehicles": "vehicle",
    "fruits": "fruit",
}
WANTED = 6  # classes of a scene
TOGETHER = 8  # scenes at a time


Answer = tuple[dict[str, int], dict[str, int]]  # counts, and what they should be


def answers(number: int, seed: int = SEED) -> list[Answer]:
    """Return for each scene what some classes and what aliases count, beside what the model finds without them."""
    rng = np.random.default_rng(seed)
    names = [name for name in NAMES if NAMES[name] not in BY_NAME]
    asked = [
        (png(draw_scene(rng, World()).pixels), [names[i] for i in rng.choice(len(names), WANTED, replace=False)])
        for _ in range(number)
    ]
    with tempfile.TemporaryDirectory() as place:
        aliases = Path(place) / "aliases.json"
        aliases.write_text(json.dumps(FOLDED))
        with Tagger.load() as plain, Tagger.load(aliases=aliases) as folding, ThreadPoolExecutor(TOGETHER) as pool:

            def answer(one: tuple[bytes, list[str]]) -> tuple[Answer, Answer]:
                picture, wanted = one
                folded: Counter[str] = Counter()
                for label, count in plain.count(picture).items():
                    folded[BY_NAME.get(label, label)] += count
                counts = folding.count(picture, classes=wanted, num_labels=1)
                return (counts, {name: folded[NAMES[name]] for name in wanted}), (folding.count(picture), dict(folded))

            return [one for pair in pool.map(answer, asked) for one in pair]


@click.command()
@click.option("--scenes", type=click.IntRange(1), default=200, show_default=True)
def main(scenes: int) -> None:
    """Measures, and prints the figures."""
    pairs = answers(scenes)
    zeros = sum(count == 0 for counts, _ in pairs[::2] for count in counts.values())
    for what, some in (("classes", pairs[::2]), ("aliases", pairs[1::2])):
        click.echo(f"{what}: {sum(ours == right for ours, right in some)} of {scenes} scenes exact")
    click.echo(f"{zeros} zeros among the classes' counts")


if __name__ == "__main__":
    main()
