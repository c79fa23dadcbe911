"""What the commands of `training/` have in common."""

from pathlib import Path
from typing import Any

import click

from florence_tagger.errors import TaggerError
from florence_tagger.wording import error_words

NUMBER = "[0-9]" * 4
SEED = click.IntRange(min=0)  # as numpy's


class Command(click.Command):
    """A command that says in a line why a file or a model is none for it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (OSError, TaggerError) as exc:
            raise click.ClickException(error_words(exc)) from exc


def folder_for(path: Path, kind: str) -> Path:
    """A folder for files of a kind, like `scene{}.png`, without those that were drawn there before."""
    path.mkdir(parents=True, exist_ok=True)
    for old in path.glob(kind.format(NUMBER)):
        old.unlink()
    return path
