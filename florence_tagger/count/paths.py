"""What a user names -> the files that are meant: files, folders, patterns, and a list of them."""

import codecs
import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from florence_tagger.media.formats import EXTENSIONS
from florence_tagger.wording import system_words

# Folders that systems make of thumbnails and of their own data beside what people keep; others begin with a dot.
SYSTEM_FOLDERS = frozenset(("@eadir", "@__thumb", "__macosx"))


@dataclass(frozen=True)
class InputFile:
    """A file to count, or with `error` something of this name that no file could be found for."""

    name: str
    error: str | None = None

    @property
    def place(self) -> Path:
        """The same for all ways to write a name: `a.png`, `./a.png`, and from the root."""
        return place_of(self.name)


def place_of(name: str) -> Path:
    """Where a name is, whatever links lead there: files that are linked to one are counted by each of their names."""
    return Path(name).absolute()


def find_files(paths: Iterable[str], left_out: Path | None = None) -> list[InputFile]:
    """The files that `paths` name, each once, in their order; those of a folder by name.

    What folders and patterns have in the folder `left_out` is not meant.

    A folder stands for the files in it, at any depth, that have an allowed extension and are neither hidden nor in a
    folder of a system's thumbnails; a pattern (`*`, `?`, `[…]`, `**`) that is no name of a file itself for what matches
    it, but for such folders that it does not name; any other name for itself.
    """
    closed = os.path.realpath(left_out) if left_out else ""
    found: dict[Path, InputFile] = {}
    for path in paths:
        for one in files_of(path, closed):
            found.setdefault(one.place, one)
    return list(found.values())


def files_of(path: str, closed: str) -> Iterator[InputFile]:
    """What one name stands for; nothing in the folder with the real path `closed`, unless it is named itself."""
    if os.path.isdir(path):  # noqa: PTH112 - which says no, where Path raises, of names that no file can have
        yield from files_in(path, closed)
    elif glob.has_magic(path) and not os.path.lexists(path):
        matches = matches_of(path)
        for match in matches:
            if not closed or not Path(os.path.realpath(match)).is_relative_to(closed):
                yield from files_of(match, closed)
        if not matches:
            yield InputFile(path, "No file matches the pattern.")
    elif not path:
        yield InputFile(path, "There is no file without a name.")
    else:
        yield InputFile(path)


def matches_of(pattern: str) -> list[str]:
    """What a pattern matches, by name; of several ways to the same, as links make them without end, the shortest."""
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    named = set(Path(pattern).parts)
    matches = [match for match in found if not any(map(is_of_a_system, set(Path(match).parts) - named))]
    ways = {os.path.realpath(match): match for match in sorted(matches, key=len, reverse=True)}
    return sorted(ways.values())


def is_of_a_system(name: str) -> bool:
    """Whether the name of a file or folder is one that a system hides, or keeps its thumbnails under."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in SYSTEM_FOLDERS


def files_in(folder: str, closed: str) -> Iterator[InputFile]:
    """The files of a folder, and of those in it but for `closed`, that have an allowed extension."""
    unreadable: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=unreadable.append):
        inside = sorted(name for name in folders if not is_of_a_system(name))
        folders[:] = [name for name in inside if os.path.realpath(Path(place, name)) != closed]
        for name in sorted(names):
            path = Path(place, name)
            # What is neither, as a pipe, could keep us waiting; a broken link is an error worth telling.
            wanted = path.is_file() or (path.is_symlink() and not path.exists())
            if wanted and path.suffix.lower() in EXTENSIONS and not is_of_a_system(name):
                yield InputFile(str(path))
    for error in unreadable:
        yield InputFile(str(error.filename), f"The folder can't be read: {system_words(error)}.")


def read_list(listed: bytes) -> list[str]:
    """The names in a list: one a line, as Windows ends it, too, or with a null after each as `find -print0` does."""
    if b"\0" in listed:
        names = listed.split(b"\0")
    else:
        names = [line.removesuffix(b"\r") for line in listed.removeprefix(codecs.BOM_UTF8).split(b"\n")]
    return [os.fsdecode(name) for name in names if name.strip()]
