"""What became of a file, and the file of JSON lines in which that is kept for a run to go on from."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import IO, Any

from florence_tagger.count.paths import place_of
from florence_tagger.errors import SettingsError
from florence_tagger.wording import system_words


@dataclass(frozen=True)
class FileRecord:
    """A file's counts, or why it has none.

    Attributes:
        content: one-key dictionaries in alphabetical order of the label, as in an answer of the service.
        note: what is to be known of the counts.
    """

    file: str
    content: list[dict[str, int]] = field(default_factory=list)
    error: str | None = None
    note: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """What is told of a file in JSON: `{"file", "content", "error"}`."""
        return {"file": self.file, "content": self.content, "error": self.error}

    @property
    def as_json(self) -> str:
        """Its fields in one line, ASCII alone, whatever the name is."""
        return json.dumps(self.fields)


class ResumeFile:
    """A file of JSON lines as `as_json` has them, with the note where there is one; the last one about a file counts.

    Each line is written at once, from any thread, so that whatever ends a run costs at most the files under way.

    Attributes:
        done: the results that it has had before by the files' places, with `retry_failed` those of counted files.

    Raises:
        SettingsError: it can't be read or written, or a line of it is no result.
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
            known = self._read()
        except OSError as exc:
            self._file.close()
            raise SettingsError(f"{path} can't be gone on from: {system_words(exc)}.") from exc
        except SettingsError as exc:
            self._file.close()
            raise SettingsError(f"{path} can't be gone on from: {exc}.") from exc
        done = {place: one for place, one in known.items() if not (retry_failed and one.error)}
        self.done: Mapping[Path, FileRecord] = done

    def _read(self) -> dict[Path, FileRecord]:
        """The results of the file, which is left at its end, without the part of a line of a run that was killed."""
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        results = [parsed(line) for line in lines]
        self._file.truncate(self._file.tell() - len(rest))
        return {place_of(one.file): one for one in results}

    def add(self, result: FileRecord) -> None:
        """Appends a result; OSError where there is no room."""
        kept = result.fields | ({"note": result.note} if result.note else {})
        with self._lock:
            self._file.write(json.dumps(kept).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def parsed(line: bytes) -> FileRecord:
    """The result in a line; SettingsError where it has none."""
    shown = os.fsdecode(line[:60])
    try:
        values: Any = json.loads(line)
        result = FileRecord(values["file"], values["content"], values["error"], values.get("note", ""))
        numbers = [number for one in result.content for number in one.values()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise SettingsError(f"no result of `count`: {shown!r}") from None
    if not isinstance(result.file, str) or not all(isinstance(number, int) for number in numbers):
        raise SettingsError(f"no result of `count`: {shown!r}")
    return result
