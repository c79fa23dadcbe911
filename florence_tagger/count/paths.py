"""Names given on the command line (files, folders, patterns, lists) -> input files."""

import codecs
import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from florence_tagger.media.formats import EXTENSIONS
from florence_tagger.wording import system_words

# Folders in which systems keep thumbnails and their own data beside users' files; the others begin with a dot.
SYSTEM_FOLDERS = frozenset(("@eadir", "@__thumb", "__macosx"))


@dataclass(frozen=True)
class InputFile:
    """A file to count, or with `error` a name for which no file was found."""

    name: str
    error: str | None = None

    @property
    def path(self) -> Path:
        """Absolute path, equal for all spellings of a name: `a.png`, `./a.png`, and from the root."""
        return absolute_path(self.name)


def absolute_path(name: str) -> Path:
    """Return the absolute path of a name; links are not resolved, so that a linked file is counted by each name."""
    return Path(name).absolute()


def find_files(paths: Iterable[str], excluded_folder: Path | None = None) -> list[InputFile]:
    """Return the files that `paths` name, each once, in this order; those of a folder by name.

    A folder stands for all files in it, at any depth, that have an accepted extension and are neither hidden nor in a
    folder of a system's thumbnails. A pattern (`*`, `?`, `[…]`, `**`) that is not itself the name of a file stands for
    its matches, without those in hidden and thumbnail folders that it does not name. Any other name stands for itself.

    Args:
        paths: names of files and folders, and patterns.
        excluded_folder: folders and patterns match nothing in it.
    """
    excluded = os.path.realpath(excluded_folder) if excluded_folder else ""
    files: dict[Path, InputFile] = {}
    for path in paths:
        for file in files_for(path, excluded):
            files.setdefault(file.path, file)
    return list(files.values())


def files_for(path: str, excluded: str) -> Iterator[InputFile]:
    """Yield the files that one name stands for.

    Args:
        path: a file, a folder or a pattern.
        excluded: real path of a folder in which a pattern or folder matches nothing; empty for none.
    """
    if os.path.isdir(path):  # noqa: PTH112 - returns False for impossible names, for which Path raises
        yield from files_in(path, excluded)
    elif glob.has_magic(path) and not os.path.lexists(path):
        matches = matches_of(path)
        for match in matches:
            if not excluded or not Path(os.path.realpath(match)).is_relative_to(excluded):
                yield from files_for(match, excluded)
        if not matches:
            yield InputFile(path, "No file matches the pattern.")
    elif not path:
        yield InputFile(path, "There is no file without a name.")
    else:
        yield InputFile(path)


def matches_of(pattern: str) -> list[str]:
    """Return the matches of a pattern, sorted.

    A file or folder that links make reachable by several paths, even endlessly many, is returned by the shortest.
    """
    candidates = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    explicit = set(Path(pattern).parts)
    matches = [match for match in candidates if not any(map(is_hidden, set(Path(match).parts) - explicit))]
    by_real_path = {os.path.realpath(match): match for match in sorted(matches, key=len, reverse=True)}
    return sorted(by_real_path.values())


def is_hidden(name: str) -> bool:
    """Return True for the name of a hidden file or folder, or of a folder of a system's thumbnails."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in SYSTEM_FOLDERS


def files_in(folder: str, excluded: str) -> Iterator[InputFile]:
    """Yield the files with an accepted extension in a folder and its subfolders, except in the folder `excluded`."""
    errors: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=errors.append):
        visible = sorted(name for name in folders if not is_hidden(name))
        folders[:] = [name for name in visible if os.path.realpath(Path(parent, name)) != excluded]
        for name in sorted(names):
            path = Path(parent, name)
            # Reading a pipe could block; a broken link is an error that the user needs to see.
            is_countable = path.is_file() or (path.is_symlink() and not path.exists())
            if is_countable and path.suffix.lower() in EXTENSIONS and not is_hidden(name):
                yield InputFile(str(path))
    for error in errors:
        yield InputFile(str(error.filename), f"The folder can't be read: {system_words(error)}.")


def read_list(content: bytes) -> list[str]:
    """Return the names in a list: one a line (LF or CRLF), or each with a null after it, as `find -print0` writes."""
    if b"\0" in content:
        names = content.split(b"\0")
    else:
        names = [line.removesuffix(b"\r") for line in content.removeprefix(codecs.BOM_UTF8).split(b"\n")]
    return [os.fsdecode(name) for name in names if name.strip()]
