"""Common parts of the commands in `training/`."""

from pathlib import Path
from typing import Any

import click

from florence_tagger.errors import TaggerError
from florence_tagger.wording import error_words

NUMBER = "[0-9]" * 4
SEED = click.IntRange(min=0)  # NumPy's seeds


class Command(click.Command):
    """A command that reports unusable files and models in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; ClickException for errors of files and of this package."""
        try:
            return super().invoke(ctx)
        except (OSError, TaggerError) as exc:
            raise click.ClickException(error_words(exc)) from exc


def folder_for(path: Path, pattern: str) -> Path:
    """Create a folder for files with names like `scene{}.png`, and remove earlier ones of such names from it."""
    path.mkdir(parents=True, exist_ok=True)
    for earlier in path.glob(pattern.format(NUMBER)):
        earlier.unlink()
    return path
