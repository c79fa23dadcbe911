"""The record of a file (its counts or its error), and the file of JSON lines from which a run resumes."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import IO, Any

from florence_tagger.count.paths import absolute_path
from florence_tagger.errors import SettingsError
from florence_tagger.wording import system_words


@dataclass(frozen=True)
class FileRecord:
    """The counts of a file, or why it has none.

    Attributes:
        file: its name.
        content: one-key dictionaries in alphabetical order of the label, as in an answer of the service.
        error: why the file could not be counted; None if it was.
        note: a remark on the counts, such as that objects may be missing.
    """

    file: str
    content: list[dict[str, int]] = field(default_factory=list)
    error: str | None = None
    note: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that are written as JSON: `{"file", "content", "error"}`."""
        return {"file": self.file, "content": self.content, "error": self.error}

    @property
    def as_json(self) -> str:
        """The fields as one line of ASCII, whatever characters the name has."""
        return json.dumps(self.fields)


class ResumeFile:
    """A file of JSON lines: records with their notes. If several lines are about one file, the last one applies.

    Each line is written at once, from any thread, so that a run that is killed loses at most the files in progress.

    Args:
        path: of the file, which is created if it does not exist.
        retry_failed: leave the records of failed files out of `done`.

    Attributes:
        done: the records of earlier runs by the absolute paths of the counted files.

    Raises:
        SettingsError: the file can't be read or written, or one of its lines is no record.
    """

    def __init__(self, path: Path, retry_failed: bool = False) -> None:
        self._lock = Lock()
        if path.exists() and not path.is_file():
            raise SettingsError(f"{path} is no file that can be gone on from.")
        try:
            self._file: IO[bytes] = path.open("a+b")
        except OSError as exc:
            raise SettingsError(f"{path} can't be written: {system_words(exc)}.") from exc
        try:
            records = self._read()
        except OSError as exc:
            self._file.close()
            raise SettingsError(f"{path} can't be gone on from: {system_words(exc)}.") from exc
        except SettingsError as exc:
            self._file.close()
            raise SettingsError(f"{path} can't be gone on from: {exc}.") from exc
        done = {path: record for path, record in records.items() if not (retry_failed and record.error)}
        self.done: Mapping[Path, FileRecord] = done

    def _read(self) -> dict[Path, FileRecord]:
        """Return the records by absolute path, cut off the incomplete line of a killed run, and seek to the end."""
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        records = [parse_record(line) for line in lines]
        self._file.truncate(self._file.tell() - len(rest))
        return {absolute_path(record.file): record for record in records}

    def add(self, record: FileRecord) -> None:
        """Append a record; raise OSError if it can't be written."""
        fields = record.fields | ({"note": record.note} if record.note else {})
        with self._lock:
            self._file.write(json.dumps(fields).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def parse_record(line: bytes) -> FileRecord:
    """Return the record in a line; raise SettingsError if it is none."""
    excerpt = os.fsdecode(line[:60])
    try:
        fields: Any = json.loads(line)
        record = FileRecord(fields["file"], fields["content"], fields["error"], fields.get("note", ""))
        counts = [count for entry in record.content for count in entry.values()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise SettingsError(f"no result of `count`: {excerpt!r}") from None
    if not isinstance(record.file, str) or not all(isinstance(count, int) for count in counts):
        raise SettingsError(f"no result of `count`: {excerpt!r}")
    return record
