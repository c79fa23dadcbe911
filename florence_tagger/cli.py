"""The command line: `python -m florence_tagger serve`."""

import logging
import sys
from pathlib import Path
from typing import Any

import click

from florence_tagger import __version__
from florence_tagger.config import PREFIX, Settings, load_settings
from florence_tagger.errors import TaggerError
from florence_tagger.florence.folder import check_hashes, read_folder


@click.group()
@click.version_option(__version__, package_name="florence_tagger", prog_name="florence_tagger")
def main() -> None:
    """Counts the objects in pictures with a Florence-2 model on OpenVINO."""


def setting_options() -> list[click.Parameter]:
    """An option for each setting; what it accepts is checked where the environment is, too."""
    options: list[click.Parameter] = []
    for name, field in Settings.model_fields.items():
        default = "not set" if field.default in (None, "") else field.default
        help_text = f"{field.description} [{PREFIX}{name.upper()}; default: {default}]"
        options.append(click.Option([f"--{name.replace('_', '-')}"], metavar="VALUE", help=help_text))
    return options


def serve(**given: Any) -> None:
    """Serves the model over HTTP until told to stop."""
    from florence_tagger.web.server import Server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings({name: value for name, value in given.items() if value is not None})
        folder = read_folder(settings.model_dir)
    except TaggerError as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(2)
    Server(settings, folder).run()


@main.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
def check(model_dir: Path) -> None:
    """Reads every file of a model folder and compares it with the folder's manifest."""
    try:
        folder = read_folder(model_dir)
        check_hashes(folder)
    except TaggerError as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(1)
    click.echo(f"{folder.name} ({folder.precision}, {folder.sha256[:12]}) is complete and unchanged.")


main.add_command(click.Command("serve", params=setting_options(), callback=serve, help=serve.__doc__))
