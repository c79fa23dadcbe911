"""The settings as a table for docs/configuration.md: `Settings` -> Markdown."""

from typing import Any

from florence_tagger.bounds import accepted
from florence_tagger.config import PREFIX, Settings
from florence_tagger.errors import TaggerError

BEGIN, END = "<!-- settings: made by `make configuration` -->\n", "<!-- end of settings -->\n"


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
    """A page with the table between its marks made anew; TaggerError where it has no such marks."""
    return replaced(text, BEGIN, END, settings_table())


def replaced(text: str, begin: str, end: str, content: str) -> str:
    """A page with other content between two lines.

    Raises:
        TaggerError: the page has no such lines.
    """
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise TaggerError(f"The page has no lines {begin.strip()} and {end.strip()}.")
    return before + begin + content + end + after
