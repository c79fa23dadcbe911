"""How far a conversion is, for the person who waits for it."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bar:
    """Shows the stages of a conversion: a bar where there is a terminal, and a line for each as it begins."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
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
