"""`python -m convert.verify`: the same pictures through PyTorch and through the service's own runtime, compared."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from convert.agreement import Agreement, Pair, sum_up
from convert.calibration_pictures import find_pictures
from convert.comparison import Comparison, is_lossless
from convert.conversion_error import ConversionError
from convert.quiet import quiet_libraries
from florence_tagger.errors import DocumentError, TaggerError
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.manifest import MANIFEST, read_json
from florence_tagger.wording import error_words


def compare(comparison: Comparison, pictures: Sequence[Path], max_new_tokens: int | None) -> list[Agreement]:
    """Compares all pictures in all modes, with a progress bar; pictures that can't be read are told and left out."""
    agreements = []
    for mode, settings in comparison.modes(max_new_tokens).items():
        pairs: list[Pair] = []
        with click.progressbar(pictures, label=mode, file=sys.stderr) as bar:
            for picture in bar:
                try:
                    pairs.append(comparison.pair(picture, settings))
                except DocumentError as exc:
                    click.echo(f"\n{picture.name} is left out: {exc}", err=True)
        if not pairs:
            raise ConversionError("None of the pictures can be read.")
        agreements.append(sum_up(mode, pairs))
    return agreements


def table_of(agreements: Sequence[Agreement]) -> Table:
    """The agreements as a table."""
    columns = ("mode", "pictures", "token ids equal", "counts equal", "count error", "box IoU", "features")
    table = Table(*columns, "seconds", "PyTorch's")
    for one in agreements:
        table.add_row(
            one.mode,
            str(one.pictures),
            f"{one.ids_equal} ({one.ids_equal / one.pictures:.1%})",
            f"{one.counts_equal} ({one.counts_equal / one.pictures:.1%})",
            f"{one.count_error:.4f}",
            f"{one.box_iou:.4f}",
            f"{one.features_cosine:.6f}",
            f"{one.seconds:.3f}",
            f"{one.reference_seconds:.3f}",
        )
    return table


def share(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """A number from 0 to 1; click's own range lets NaN through."""
    if not 0 <= value <= 1:
        raise click.BadParameter("is no number from 0 to 1.")
    return value


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
    "--min-agreement",
    type=float,
    callback=share,
    default=0.98,
    show_default=True,
    help="Fail where less than this share of the pictures has equal token ids (where nothing was rounded: fp32, or fp16"
    " from an fp16 source, at f32) or equal counts (else).",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default="verification.json",
    show_default=True,
    help="File for the figures.",
)
def main(
    checkpoint: Path,
    ir: Path,
    images: Path,
    limit: int | None,
    max_new_tokens: int | None,
    inference_precision: str,
    device: str,
    min_agreement: float,
    json_file: Path,
) -> None:
    """Compares a model folder with the checkpoint it was made from, picture by picture.

    Prints how often token ids and counts are equal, the mean error of a label's count, the overlap of boxes, the cosine
    of image features, and the time of both sides; writes the same, and more, to a JSON file.
    """
    quiet_libraries()
    precision = "" if inference_precision == "default" else inference_precision
    try:
        pictures = find_pictures(images, limit)
        if not json_file.resolve().parent.is_dir():
            raise ConversionError(f"There is no folder for {json_file}.")
        agreements = compare(Comparison(checkpoint, ir, RuntimeOptions(device, precision)), pictures, max_new_tokens)
        exact = is_lossless(read_json(ir / MANIFEST)) and inference_precision == "f32"
        json_file.write_text(json.dumps([asdict(one) for one in agreements], indent=2) + "\n")
    except (TaggerError, OSError) as exc:
        click.echo(f"Error: {error_words(exc)}", err=True)
        sys.exit(2)
    Console(width=120).print(table_of(agreements))
    for one in agreements:
        for picture in one.differing[:10]:
            click.echo(f"{one.mode}: token ids differ on {picture}")
    click.echo(f"The figures are in {json_file}.")
    if any((one.ids_equal if exact else one.counts_equal) < min_agreement * one.pictures for one in agreements):
        what = "token ids" if exact else "counts"
        click.echo(f"Error: {what} agree on less than {min_agreement:.1%} of the pictures.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
