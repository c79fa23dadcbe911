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
from florence_tagger.settings_table import settings_table, updated
from florence_tagger.wording import error_words

Command = Callable[..., Any]

logger = logging.getLogger(__name__)


def tiles_option(help_text: str) -> Callable[[Command], Command]:
    """The option for tiles, an integer or `auto`."""
    choices = [*map(str, range(1, MAX_TILES + 1)), AUTO]
    return click.option(
        "--tiles",
        type=click.Choice(choices),
        callback=lambda _context, _parameter, value: int(value) if value and value != AUTO else value,
        help=help_text,
    )


@click.group()
@click.version_option(__version__, package_name="florence_tagger", prog_name="florence_tagger")
@click.pass_context
def main(context: click.Context) -> None:
    """Counts the objects in pictures and videos with a Florence-2 model on OpenVINO."""
    hold_closed_streams(stdout=context.invoked_subcommand != "count")  # which says that it has nowhere to write to
    if context.invoked_subcommand != "serve":  # which has a log
        for problem in unknown_variables():
            click.echo(f"Warning: {problem}", err=True)


def hold_closed_streams(stdout: bool) -> None:
    """Puts /dev/null in the place of standard streams that are closed; of the standard output only where wanted.

    Otherwise the next files would take their descriptors, and get what libraries write for people.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
    for name, wanted in (("stdout", stdout), ("stderr", True)):
        if wanted and getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - for as long as the process lives


def setting_options() -> list[click.Parameter]:
    """An option for each setting; what it accepts is checked where the environment is, too."""
    options: list[click.Parameter] = []
    for name, field in Settings.model_fields.items():
        words = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = words.get("default", field.default)
        help_text = f"{field.description} [{PREFIX}{name.upper()}; default: {default}]"
        options.append(click.Option([f"--{name.replace('_', '-')}"], metavar="VALUE", help=help_text))
    return options


def serve(**given: Any) -> None:
    """Serves the model over HTTP until told to stop."""
    from florence_tagger.web.logs import configure_logs
    from florence_tagger.web.server import Server

    with told(2):
        settings = load_settings({name: value for name, value in given.items() if value is not None})
        read_aliases(settings.aliases)
        folder = load_manifest(settings.model_dir)
    configure_logs(settings.log_format)
    for problem in unknown_variables():
        logger.warning("%s", problem)
    Server(settings, folder).run()


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--json", "forms", flag_value="json", multiple=True, help="A list of objects: file, content, error.")
@click.option("--jsonl", "forms", flag_value="jsonl", multiple=True, help="The same, a line each, as they come.")
@click.option("--csv", "forms", flag_value="csv", multiple=True, help="Rows of file, label, count, error.")
@click.option(
    "--annotate", type=click.Path(path_type=Path, file_okay=False), help="Folder for pictures and videos with boxes."
)
@click.option(
    "--num-labels",
    type=click.IntRange(0, MAX_LABELS),
    default=ALL_LABELS,
    show_default=True,
    help="At most so many labels for a file, those with the highest counts; 0 is all.",
)
@click.option("--min-score", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Drop weaker boxes.")
@click.option("--prompt", default=Task.OBJECT_DETECTION.value, show_default=True, help=f"The task: {', '.join(Task)}.")
@click.option("--text", default="", help="What to look for, of the tasks that need it.")
@click.option("--classes", metavar="NAMES", help="Count only these, each with 0, too: names with commas between.")
@click.option(
    "--merge-iou",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Boxes, of any labels, that overlap so much (intersection over union) are one thing; 0 is off.",
)
@click.option(
    "--video-count",
    type=click.Choice([str(one) for one in VideoCount]),
    default=VideoCount.PEAK.value,
    show_default=True,
    help="Of a video, the most in any one frame, or how many different ones pass.",
)
@tiles_option("Tiles a side that pictures are looked at in, for small things; the setting's, or the service's.")
@click.option("--server", metavar="URL", help="A running service to use; its key is taken from FLORENCE_API_KEY.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of JSON lines: what it has is not counted again, what is new is added.",
)
@click.option("--retry-failed", is_flag=True, help="With --resume: count again what could not be counted before.")
@click.option("--model", help="Model folder, as FLORENCE_MODEL_DIR; not with --server.")
@click.option("--device", help="OpenVINO device, as FLORENCE_DEVICE; not with --server.")
def count(paths: tuple[str, ...], forms: tuple[str, ...], model: str | None, device: str | None, **given: Any) -> None:
    """Counts the objects in pictures and videos.

    PATH is a file, a folder (the pictures and videos in it, at any depth), a pattern such as 'scans/**/*.tif', or - for
    a list of paths on the standard input, one a line.

    \b
    Exits with 0 where all files were counted,
              1 where some were not, as one that is not there,
              2 where nothing could be done: no such option, model or service, or no file in a folder.
    """
    from florence_tagger.count.command import CountOptions, run_count  # loads OpenVINO

    chosen = {name: value for name, value in (("model_dir", model), ("device", device)) if value is not None}
    if chosen and given["server"]:
        raise click.UsageError("--model and --device are not for --server: the service has its own.")
    if len(set(forms)) > 1:
        raise click.UsageError("Only one of --json, --jsonl and --csv can be written.")
    try:
        with told(2):
            settings = load_settings(chosen)
            code = run_count(CountOptions(paths, next(iter(forms), None), **given), settings)
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        sys.exit(1)
    except OSError as exc:
        if exc.errno == errno.EPIPE:  # nobody reads on, as with `| head`: click ends quietly then
            raise
        click.echo(f"Error: {error_words(exc)}", err=True)
        sys.exit(1)
    sys.exit(code)


@main.command("settings", short_help="Prints all settings as a table.")
@click.option("--update", type=click.Path(path_type=Path, exists=True), help="Page whose table is made anew.")
def print_settings(update: Path | None) -> None:
    """Prints all settings as a table in Markdown, or writes it into a page."""
    with told(1):
        if update:
            update.write_text(updated(update.read_text()))
        else:
            click.echo(settings_table(), nl=False)


@main.command(short_help="Compares a model folder with its manifest.")
@click.argument("model_dir", type=click.Path(path_type=Path))
def check(model_dir: Path) -> None:
    """Reads every file of a model folder and compares it with the folder's manifest."""
    with told(1):
        folder = load_manifest(model_dir)
        check_hashes(folder)
    click.echo(f"{folder.name} ({folder.precision}, {folder.sha256[:12]}) is complete and unchanged.")


