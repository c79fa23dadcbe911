"""The command `count`: options -> files, records, output and exit code."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from florence_tagger.assembly import sampling_from
from florence_tagger.client import SPARE_SECONDS, Client
from florence_tagger.config import Settings
from florence_tagger.count.annotations import Annotator
from florence_tagger.count.paths import InputFile, find_files, read_list
from florence_tagger.count.progress import Summary
from florence_tagger.count.records import ResumeFile
from florence_tagger.count.runner import CountJob, annotated_paths_for, count_files
from florence_tagger.count.writers import WRITERS
from florence_tagger.errors import SettingsError
from florence_tagger.labels import Aliases, name_classes
from florence_tagger.media.limits import ORIGINAL_SIZE, DecodeOptions
from florence_tagger.object_counter import ObjectCounter
from florence_tagger.pipeline import within_budget
from florence_tagger.prompts import parse_prompt
from florence_tagger.rules import parse_rules
from florence_tagger.schemas import Task, Tiles
from florence_tagger.tagger import Tagger
from florence_tagger.wording import system_words


@dataclass(frozen=True)
class CountOptions:
    """The options of `count`; `output_format` is a name in `WRITERS`, None for the table."""

    paths: tuple[str, ...]
    output_format: str | None
    annotate: Path | None
    num_labels: int
    min_score: float
    prompt: str
    text: str
    classes: str | None
    merge_iou: float
    video_count: str
    server: str | None
    resume: Path | None
    retry_failed: bool
    tiles: Tiles | None = None


def run_count(options: CountOptions, settings: Settings) -> int:
    """Count the objects in all files, write the counts to standard output and return the exit code.

    Raises:
        TaggerError: nothing could be counted.
    """
    logging.getLogger("florence_tagger").setLevel(logging.ERROR)  # warnings of files are printed with the files' names
    check_options(options)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names can be any bytes
    paths = list(expand_paths(options.paths))
    files = find_files(paths, make_annotation_folder(options.annotate, paths))
    if not files:
        raise SettingsError(f"There is no picture or video in {', '.join(options.paths)}.")
    job = count_job_for(options, settings, files)
    output_format = options.output_format or "table"
    show_bar = sys.stderr.isatty() and not (
        output_format != "table" and sys.stdout.isatty()
    )  # lines would break up the bar
    with closing(ResumeFile(options.resume, options.retry_failed)) if options.resume else nullcontext() as resume_file:
        skipped = {file.name for file in files if resume_file and file.path in resume_file.done}
        summary = Summary(len(files), skipped, show_bar)
        with (
            open_counter(options, settings) as counter,
            closing(count_files(files, counter, job, resume_file)) as records,
        ):
            WRITERS[output_format](summary.follow(records), sys.stdout)
    exit_code = summary.report()
    if summary.stop_reason is not None:
        exit_at_once(exit_code)
    return exit_code


def exit_at_once(exit_code: int) -> NoReturn:
    """End the process without waiting for threads: one may read from a pipe, or a mount that does not respond."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(exit_code)


def check_options(options: CountOptions) -> None:
    """Raise SettingsError if an option is invalid, lacks another one that it needs, or a needed stream is closed."""
    if sys.stdout is None:
        raise SettingsError("The standard output is closed: counts can't be written. Send them to a file or /dev/null.")
    if sys.stdin is None and "-" in options.paths:
        raise SettingsError("The standard input is closed: no list of paths can be read from it.")
    if not 0 <= options.min_score <= 1:  # click lets NaN through
        raise SettingsError(f"min_score is {options.min_score}; accepted is a number from 0 to 1.")
    if options.retry_failed and options.resume is None:
        raise SettingsError("--retry-failed is for --resume, whose file says what failed.")


def make_annotation_folder(folder: Path | None, paths: Sequence[str]) -> Path | None:
    """Create the folder for annotated files.

    Raises:
        SettingsError: it can't be created, or is among the `paths` to count.
    """
    if folder is None:
        return None
    if any(os.path.realpath(path) == os.path.realpath(folder) for path in paths):
        raise SettingsError(
            f"{folder} is counted; the drawings in it would be counted the next time. Name another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise SettingsError(f"{folder} can't be made: {system_words(exc)}.") from exc
    return folder


def count_job_for(options: CountOptions, settings: Settings, files: Sequence[InputFile]) -> CountJob:
    """Return what to do with each file; raise TaggerError if the options allow no job."""
    classes = None if options.classes is None else [name.strip() for name in options.classes.split(",")]
    rules = parse_rules(classes, options.merge_iou, options.video_count)
    name_classes(rules.classes, Aliases())  # checked before a model is loaded; with aliases it is checked later
    prompt = parse_prompt(options.prompt, options.text, rules.classes)
    if options.text and not prompt.task.takes_text:
        raise SettingsError(
            f"--text is for tasks that look for it: {', '.join(task for task in Task if task.takes_text)}."
        )
    return CountJob(
        prompt.task,
        options.text,
        rules,
        options.num_labels,
        options.min_score,
        {} if options.annotate is None else annotated_paths_for(options.annotate, [file.name for file in files]),
        int(settings.max_document_mb * 1e6),
        Annotator(
            DecodeOptions(ORIGINAL_SIZE, settings.max_pixels, settings.max_pages),
            within_budget(sampling_from(settings), options.tiles or settings.tiles),
            rules,
        ),
        options.tiles,
    )


def expand_paths(paths: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths, and for `-` those listed on standard input."""
    for path in paths:
        if path == "-":
            yield from read_list(sys.stdin.buffer.read())
        else:
            yield path


@contextmanager
def open_counter(options: CountOptions, settings: Settings) -> Iterator[ObjectCounter]:
    """Open the client of the service given by `--server`, else a model in this process; close it at the end."""
    if options.server is None:
        with Tagger.open(settings) as tagger:
            yield tagger
    else:
        with Client(options.server, settings.api_key, settings.request_seconds + SPARE_SECONDS) as client:
            client.check()
            yield client
