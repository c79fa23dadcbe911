"""Records -> text: a table for people, JSON, JSON lines, CSV. All but the table are written as the records come."""

import csv
from collections.abc import Callable, Iterable
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from florence_tagger.count.records import FileRecord


def write_table(records: Iterable[FileRecord], out: IO[str]) -> None:
    """Write a line for each file: its name and its counts or error. The table has a frame on terminals only."""
    if not out.isatty():
        lines = [(escape_unprintable(record.file), record_text(record).plain) for record in records]
        width = max((len(name) for name, _ in lines), default=0)
        out.writelines(f"{name:{width}}  {text}\n" for name, text in lines)
        return
    table = Table("file", "objects", box=box.SIMPLE_HEAD, pad_edge=False)
    for record in records:
        table.add_row(Text(escape_unprintable(record.file)), record_text(record))
    Console(file=out).print(table)


def record_text(record: FileRecord) -> Text:
    """Return the counts or the error of a file as text."""
    if record.error is not None:
        return Text(escape_unprintable(record.error), style="red")
    counts = [f"{count} {escape_unprintable(label)}" for entry in record.content for label, count in entry.items()]
    return Text(", ".join(counts) or "nothing", style="" if counts else "dim")


def escape_unprintable(text: str) -> str:
    """Return a text with all control characters escaped, which a terminal would interpret."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def write_jsonl(records: Iterable[FileRecord], out: IO[str]) -> None:
    """Write an object `{"file", "content", "error"}` in a line for each file."""
    for record in records:
        print(record.as_json, file=out, flush=True)


def write_json(records: Iterable[FileRecord], out: IO[str]) -> None:
    """Write a list of the objects that `write_jsonl` writes."""
    separator = "[\n"
    for record in records:
        print(separator, record.as_json, sep="", end="", file=out, flush=True)
        separator = ",\n"
    print("[]" if separator == "[\n" else "\n]", file=out)


def write_csv(records: Iterable[FileRecord], out: IO[str]) -> None:
    """Write a row for each label of a file: `file,label,count,error`; one without a label if nothing was detected."""
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(("file", "label", "count", "error"))
    for record in records:
        if record.error is not None:
            rows.writerow((record.file, "", "", record.error))
        elif not record.content:
            rows.writerow((record.file, "", 0, ""))
        rows.writerows((record.file, label, count, "") for entry in record.content for label, count in entry.items())
        out.flush()


WRITERS: dict[str, Callable[[Iterable[FileRecord], IO[str]], None]] = {
    "table": write_table,
    "json": write_json,
    "jsonl": write_jsonl,
    "csv": write_csv,
}