@main.command(short_help="Measures this machine, and how near it is to its limits.")
@click.option("--model", type=click.Path(path_type=Path), default=DEFAULT_MODEL, help="Model folder; the bundled one.")
@click.option("--compare", type=click.Path(path_type=Path), help="Its checkpoint, to run through PyTorch beside it.")
@click.option("--device", help="OpenVINO device, as in FLORENCE_DEVICE.")
@click.option("--beams", type=click.IntRange(1, 16), help="Beams of the search; the checkpoint's.")
@click.option("--tokens", type=click.IntRange(2), help="Exactly so many tokens an answer; the answers' own number.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=1, show_default=True, help="Requests at a time.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Repetitions; medians are told.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of pictures; photos of 12 megapixels are made.")
@tiles_option("Tiles a side that pictures are looked at in; the setting's.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="File for the figures.")
def benchmark(device: str | None, tiles: Tiles | None, json_file: Path | None, **given: Any) -> None:
    """Measures this machine: time per stage, throughput, memory, and how near that is to what the machine can do.

    The FLORENCE_* variables are obeyed, but for FLORENCE_NO_REPEAT_NGRAM and FLORENCE_MAX_NEW_TOKENS; answers are never
    taken from the cache.
    """
    from florence_tagger.bench.measurements import BenchmarkOptions, report, run_benchmark  # loads OpenVINO

    with told(1, (TaggerError, OSError)):
        chosen = {"device": device, "tiles": tiles}
        settings = load_settings({name: value for name, value in chosen.items() if value is not None})
        figures = run_benchmark(
            BenchmarkOptions(**given), settings, lambda what: click.echo(f"measuring {what}", err=True)
        )
        if json_file:
            json_file.write_text(json.dumps(figures, indent=2) + "\n")
    report(figures)


@main.command(short_help="Lists devices, and what stands in the way of a GPU.")
def devices() -> None:
    """Lists the devices that OpenVINO sees, which one is used, and what stands in the way of a GPU."""
    from florence_tagger.doctor import check_devices  # loads OpenVINO

    tell(check_devices(configured()))


@main.command(short_help="Tells what is wrong with this installation.")
def doctor() -> None:
    """Looks at versions, devices, the model's files and a test picture, and tells what is wrong.

    All FLORENCE_* variables are obeyed. Exits with 1 where something is wrong.
    """
    from florence_tagger.doctor import check_installation  # loads OpenVINO

    tell(check_installation(configured()))


def configured() -> Settings:
    """The settings of the environment, or the end of the command."""
    with told(2):
        return load_settings()


@contextmanager
def told(code: int, kinds: tuple[type[Exception], ...] = (TaggerError,)) -> Iterator[None]:
    """Tells an error of these kinds in the block, and ends the command with `code`."""
    try:
        yield
    except kinds as exc:
        logger.debug("The command ends", exc_info=exc)
        click.echo(f"Error: {error_words(exc)}", err=True)
        sys.exit(code)


def tell(findings: Iterable[Any]) -> None:
    """Prints findings as they are made; ends the command with 1 where one is a fault."""
    marks = {True: "ok", False: "FAULT", None: ""}
    faults = 0
    for finding in findings:
        click.echo(f"{marks[finding.ok]:5}  {finding.what}: {finding.text}")
        faults += finding.ok is False
    sys.exit(min(faults, 1))


main.add_command(click.Command("serve", params=setting_options(), callback=serve, help=serve.__doc__))
