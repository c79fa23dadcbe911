"""`python -m convert --model CHECKPOINT --output ov_models/NAME`."""

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from convert.errors import ConversionError
from convert.quiet import quiet_libraries


@click.command()
@click.option(
    "--model",
    required=True,
    help="Checkpoint folder, or a repository on the hub like florence-community/Florence-2-base.",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option(
    "--precision",
    type=click.Choice(["fp16", "fp32", "int8", "int4"]),
    default="fp16",
    show_default=True,
    help="Type of the stored weights; int4 is for the text graphs, the vision tower is int8 then.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="With int8 or int4: folder of typical pictures (PNG, JPEG), from which the vision tower is fully quantised.",
)
@click.option("--revision", help="Branch, tag or commit of a repository on the hub.")
def main(model: str, output: Path, precision: str, calibration: Path | None, revision: str | None) -> None:
    """Converts a Florence-2 checkpoint to an OpenVINO model folder that florence_tagger serves.

    Takes the original format (microsoft/Florence-2-*) and the native one of transformers (florence-community/*, and
    fine-tunes of both); no code of a checkpoint is run. HF_TOKEN, HF_HOME and HF_ENDPOINT are obeyed. Safe to
    interrupt: the output appears when it is finished.
    """
    if calibration and precision not in ("int8", "int4"):
        raise click.UsageError("--calibration goes with --precision int8 or int4.")
    try:
        run(model, output, precision, calibration, revision)
    except ConversionError as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("Interrupted; nothing was written.", err=True)
        sys.exit(130)
    size = sum(path.stat().st_size for path in output.iterdir()) / 1e6
    click.echo(f"Wrote {output}, {size:.1f} MB.")


def run(model: str, output: Path, precision: str, calibration: Path | None, revision: str | None) -> None:
    """Converts, telling each stage with its time as it ends and the one at hand with a spinner."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("loading PyTorch and optimum-intel")

        def progress(stage: str) -> None:
            bar.console.print(f"{bar.tasks[0].elapsed or 0:7.1f} s  {bar.tasks[0].description}", highlight=False)
            bar.update(task, description=stage)

        quiet_libraries()
        from convert.conversion import ConversionOptions, convert  # takes seconds: --help does not wait for it

        convert(ConversionOptions(model, output, precision, calibration, revision), progress)


if __name__ == "__main__":
    main()
