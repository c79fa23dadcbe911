"""The settings as a table for docs/configuration.md: `Settings` -> Markdown."""

from typing import Any

from florence_tagger.bounds import accepted
from florence_tagger.config import PREFIX, Settings
from florence_tagger.errors import TaggerError

BEGIN, END = "<!-- settings: made by `make configuration` -->\n", "<!-- end of settings -->\n"


def settings_table() -> str:
    """Return a table with a row for each setting: variable, default, accepted values, description."""
    rows = [table_row(name, schema) for name, schema in Settings.model_json_schema()["properties"].items()]
    return "\n".join(["| variable | default | accepted | meaning |", "|---|---|---|---|", *rows]) + "\n"


def table_row(name: str, schema: dict[str, Any]) -> str:
    """Return the row of one setting."""
    default = schema["default"]
    text = str(default).lower() if isinstance(default, bool) else f"{default}"
    return f"| `{PREFIX}{name.upper()}` | {text} | {accepted(schema)} | {schema['description']} |"


def update_page(text: str) -> str:
    """Return a page with its table updated; raise TaggerError if it has no lines that mark the table."""
    return replace_section(text, BEGIN, END, settings_table())


def replace_section(text: str, begin: str, end: str, content: str) -> str:
    """Return a page with other content between two lines.

    Raises:
        TaggerError: the page has no such lines.
    """
    before, begin_line, rest = text.partition(begin)
    _, end_line, after = rest.partition(end)
    if not (begin_line and end_line):
        raise TaggerError(f"The page has no lines {begin.strip()} and {end.strip()}.")
    return before + begin + content + end + after
