"""How far a run is: a bar for people who watch, what went wrong for all, and what it comes to."""

import sys
from collections.abc import Iterator, Set

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from florence_tagger.count.records import FileRecord
from florence_tagger.count.writers import printable
from florence_tagger.errors import TaggerError
from florence_tagger.wording import system_words

INTERRUPTED = "Interrupted"


class Rate(ProgressColumn):
    """Files per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} files/s")


class Summary:
    """Follows the results of a run, and keeps what it comes to.

    Args:
        total: files.
        skipped: the names of those that an earlier run has counted.
        shown: whether there is a bar, on the standard error.

    Attributes:
        failed: files that could not be counted.
        seen: files whose result is known.
        stopped: why the run ended before its end.
    """

    def __init__(self, total: int, skipped: Set[str], shown: bool) -> None:
        self.total = total
        self.seen = 0
        self.failed = 0
        self.stopped: str | None = None
        columns = (BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        self._skipped = skipped
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)

    def follow(self, results: Iterator[FileRecord]) -> Iterator[FileRecord]:
        """The results as they come. Ends early where the run must end."""
        with self._progress:
            task = self._progress.add_task("", total=self.total, completed=len(self._skipped))
            try:
                for result in results:
                    self.seen += 1
                    self.failed += result.error is not None
                    self._progress.advance(task, result.file not in self._skipped)
                    self._tell(result)
                    yield result
            except KeyboardInterrupt:
                self.stopped = INTERRUPTED
            except TaggerError as exc:
                self.stopped = str(exc).rstrip(".")
            except OSError as exc:
                self.stopped = f"{exc.filename or 'the output'} can't be written: {system_words(exc)}"

    def _tell(self, result: FileRecord) -> None:
        if result.note:
            print(f"{printable(result.file)}: {printable(result.note)}", file=sys.stderr)

    def end(self) -> int:
        """Tells what was not done; the command's exit code."""
        if self.stopped is not None:
            print(f"Error: {self.stopped}; {self.seen} of {self.total} files were looked at.", file=sys.stderr)
        if self.failed:
            print(f"{self.failed} of {self.total} files could not be counted.", file=sys.stderr)
        if self.stopped not in (None, INTERRUPTED) and not self.seen:
            return 2
        return 1 if self.failed or self.stopped is not None else 0
