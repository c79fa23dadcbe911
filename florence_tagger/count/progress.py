"""Progress of a run: a bar on terminals, notes on files, and the summary with the exit code."""

import sys
from collections.abc import Iterator, Set

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from florence_tagger.count.records import FileRecord
from florence_tagger.count.writers import escape_unprintable
from florence_tagger.errors import TaggerError
from florence_tagger.wording import system_words

INTERRUPTED = "Interrupted"


class Rate(ProgressColumn):
    """Files per second."""

    def render(self, task: Task) -> Text:
        """Return the rate of a task, empty until it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} files/s")


class Summary:
    """Progress bar and outcome of a run.

    Args:
        total: number of files.
        skipped: names of the files that an earlier run has counted.
        show_bar: draw a progress bar on standard error.

    Attributes:
        total: number of files.
        num_processed: number of files whose record is known.
        num_failed: number of files that could not be counted.
        stop_reason: why the run stopped early; None if it did not.
    """

    def __init__(self, total: int, skipped: Set[str], show_bar: bool) -> None:
        self.total = total
        self.num_processed = 0
        self.num_failed = 0
        self.stop_reason: str | None = None
        columns = (BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        self._skipped = skipped
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not show_bar, transient=True)

    def follow(self, records: Iterator[FileRecord]) -> Iterator[FileRecord]:
        """Yield the records as they come and count them; stop early on an error that ends the run."""
        with self._progress:
            task = self._progress.add_task("", total=self.total, completed=len(self._skipped))
            try:
                for record in records:
                    self.num_processed += 1
                    self.num_failed += record.error is not None
                    self._progress.advance(task, record.file not in self._skipped)
                    self._print_note(record)
                    yield record
            except KeyboardInterrupt:
                self.stop_reason = INTERRUPTED
            except TaggerError as exc:
                self.stop_reason = str(exc).rstrip(".")
            except OSError as exc:
                self.stop_reason = f"{exc.filename or 'the output'} can't be written: {system_words(exc)}"

    def _print_note(self, record: FileRecord) -> None:
        if record.note:
            print(f"{escape_unprintable(record.file)}: {escape_unprintable(record.note)}", file=sys.stderr)

    def report(self) -> int:
        """Print how many files were not counted, and why; return the exit code."""
        if self.stop_reason is not None:
            print(
                f"Error: {self.stop_reason}; {self.num_processed} of {self.total} files were looked at.",
                file=sys.stderr,
            )
        if self.num_failed:
            print(f"{self.num_failed} of {self.total} files could not be counted.", file=sys.stderr)
        if self.stop_reason not in (None, INTERRUPTED) and not self.num_processed:
            return 2
        return 1 if self.num_failed or self.stop_reason is not None else 0
