"""The command `count` from its options to its exit code."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from florence_tagger.assembly import sampling_from
from florence_tagger.config import Settings
from florence_tagger.count.annotations import Annotator
from florence_tagger.count.client import client_of
from florence_tagger.count.paths import InputFile, find_files, read_list
from florence_tagger.count.progress import Summary
from florence_tagger.count.records import ResumeFile
from florence_tagger.count.runner import CountJob, DocumentDetector, count_files, places_in
from florence_tagger.count.writers import WRITERS
from florence_tagger.errors import SettingsError
from florence_tagger.labels import Aliases, name_classes
from florence_tagger.media.limits import OWN_SIZE, DecodeOptions
from florence_tagger.pipeline import within_budget
from florence_tagger.prompts import prompt_named
from florence_tagger.rules import rules_named
from florence_tagger.schemas import Task, Tiles
from florence_tagger.tagger import Tagger
from florence_tagger.wording import system_words


@dataclass(frozen=True)
class CountOptions:
    """The options of `count`; `form` is a name in `WRITERS`, None for the table."""

    paths: tuple[str, ...]
    form: str | None
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
    """Counts, writes to the standard output, and tells the exit code.

    Raises:
        TaggerError: nothing could be done.
    """
    logging.getLogger("florence_tagger").setLevel(logging.ERROR)  # of files we tell ourselves, with their names
    check(options)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names may be of any bytes
    paths = list(listed(options.paths))
    files = find_files(paths, folder_for_drawings(options.annotate, paths))
    if not files:
        raise SettingsError(f"There is no picture or video in {', '.join(options.paths)}.")
    wanted = wanted_of(options, settings, files)
    form = options.form or "table"
    shown = sys.stderr.isatty() and not (form != "table" and sys.stdout.isatty())  # lines would run through the bar
    with closing(ResumeFile(options.resume, options.retry_failed)) if options.resume else nullcontext() as record:
        skipped = {one.name for one in files if record and one.place in record.done}
        tally = Summary(len(files), skipped, shown)
        with finder_of(options, settings) as finder, closing(count_files(files, finder, wanted, record)) as results:
            WRITERS[form](tally.follow(results), sys.stdout)
    code = tally.end()
    if tally.stopped is not None:
        leave(code)
    return code


def leave(code: int) -> NoReturn:
    """Ends the process and waits for no thread: one may read from a pipe, or a mount that does not answer."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def check(options: CountOptions) -> None:
    """SettingsError where the options can't be, or not with each other, or there is nowhere to write to."""
    if sys.stdout is None:
        raise SettingsError("The standard output is closed: counts can't be written. Send them to a file or /dev/null.")
    if sys.stdin is None and "-" in options.paths:
        raise SettingsError("The standard input is closed: no list of paths can be read from it.")
    if not 0 <= options.min_score <= 1:  # click lets NaN through
        raise SettingsError(f"min_score is {options.min_score}; accepted is a number from 0 to 1.")
    if options.retry_failed and options.resume is None:
        raise SettingsError("--retry-failed is for --resume, whose file says what failed.")


def folder_for_drawings(folder: Path | None, paths: Sequence[str]) -> Path | None:
    """Makes the folder; SettingsError where that can't be, or where what is in it is counted."""
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


def wanted_of(options: CountOptions, settings: Settings, files: Sequence[InputFile]) -> CountJob:
    """What to do with each file; TaggerError where that can't be."""
    classes = None if options.classes is None else [name.strip() for name in options.classes.split(",")]
    rules = rules_named(classes, options.merge_iou, options.video_count)
    name_classes(rules.classes, Aliases())  # before a model is loaded; with aliases it is seen later
    prompt = prompt_named(options.prompt, options.text, rules.classes)
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
        {} if options.annotate is None else places_in(options.annotate, [one.name for one in files]),
        int(settings.max_document_mb * 1e6),
        Annotator(
            DecodeOptions(OWN_SIZE, settings.max_pixels, settings.max_pages),
            within_budget(sampling_from(settings), options.tiles or settings.tiles),
            rules,
        ),
        options.tiles,
    )


def listed(paths: tuple[str, ...]) -> Iterator[str]:
    """The paths, with those of the standard input in the place of `-`."""
    for path in paths:
        if path == "-":
            yield from read_list(sys.stdin.buffer.read())
        else:
            yield path


@contextmanager
def finder_of(options: CountOptions, settings: Settings) -> Iterator[DocumentDetector]:
    """What finds the objects: the service that is named, or a model of our own."""
    if options.server is None:
        with Tagger.open(settings) as tagger:
            yield tagger
    else:
        client = client_of(options.server, settings.api_key, settings.request_seconds)
        client.check()
        with closing(client):
            yield client
