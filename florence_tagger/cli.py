"""The command line: `python -m florence_tagger count`, `serve`, `check`, `benchmark`, `devices`, `doctor`."""

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from florence_tagger import __version__
from florence_tagger.config import DEFAULT_MODEL, PREFIX, Settings, load_settings, unknown_variables
from florence_tagger.counting import ALL_LABELS, MAX_LABELS
from florence_tagger.errors import TaggerError
from florence_tagger.florence.manifest import check_hashes, load_manifest
from florence_tagger.labels import read_aliases
from florence_tagger.schemas import AUTO, MAX_TILES, Task, Tiles, VideoCount
from florence_tagger.settings_table import settings_table, update_page
from florence_tagger.wording import error_words

Command = Callable[..., Any]

logger = logging.getLogger(__name__)

# The help of each command.
MAIN_HELP = "Counts the objects in pictures and videos with a Florence-2 model on OpenVINO."
SERVE_HELP = "Serves the model over HTTP until it is stopped."
COUNT_HELP = """Counts the objects in pictures and videos.

PATH is a file, a folder (the pictures and videos in it, at any depth), a pattern such as 'scans/**/*.tif', or - for
a list of paths on standard input, one per line.

\b
Exits with 0 if all files were counted,
          1 if some were not, such as a missing one,
          2 if nothing could be done: no such option, model or service, or no file in a folder.
"""
SETTINGS_HELP = "Prints all settings as a table in Markdown, or writes it into a page."
CHECK_HELP = "Reads every file of a model folder and compares it with the folder's manifest."
BENCHMARK_HELP = """\
Measures this machine: time per stage, throughput, memory, and how near they are to the machine's limits.

It obeys the FLORENCE_* variables except FLORENCE_NO_REPEAT_NGRAM and FLORENCE_MAX_NEW_TOKENS, and uses no cached
results.
"""
DEVICES_HELP = "Lists the devices that OpenVINO finds, the one that is used, and obstacles to using a GPU."
DOCTOR_HELP = """Checks versions, devices, the model's files and a test picture, and reports what is wrong.

It obeys all FLORENCE_* variables, and exits with 1 if something is wrong.
"""


def tiles_option(help_text: str) -> Callable[[Command], Command]:
    """Return the option for tiles, an integer or `auto`."""
    choices = [*map(str, range(1, MAX_TILES + 1)), AUTO]
    return click.option(
        "--tiles",
        type=click.Choice(choices),
        callback=lambda _context, _parameter, value: int(value) if value and value != AUTO else value,
        help=help_text,
    )


@click.group(help=MAIN_HELP)
@click.version_option(__version__, package_name="florence_tagger", prog_name="florence_tagger")
@click.pass_context
def main(context: click.Context) -> None:
    """Prepare the streams and warn of unknown settings, before any command."""
    replace_closed_streams(stdout=context.invoked_subcommand != "count")  # `count` reports a closed standard output
    if context.invoked_subcommand != "serve":  # `serve` logs the warnings
        for warning in unknown_variables():
            click.echo(f"Warning: {warning}", err=True)


