"""Results -> text: a table for people, JSON, lines of JSON, CSV. All but the table are written as results come."""

import csv
from collections.abc import Callable, Iterable
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from florence_tagger.count.records import FileRecord


def write_table(results: Iterable[FileRecord], out: IO[str]) -> None:
    """A line for each file: its name, and what it has, or why not. Outside of terminals it has no frame."""
    if not out.isatty():
        lines = [(printable(result.file), described(result).plain) for result in results]
        width = max((len(name) for name, _ in lines), default=0)
        out.writelines(f"{name:{width}}  {text}\n" for name, text in lines)
        return
    table = Table("file", "objects", box=box.SIMPLE_HEAD, pad_edge=False)
    for result in results:
        table.add_row(Text(printable(result.file)), described(result))
    Console(file=out).print(table)


def described(result: FileRecord) -> Text:
    """A result in words."""
    if result.error is not None:
        return Text(printable(result.error), style="red")
    counts = [f"{number} {printable(label)}" for one in result.content for label, number in one.items()]
    return Text(", ".join(counts) or "nothing", style="" if counts else "dim")


def printable(text: str) -> str:
    """A text without what a terminal would obey instead of showing it."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def write_jsonl(results: Iterable[FileRecord], out: IO[str]) -> None:
    """An object `{"file", "content", "error"}` in a line for each file."""
    for result in results:
        print(result.as_json, file=out, flush=True)


def write_json(results: Iterable[FileRecord], out: IO[str]) -> None:
    """A list of the same objects."""
    separator = "[\n"
    for result in results:
        print(separator, result.as_json, sep="", end="", file=out, flush=True)
        separator = ",\n"
    print("[]" if separator == "[\n" else "\n]", file=out)


def write_csv(results: Iterable[FileRecord], out: IO[str]) -> None:
    """A row for each label of a file: `file,label,count,error`; one without a label where nothing was found."""
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(("file", "label", "count", "error"))
    for result in results:
        if result.error is not None:
            rows.writerow((result.file, "", "", result.error))
        elif not result.content:
            rows.writerow((result.file, "", 0, ""))
        rows.writerows((result.file, label, count, "") for one in result.content for label, count in one.items())
        out.flush()


WRITERS: dict[str, Callable[[Iterable[FileRecord], IO[str]], None]] = {
    "table": write_table,
    "json": write_json,
    "jsonl": write_jsonl,
    "csv": write_csv,
}
