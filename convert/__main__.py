"""`python -m convert --model CHECKPOINT --output ov_models/NAME`."""

import sys
import time
from pathlib import Path

import click

from convert.quiet import quiet_libraries


@click.command()
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Checkpoint folder, native format.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option(
    "--precision",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="Type of the stored weights.",
)
def main(model: Path, output: Path, precision: str) -> None:
    """Converts a Florence-2 checkpoint to an OpenVINO model folder that florence_tagger serves."""
    started = time.monotonic()

    def progress(stage: str) -> None:
        click.echo(f"{time.monotonic() - started:7.1f} s  {stage}")

    progress("loading PyTorch and optimum-intel")
    quiet_libraries()
    from convert.conversion import ConversionOptions, convert  # takes seconds: --help does not wait for it
    from convert.errors import ConversionError

    try:
        convert(ConversionOptions(model, output, precision), progress)
    except ConversionError as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(1)
    size = sum(path.stat().st_size for path in output.iterdir()) / 1e6
    progress(f"wrote {output}, {size:.1f} MB")


if __name__ == "__main__":
    main()