def replace_closed_streams(stdout: bool) -> None:
    """Replace closed standard streams by /dev/null, `sys.stdout` only if `stdout` is True.

    Otherwise the next files to be opened would get their descriptors, and with them the messages of libraries.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
    for name, replace in (("stdout", stdout), ("stderr", True)):
        if replace and getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - for as long as the process lives


def setting_options() -> list[click.Parameter]:
    """Return an option for each setting; `load_settings` checks the values, as those of the environment."""
    options: list[click.Parameter] = []
    for name, field in Settings.model_fields.items():
        schema = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = schema.get("default", field.default)
        help_text = f"{field.description} [{PREFIX}{name.upper()}; default: {default}]"
        options.append(click.Option([f"--{name.replace('_', '-')}"], metavar="VALUE", help=help_text))
    return options


def serve(**options: Any) -> None:
    """Run the HTTP server until a signal stops it."""
    from florence_tagger.web.logs import configure_logs
    from florence_tagger.web.server import Server

    with exit_on_error(2):
        settings = load_settings({name: value for name, value in options.items() if value is not None})
        read_aliases(settings.aliases)
        manifest = load_manifest(settings.model_dir)
    configure_logs(settings.log_format)
    for warning in unknown_variables():
        logger.warning("%s", warning)
    Server(settings, manifest).run()


@main.command(help=COUNT_HELP)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--json", "formats", flag_value="json", multiple=True, help="A list of objects: file, content, error.")
@click.option("--jsonl", "formats", flag_value="jsonl", multiple=True, help="The same objects, one per line.")
@click.option("--csv", "formats", flag_value="csv", multiple=True, help="Rows of file, label, count, error.")
@click.option(
    "--annotate", type=click.Path(path_type=Path, file_okay=False), help="Folder for pictures and videos with boxes."
)
@click.option(
    "--num-labels",
    type=click.IntRange(0, MAX_LABELS),
    default=ALL_LABELS,
    show_default=True,
    help="Maximum number of labels of a file, those with the highest counts; 0 is all.",
)
@click.option("--min-score", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Drop weaker boxes.")
@click.option("--prompt", default=Task.OBJECT_DETECTION.value, show_default=True, help=f"The task: {', '.join(Task)}.")
@click.option("--text", default="", help="The objects to detect, for the tasks that need it.")
@click.option("--classes", metavar="NAMES", help="Count only these, also if there are 0: names separated by commas.")
@click.option(
    "--merge-iou",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Boxes of any labels with this intersection over union or more are one object; 0 is off.",
)
@click.option(
    "--video-count",
    type=click.Choice([str(video_count) for video_count in VideoCount]),
    default=VideoCount.PEAK.value,
    show_default=True,
    help="In a video: the maximum in any one frame, or the number of distinct objects.",
)
@tiles_option("Tiles per side of each picture, for small objects; the setting's, or the service's.")
@click.option("--server", metavar="URL", help="A running service to use, with the key in FLORENCE_API_KEY.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of JSON lines: files in it are not counted again, new ones are appended.",
)
@click.option("--retry-failed", is_flag=True, help="With --resume: retry the files that could not be counted.")
@click.option("--model", help="Model folder, as FLORENCE_MODEL_DIR; not with --server.")
@click.option("--device", help="OpenVINO device, as FLORENCE_DEVICE; not with --server.")
def count(
    paths: tuple[str, ...], formats: tuple[str, ...], model: str | None, device: str | None, **options: Any
) -> None:
    """Check which options go together, count the objects in all files, and exit with the code in `COUNT_HELP`."""
    from florence_tagger.count.command import CountOptions, run_count  # loads OpenVINO

    overrides = {name: value for name, value in (("model_dir", model), ("device", device)) if value is not None}
    if overrides and options["server"]:
        raise click.UsageError("--model and --device are not for --server: the service has its own.")
    if len(set(formats)) > 1:
        raise click.UsageError("Only one of --json, --jsonl and --csv can be written.")
    try:
        with exit_on_error(2):
            settings = load_settings(overrides)
            code = run_count(CountOptions(paths, next(iter(formats), None), **options), settings)
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        sys.exit(1)
    except OSError as exc:
        if exc.errno == errno.EPIPE:  # the reader has ended, as with `| head`: click exits without a message
            raise
        click.echo(f"Error: {error_words(exc)}", err=True)
        sys.exit(1)
    sys.exit(code)


@main.command("settings", help=SETTINGS_HELP, short_help="Prints all settings as a table.")
@click.option("--update", type=click.Path(path_type=Path, exists=True), help="Page whose table is replaced.")
def print_settings(update: Path | None) -> None:
    """Print the table of settings, or update it in a page."""
    with exit_on_error(1):
        if update:
            update.write_text(update_page(update.read_text()))
        else:
            click.echo(settings_table(), nl=False)


@main.command(help=CHECK_HELP, short_help="Compares a model folder with its manifest.")
@click.argument("model_dir", type=click.Path(path_type=Path))
def check(model_dir: Path) -> None:
    """Compare a model folder with its manifest."""
    with exit_on_error(1):
        manifest = load_manifest(model_dir)
        check_hashes(manifest)
    click.echo(f"{manifest.name} ({manifest.precision}, {manifest.sha256[:12]}) is complete and unchanged.")


@main.command(help=BENCHMARK_HELP, short_help="Measures this machine and its limits.")
@click.option("--model", type=click.Path(path_type=Path), default=DEFAULT_MODEL, help="Model folder; the bundled one.")
@click.option("--compare", type=click.Path(path_type=Path), help="Its checkpoint, to run through PyTorch beside it.")
@click.option("--device", help="OpenVINO device, as in FLORENCE_DEVICE.")
@click.option("--beams", type=click.IntRange(1, 16), help="Beams of the search; the checkpoint's.")
@click.option("--tokens", type=click.IntRange(2), help="Tokens of each answer; by default as generated.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=1, show_default=True, help="Requests at a time.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Repetitions, for medians.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of pictures; by default made: 12 megapixels.")
@tiles_option("Tiles per side of each picture; the setting's.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="File for the figures.")
def benchmark(device: str | None, tiles: Tiles | None, json_file: Path | None, **options: Any) -> None:
    """Run the benchmark and print its figures; write them to `json_file`, too, if there is one."""
    from florence_tagger.bench.measurements import BenchmarkOptions, report, run_benchmark  # loads OpenVINO

    with exit_on_error(1, (TaggerError, OSError)):
        overrides = {"device": device, "tiles": tiles}
        settings = load_settings({name: value for name, value in overrides.items() if value is not None})
        figures = run_benchmark(
            BenchmarkOptions(**options), settings, lambda step: click.echo(f"measuring {step}", err=True)
        )
        if json_file:
            json_file.write_text(json.dumps(figures, indent=2) + "\n")
    report(figures)


@main.command(help=DEVICES_HELP, short_help="Lists devices, and obstacles to using a GPU.")
def devices() -> None:
    """Print the devices of OpenVINO, those in use, and obstacles to using a GPU."""
    from florence_tagger.doctor import check_devices  # loads OpenVINO

    report_checks(check_devices(load_settings_or_exit()))


@main.command(help=DOCTOR_HELP, short_help="Reports what is wrong with this installation.")
def doctor() -> None:
    """Check the installation and print the results."""
    from florence_tagger.doctor import check_installation  # loads OpenVINO

    report_checks(check_installation(load_settings_or_exit()))


def load_settings_or_exit() -> Settings:
    """Return the settings of the environment; end the command with 2 if one is invalid."""
    with exit_on_error(2):
        return load_settings()


@contextmanager
def exit_on_error(code: int, kinds: tuple[type[Exception], ...] = (TaggerError,)) -> Iterator[None]:
    """Print an error of these kinds in the block and end the command with `code`."""
    try:
        yield
    except kinds as exc:
        logger.debug("The command ends", exc_info=exc)
        click.echo(f"Error: {error_words(exc)}", err=True)
        sys.exit(code)


def report_checks(checks: Iterable[Any]) -> None:
    """Print the results of checks as they come; end the command with 1 if there is a fault, else with 0."""
    marks = {True: "ok", False: "FAULT", None: ""}
    num_faults = 0
    for check in checks:
        click.echo(f"{marks[check.ok]:5}  {check.subject}: {check.text}")
        num_faults += check.ok is False
    sys.exit(min(num_faults, 1))


main.add_command(click.Command("serve", params=setting_options(), callback=serve, help=SERVE_HELP))
