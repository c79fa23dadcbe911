"""`python -m convert.verify`: the same pictures through PyTorch and through the service's own runtime, compared."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from convert.checkpoint import read_checkpoint
from convert.errors import ConversionError
from convert.quiet import quiet_libraries
from convert.reference import MOST_PIXELS, Reference
from florence_tagger.counting import count_regions
from florence_tagger.errors import DocumentError, TaggerError
from florence_tagger.florence.decoding import GenerationSettings
from florence_tagger.florence.detector import Detector
from florence_tagger.florence.folder import read_folder
from florence_tagger.florence.postprocessing import parse_regions
from florence_tagger.florence.runtime import RuntimeOptions
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.media.images import open_picture

PICTURES = ("*.png", "*.jpg", "*.jpeg")


@dataclass(frozen=True)
class Agreement:
    """How far two implementations agree on pictures.

    Attributes:
        mode: of decoding.
        pictures: compared; ids_equal, counts_equal: of them.
        tokens: that the reference said.
        differing: the pictures whose token ids differ.
    """

    mode: str
    pictures: int
    ids_equal: int
    counts_equal: int
    tokens: int
    differing: tuple[str, ...]

    @property
    def share(self) -> float:
        """The share of pictures with equal counts."""
        return self.counts_equal / self.pictures


@dataclass(frozen=True)
class Answers:
    """The token ids of both sides for one picture."""

    picture: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


class Comparison:
    """A checkpoint in PyTorch beside the model folder made from it."""

    def __init__(self, checkpoint: Path, ir: Path, options: RuntimeOptions) -> None:
        self._reference = Reference(read_checkpoint(checkpoint))
        self._folder = read_folder(ir)
        self._detector = Detector(self._folder, options, self._folder.generation)
        self._tokenizer = Tokenizer(self._folder.read_text("tokenizer.json"))

    def modes(self, max_new_tokens: int | None) -> dict[str, GenerationSettings]:
        """Greedy and the checkpoint's own settings, by a name for each."""
        own = self._detector.generation
        own = replace(own, max_new_tokens=min(max_new_tokens or own.max_new_tokens, own.max_new_tokens))
        greedy = replace(own, num_beams=1)
        return {"greedy": greedy} | ({f"{own.num_beams} beams": own} if own.num_beams > 1 else {})

    def answers(self, picture: Path, settings: GenerationSettings) -> Answers:
        """What both sides say of a picture; DocumentError where it can't be read."""
        frame = open_picture(picture.read_bytes(), self._folder.image_size, MOST_PIXELS)
        ours = self._detector.generate(frame.pixels, settings).token_ids
        return Answers(picture.name, ours, self._reference.generate(picture, settings))

    def agreement(self, mode: str, answers: Sequence[Answers]) -> Agreement:
        """Sums up the answers of a mode."""
        differing = [one.picture for one in answers if one.ours != one.theirs]
        counts_equal = sum(self._counts(one.ours) == self._counts(one.theirs) for one in answers)
        tokens = sum(len(one.theirs) for one in answers)
        return Agreement(mode, len(answers), len(answers) - len(differing), counts_equal, tokens, tuple(differing))

    def _counts(self, token_ids: tuple[int, ...]) -> dict[str, int]:
        return count_regions(parse_regions(token_ids, self._tokenizer, 1, 1))


def find_pictures(folder: Path, limit: int | None) -> list[Path]:
    """The pictures of a folder by name, the first `limit` of them."""
    pictures = sorted(path for pattern in PICTURES for path in folder.glob(pattern))[:limit]
    if not pictures:
        raise ConversionError(f"{folder} has no pictures ({', '.join(PICTURES)}).")
    return pictures


def compare(comparison: Comparison, pictures: Sequence[Path], max_new_tokens: int | None) -> list[Agreement]:
    """Compares all pictures in all modes, with a progress bar; pictures that can't be read are told and left out."""
    agreements = []
    for mode, settings in comparison.modes(max_new_tokens).items():
        answers = []
        with click.progressbar(pictures, label=mode, file=sys.stderr) as bar:
            for picture in bar:
                try:
                    answers.append(comparison.answers(picture, settings))
                except DocumentError as exc:
                    click.echo(f"\n{picture.name} is left out: {exc}", err=True)
        if not answers:
            raise ConversionError("None of the pictures can be read.")
        agreements.append(comparison.agreement(mode, answers))
    return agreements


def table_of(agreements: Sequence[Agreement]) -> Table:
    """The agreements as a table."""
    table = Table("mode", "pictures", "token ids equal", "counts equal", "tokens")
    for one in agreements:
        numbers = (one.pictures, one.ids_equal, f"{one.counts_equal} ({one.share:.1%})", one.tokens)
        table.add_row(one.mode, *map(str, numbers))
    return table


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="Checkpoint folder.")
@click.option("--ir", type=click.Path(path_type=Path), required=True, help="Model folder made from it.")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Folder of pictures, PNG or JPEG.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first pictures, by name.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Most tokens of an answer; the checkpoint's.")
@click.option(
    "--inference-precision",
    type=click.Choice(["f32", "bf16", "f16", "default"]),
    default="f32",
    show_default=True,
    help="Of our side; the reference is f32. f32 means an f32 cache, too; default is the device's best.",
)
@click.option("--device", default="CPU", show_default=True, help="OpenVINO device of our side.")
@click.option(
    "--min-agreement", type=click.FloatRange(0, 1), default=0.0, help="Fail below this share of equal counts."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File for the figures.")
def main(
    checkpoint: Path,
    ir: Path,
    images: Path,
    limit: int | None,
    max_new_tokens: int | None,
    inference_precision: str,
    device: str,
    min_agreement: float,
    json_file: Path | None,
) -> None:
    """Compares a model folder with the checkpoint it was made from: token ids and counts, picture by picture."""
    quiet_libraries()
    precision = "" if inference_precision == "default" else inference_precision
    try:
        pictures = find_pictures(images, limit)
        comparison = Comparison(checkpoint, ir, RuntimeOptions(device, precision))
        agreements = compare(comparison, pictures, max_new_tokens)
    except (ConversionError, TaggerError) as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(2)
    Console().print(table_of(agreements))
    for one in agreements:
        for picture in one.differing[:10]:
            click.echo(f"{one.mode}: token ids differ on {picture}")
    if json_file:
        json_file.write_text(json.dumps([asdict(one) for one in agreements], indent=2) + "\n")
    if any(one.share < min_agreement for one in agreements):
        click.echo(f"Error: counts agree on less than {min_agreement:.1%} of the pictures.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
