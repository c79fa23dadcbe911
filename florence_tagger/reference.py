"""The settings as a table for the README: `Settings` -> Markdown."""

from typing import Any

from florence_tagger.bounds import accepted
from florence_tagger.config import PREFIX, Settings
from florence_tagger.errors import TaggerError

BEGIN, END = "<!-- settings: made by `make readme` -->\n", "<!-- end of settings -->\n"


def settings_table() -> str:
    """A row for each setting: variable, default, what is accepted, meaning."""
    rows = [row(name, schema) for name, schema in Settings.model_json_schema()["properties"].items()]
    return "\n".join(["| variable | default | accepted | meaning |", "|---|---|---|---|", *rows]) + "\n"


def row(name: str, schema: dict[str, Any]) -> str:
    """One setting."""
    default = schema["default"]
    text = str(default).lower() if isinstance(default, bool) else f"{default}"
    return f"| `{PREFIX}{name.upper()}` | {text} | {accepted(schema)} | {schema['description']} |"


def updated(text: str) -> str:
    """A page with the table between its marks made anew.

    Raises:
        TaggerError: the page has no such marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise TaggerError(f"The page has no lines {BEGIN.strip()} and {END.strip()}.")
    return before + begin + settings_table() + end + after
