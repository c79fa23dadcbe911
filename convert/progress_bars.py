"""How far a conversion is, for the person who waits for it, and how large what it wrote."""

from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def counting_bar(**options: Any) -> Progress:
    """A bar with its description, how many of how many, and the time it took; `options` are those of Progress."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, **options)


def megabytes(folder: Path) -> float:
    """The size of a folder's files, MB (10^6)."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


class Bar:
    """Shows the stages of a conversion: a bar where there is a terminal, and a line for each as it begins."""

    def __init__(self) -> None:
        self._progress = counting_bar(console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("loading PyTorch and optimum-intel", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def expect(self, stages: int) -> None:
        self._progress.update(self._task, total=stages)

    def stage(self, name: str) -> None:
        elapsed = self._progress.tasks[self._task].elapsed or 0
        self.note(f"{elapsed:6.1f} s  {name}")
        self._progress.update(self._task, description=name, advance=1)

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, soft_wrap=True)
