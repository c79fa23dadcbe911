"""Input files -> their records, in order; several files are in progress, so that the model is never idle."""

import errno
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from florence_tagger.count.annotations import Annotator
from florence_tagger.count.paths import InputFile
from florence_tagger.count.records import FileRecord, ResumeFile
from florence_tagger.counting import ALL_LABELS, as_content, top_counts
from florence_tagger.errors import DocumentError
from florence_tagger.media.content import read_file
from florence_tagger.object_counter import ObjectCounter
from florence_tagger.schemas import DocumentResult, Rules, Task, Tiles
from florence_tagger.wording import system_words

NUM_THREADS = 8  # files in progress; the model decodes as many answers together
MAX_PENDING = 32  # files submitted before the oldest is done, so that a slow one (a video) blocks no other
CUT_OFF = "the answer was cut off at the most tokens; objects may be missing"
INCOMPLETE = "the video is damaged or slow to decode; it is counted by what can be decoded"


@dataclass(frozen=True)
class CountJob:
    """Options of counting, the same for all files of a run.

    Attributes:
        task: of the model.
        text: of tasks that take one.
        rules: for counting.
        num_labels: maximum number of labels for a file, 0 for all.
        min_score: detections of a lower score are left out.
        annotated_paths: paths of the annotated files by the names of the input files; empty for none.
        max_bytes: of a file.
        annotator: draws the annotated files.
        tiles: per side of a picture; None for the counter's setting.
    """

    task: Task
    text: str
    rules: Rules
    num_labels: int
    min_score: float
    annotated_paths: Mapping[str, Path]
    max_bytes: int
    annotator: Annotator
    tiles: Tiles | None = None

    def count(self, counter: ObjectCounter, input_file: InputFile) -> FileRecord:
        """Count the objects in one file, and annotate it if this is requested."""
        if input_file.error is not None:
            return FileRecord(input_file.name, error=input_file.error)
        try:
            file = read_file(input_file.name, self.max_bytes)
            result = counter.detect_with(file, self.task, self.text, self.min_score, self.rules, self.tiles)
        except DocumentError as exc:
            return FileRecord(input_file.name, error=str(exc))
        notes = [note for note, applies in ((CUT_OFF, result.truncated), (INCOMPLETE, result.incomplete)) if applies]
        counts = top_counts(result.frames, self.rules, self.num_labels)
        if self.annotated_paths and result.frames:
            notes += self._annotate(self.annotated_paths[input_file.name], file, result, list(counts))
        return FileRecord(input_file.name, as_content(counts, ALL_LABELS), note="; ".join(notes))

    def _annotate(self, target: Path, file: bytes, result: DocumentResult, labels: Sequence[str]) -> list[str]:
        """Write the annotated file; return the notes on the file, one if it can't be annotated."""
        try:
            self.annotator.annotate(target, file, result, labels)
        except DocumentError as exc:
            return [f"not drawn: {exc}"]
        except OSError as exc:
            if exc.errno != errno.ENAMETOOLONG:
                raise
            return [f"not drawn: {system_words(exc)}"]
        return []


def annotated_paths_for(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the path of each annotated file: the same path below `folder`, never outside of it, with `.png` added.

    `Annotator` replaces the suffix for videos. If two files have one such path, as `/a.jpg` and `a.jpg` do, a number is
    added to the later one's.
    """
    names_by_path: dict[Path, str] = {}
    for name in names:
        path = Path(name)
        parts = ["_" if part == ".." else part for part in path.relative_to(path.anchor).parts]
        base = folder.joinpath(*parts)
        suffixes = chain([".png"], (f".{number}.png" for number in count(2)))
        targets = (base.with_name(base.name + suffix) for suffix in suffixes)
        names_by_path[next(target for target in targets if target not in names_by_path)] = name
    return {name: target for target, name in names_by_path.items()}


def count_files(
    files: Sequence[InputFile], counter: ObjectCounter, job: CountJob, resume_file: ResumeFile | None = None
) -> Generator[FileRecord]:
    """Yield the record of each file, in order; count only files that are not in `resume_file`, and add them to it.

    Raises:
        TaggerError: the counter fails on all files.
        OSError: the resume file or an annotated file can't be written.
    """
    done = {} if resume_file is None else resume_file.done
    remaining = [file for file in files if file.path not in done]

    def process(file: InputFile) -> FileRecord:
        record = job.count(counter, file)
        if resume_file is not None:
            resume_file.add(record)  # at once, also while an earlier file is in progress
        return record

    with closing(map_in_order(process, remaining)) as records:
        for file in files:
            if file.path in done:
                yield replace(done[file.path], file=file.name)
            else:
                yield next(records)


def map_in_order(function: Callable[[InputFile], FileRecord], files: Sequence[InputFile]) -> Generator[FileRecord]:
    """Call `function` on each file in threads and yield the results in order; wait for no thread when closed early."""
    pool = ThreadPoolExecutor(NUM_THREADS, "count")
    pending: deque[Future[FileRecord]] = deque()
    try:
        for file in files:
            if len(pending) == MAX_PENDING:
                yield pending.popleft().result()
            pending.append(pool.submit(function, file))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
