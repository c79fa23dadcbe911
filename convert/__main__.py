"""`python -m convert --model CHECKPOINT --output ov_models/NAME`."""

import logging
import signal
import sys
from pathlib import Path

import click

from convert.conversion_error import ConversionError
from convert.progress_bars import Bar, megabytes
from convert.quiet import quiet_libraries

logger = logging.getLogger("convert")


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
@click.option("--verbose", is_flag=True, help="Where it fails, show what the libraries say.")
def main(
    model: str, output: Path, precision: str, calibration: Path | None, revision: str | None, verbose: bool
) -> None:
    """Converts a Florence-2 checkpoint to an OpenVINO model folder that florence_tagger serves.

    Takes the original format (microsoft/Florence-2-*) and the native one of transformers (florence-community/*, and
    fine-tunes of both); no code of a checkpoint is run. HF_TOKEN, HF_HOME and HF_ENDPOINT are obeyed. Safe to
    interrupt: the output appears when it is finished.
    """
    if calibration and precision not in ("int8", "int4"):
        raise click.UsageError("--calibration goes with --precision int8 or int4.")
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C does: what was begun is removed
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    if verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("convert").setLevel(logging.DEBUG)
    try:
        with Bar() as bar:
            quiet_libraries()
            # takes seconds: --help does not wait for it
            from convert.conversion import ConversionOptions, convert, stages_of

            bar.expect(stages_of(precision))
            convert(ConversionOptions(model, output, precision, calibration, revision), bar)
    except ConversionError as exc:
        logger.debug("The conversion ends", exc_info=exc)
        click.echo(f"Error: {exc}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("Interrupted; nothing was written.", err=True)
        sys.exit(130)
    click.echo(f"Wrote {output}, {megabytes(output):.1f} MB.")


if __name__ == "__main__":
    main()
