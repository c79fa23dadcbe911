"""Progress bars, and the size of a written folder, for the terminal."""

from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def counting_bar(**options: Any) -> Progress:
    """Return a progress bar with description, steps of their total, and elapsed time; `options` go to Progress."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, **options)


def megabytes(folder: Path) -> float:
    """Return the total size of a folder's files in MB (10^6 bytes)."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


class Bar:
    """The stages of a conversion on stderr: a progress bar if it is a terminal, and a line for each stage."""

    def __init__(self) -> None:
        self._progress = counting_bar(console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("loading PyTorch and optimum-intel", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def set_total(self, stages: int) -> None:
        """Set the total number of stages."""
        self._progress.update(self._task, total=stages)

    def stage(self, name: str) -> None:
        """Print a line with the elapsed time, and advance the bar."""
        elapsed = self._progress.tasks[self._task].elapsed or 0
        self.note(f"{elapsed:6.1f} s  {name}")
        self._progress.update(self._task, description=name, advance=1)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, highlight=False, soft_wrap=True)
