"""Files -> their results, in their order: several at a time, so that the model always has something to look at."""

import errno
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Protocol

from florence_tagger.count.annotations import Annotator
from florence_tagger.count.paths import InputFile
from florence_tagger.count.records import FileRecord, ResumeFile
from florence_tagger.counting import as_content, count_document, labels_kept
from florence_tagger.errors import DocumentError
from florence_tagger.media.content import read_file
from florence_tagger.schemas import DocumentResult, Rules, Task, Tiles
from florence_tagger.wording import system_words

THREADS = 8  # files under way; the model decodes as many answers together
AHEAD = 32  # files begun before the oldest is done: one that takes long, as videos do, holds up no other
CUT_OFF = "the answer was cut off at the most tokens; objects may be missing"
INCOMPLETE = "the video is damaged or slow to decode; it is counted by what can be decoded"


class DocumentDetector(Protocol):
    """What finds the objects in a file's bytes: a `Tagger`, or a service."""

    def detect(
        self,
        file: bytes,
        prompt: str,
        text: str,
        min_score: float,
        classes: Sequence[str] | None,
        merge_iou: float,
        video_count: str,
        tiles: Tiles | None,
    ) -> DocumentResult:
        """What is in the file; DocumentError where it is the file's fault that this can't be told."""


@dataclass(frozen=True)
class CountJob:
    """What to count, and what it may cost.

    Attributes:
        num_labels: at most so many labels for a file, 0 for all.
        drawings: where files go with what was found drawn on them, by the files' names; empty for none.
        max_bytes: of a file.
        annotator: draws.
        tiles: a side that pictures are looked at in; None for the finder's own.
    """

    task: Task
    text: str
    rules: Rules
    num_labels: int
    min_score: float
    drawings: Mapping[str, Path]
    max_bytes: int
    annotator: Annotator
    tiles: Tiles | None = None

    def count(self, finder: DocumentDetector, named: InputFile) -> FileRecord:
        """What becomes of one file."""
        if named.error is not None:
            return FileRecord(named.name, error=named.error)
        try:
            content = read_file(named.name, self.max_bytes)
            found = self._detect(finder, content)
        except DocumentError as exc:
            return FileRecord(named.name, error=str(exc))
        notes = [text for text, holds in ((CUT_OFF, found.truncated), (INCOMPLETE, found.incomplete)) if holds]
        counts = count_document(found.frames, self.rules)
        answer = as_content(counts, labels_kept(self.num_labels, self.rules))
        if self.drawings and found.frames:
            labels = [label for one in answer for label in one]
            notes += self._draw(self.drawings[named.name], content, found, labels)
        return FileRecord(named.name, answer, note="; ".join(notes))

    def _detect(self, finder: DocumentDetector, content: bytes) -> DocumentResult:
        """What is in one file; DocumentError where it is the file's fault that this can't be told."""
        rules = self.rules
        return finder.detect(
            content,
            self.task,
            self.text,
            self.min_score,
            rules.classes or None,
            rules.merge_iou,
            rules.video_count,
            self.tiles,
        )

    def _draw(self, target: Path, content: bytes, found: DocumentResult, labels: Sequence[str]) -> list[str]:
        """Draws what was found on a file; why not, where that is the file's fault."""
        try:
            self.annotator.annotate(target, content, found, labels)
        except DocumentError as exc:
            return [f"not drawn: {exc}"]
        except OSError as exc:
            if exc.errno != errno.ENAMETOOLONG:
                raise
            return [f"not drawn: {system_words(exc)}"]
        return []


def places_in(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Where the drawing of each file goes: the same path in another folder, never outside of it, with `.png` added.

    Videos have another suffix there. Where that is one place for two files, as of `/a.jpg` and `a.jpg`, the later one's
    has a number, too.
    """
    places: dict[Path, str] = {}
    for name in names:
        path = Path(name)
        parts = ["_" if part == ".." else part for part in path.relative_to(path.anchor).parts]
        plain = folder.joinpath(*parts)
        endings = chain([".png"], (f".{number}.png" for number in count(2)))
        targets = (plain.with_name(plain.name + ending) for ending in endings)
        places[next(target for target in targets if target not in places)] = name
    return {name: target for target, name in places.items()}


def count_files(
    files: Sequence[InputFile], finder: DocumentDetector, wanted: CountJob, record: ResumeFile | None = None
) -> Generator[FileRecord]:
    """The result of each file, in their order; those that `record` has are not counted again, the others added to it.

    Raises:
        TaggerError: the finder can't go on.
        OSError: the record or the drawings can't be written.
    """
    done = {} if record is None else record.done
    new = [one for one in files if one.place not in done]

    def treat(named: InputFile) -> FileRecord:
        result = wanted.count(finder, named)
        if record is not None:
            record.add(result)  # at once: one file that takes long keeps no other from being done
        return result

    with closing(in_order(treat, new)) as results:
        for named in files:
            if named.place in done:
                yield replace(done[named.place], file=named.name)
            else:
                yield next(results)


def in_order(work: Callable[[InputFile], FileRecord], files: Sequence[InputFile]) -> Generator[FileRecord]:
    """What `work` makes of each file, in threads; closed early it waits for none of them."""
    pool = ThreadPoolExecutor(THREADS, "count")
    under_way: deque[Future[FileRecord]] = deque()
    try:
        for named in files:
            if len(under_way) == AHEAD:
                yield under_way.popleft().result()
            under_way.append(pool.submit(work, named))
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
