"""What a user names -> the files that are meant: files, folders, patterns, and a list of them."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from florence_tagger.media.formats import EXTENSIONS


@dataclass(frozen=True)
class Named:
    """A file to count, or with `error` something of this name that no file could be found for."""

    name: str
    error: str | None = None


def find_files(paths: Iterable[str]) -> list[Named]:
    """The files that `paths` name, each once, in their order; those of a folder by name.

    A folder stands for the files in it, at any depth, that have an allowed extension and are not hidden; a pattern
    (`*`, `?`, `[…]`, `**`) that is no name of a file itself for what matches it; any other name for itself.
    """
    return list({one.name: one for path in paths for one in files_of(path)}.values())


def files_of(path: str) -> Iterator[Named]:
    """What one name stands for."""
    if os.path.isdir(path):  # noqa: PTH112 - which says no, where Path raises, of names that no file can have
        yield from files_in(path)
    elif glob.has_magic(path) and not os.path.lexists(path):
        matches = matches_of(path)
        for match in matches:
            yield from files_of(match)
        if not matches:
            yield Named(path, "No file matches the pattern.")
    else:
        yield Named(path)


def matches_of(pattern: str) -> list[str]:
    """What a pattern matches, by name; of several ways to the same, as links make them without end, the shortest."""
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    ways = {os.path.realpath(match): match for match in sorted(matches, key=len, reverse=True)}
    return sorted(ways.values())


def files_in(folder: str) -> Iterator[Named]:
    """The files of a folder, and of those in it, that have an allowed extension."""
    unreadable: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            # What is neither, as a pipe, could keep us waiting; a broken link is an error worth telling.
            wanted = path.is_file() or (path.is_symlink() and not path.exists())
            if wanted and path.suffix.lower() in EXTENSIONS and not name.startswith("."):
                yield Named(str(path))
    for error in unreadable:
        yield Named(str(error.filename), f"The folder can't be read: {error.strerror}.")


def read_list(listed: bytes) -> list[str]:
    """The names in a list: one a line, or with a null after each as `find -print0` writes them."""
    separator = b"\0" if b"\0" in listed else b"\n"
    return [os.fsdecode(name) for name in listed.split(separator) if name.strip()]
