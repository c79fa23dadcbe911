"""The correctness of counts by `classes` and aliases, on scenes that were not used for any choice.

`python -m benchmarks.classes` prints the number of scenes whose counts, zeros included, match the model's detections.
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
ALIASES = {"vehicle": ["cars", "Bus", "bicycles"], "fruit": ["apple", "bananas"]}
FOLDED_LABELS = {"car": "vehicle", "bus": "vehicle", "bicycle": "vehicle", "apple": "fruit", "banana": "fruit"}
# Class names as users write them, and the label of each after aliases are folded.
CLASS_NAMES = {f" {label.upper()}S " if label[-1] not in "hsn" else label.title(): label for label in LABELS} | {
    "Vehicles": "vehicle",
    "fruits": "fruit",
}
NUM_CLASSES = 6  # that are requested of a scene
NUM_THREADS = 8


CountPair = tuple[dict[str, int], dict[str, int]]  # actual and expected counts


def count_scenes(num_scenes: int, seed: int = SEED) -> list[CountPair]:
    """Return two pairs for each scene: the counts of random classes, and the counts by aliases."""
    rng = np.random.default_rng(seed)
    names = [name for name, label in CLASS_NAMES.items() if label not in FOLDED_LABELS]
    requests = [
        (png(draw_scene(rng, World()).pixels), [names[i] for i in rng.choice(len(names), NUM_CLASSES, replace=False)])
        for _ in range(num_scenes)
    ]
    with tempfile.TemporaryDirectory() as directory:
        aliases = Path(directory) / "aliases.json"
        aliases.write_text(json.dumps(ALIASES))
        with Tagger.load() as plain, Tagger.load(aliases=aliases) as folding, ThreadPoolExecutor(NUM_THREADS) as pool:

            def count_scene(request: tuple[bytes, list[str]]) -> tuple[CountPair, CountPair]:
                picture, classes = request
                folded: Counter[str] = Counter()
                for label, count in plain.count(picture).items():
                    folded[FOLDED_LABELS.get(label, label)] += count
                counts = folding.count(picture, classes=classes, num_labels=1)
                expected = {name: folded[CLASS_NAMES[name]] for name in classes}
                return (counts, expected), (folding.count(picture), dict(folded))

            return [pair for pairs in pool.map(count_scene, requests) for pair in pairs]


@click.command()
@click.option("--scenes", type=click.IntRange(1), default=200, show_default=True)
def main(scenes: int) -> None:
    """Measure, and print the figures."""
    pairs = count_scenes(scenes)
    zeros = sum(count == 0 for counts, _ in pairs[::2] for count in counts.values())
    for name, group in (("classes", pairs[::2]), ("aliases", pairs[1::2])):
        click.echo(f"{name}: {sum(counts == expected for counts, expected in group)} of {scenes} scenes exact")
    click.echo(f"{zeros} zeros among the classes' counts")


if __name__ == "__main__":
    main()
