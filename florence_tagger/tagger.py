"""The Python API: a file -> what is in it, by the same stages as the service's."""

import os
import weakref
from collections.abc import Iterable
from threading import BoundedSemaphore
from types import TracebackType
from typing import Any, Self

from florence_tagger.assembly import build_pipeline, sampling_from, start_decoder_pool
from florence_tagger.config import Settings, load_settings
from florence_tagger.counting import ALL_LABELS, MAX_LABELS, above, as_content, count_document, labels_kept
from florence_tagger.errors import DocumentError, NotReadyError, RequestError
from florence_tagger.florence.manifest import load_manifest
from florence_tagger.florence.model import Florence2, load_model
from florence_tagger.labels import read_aliases
from florence_tagger.media.content import read_file
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.pipeline import FRAMES_UNDER_WAY
from florence_tagger.prompts import prompt_named
from florence_tagger.rules import rules_named
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import AUTO, MAX_TILES, DocumentResult, Rules, Task, Tiles, VideoCount

File = str | os.PathLike[str] | bytes


class Tagger:
    """A loaded model that counts what is in files; all of it is for any thread, and many threads are faster than one.

    It holds threads and processes, which end with `close`, with the `with` block, or with the object. Its files are
    decoded in processes of their own, under the limits that the settings name.

        with Tagger.load("ov_models/florence-2-base") as tagger:
            tagger.count("photo.jpg")  # {"car": 7, "person": 6}
    """

    def __init__(self, settings: Settings, decoders: DecoderPool, florence2: Florence2) -> None:
        """Takes over `decoders` and `florence2`; `load` makes both."""
        scheduler = Scheduler(lambda: florence2, settings.queue_size)
        scheduler.wait_until_ready()
        self._settings = settings
        self._pipeline = build_pipeline(settings, decoders, scheduler)
        # So many files at a time never want more places in the queue than there are: the others wait, none is refused.
        self._room = BoundedSemaphore(max(settings.queue_size // FRAMES_UNDER_WAY, 1))
        self._end = weakref.finalize(self, end, scheduler, decoders)

    @classmethod
    def load(cls, model_dir: str | os.PathLike[str] | None = None, **settings: Any) -> Self:
        """Loads a model folder, the bundled one if none is named here or in the environment.

        Args:
            model_dir: as `python -m convert` writes it.
            settings: any of those in docs/configuration.md by their names, as in `device="GPU", num_beams=1`; they go
                before the environment's `FLORENCE_*`.

        Raises:
            SettingsError: a setting has a value that is not accepted.
            ModelError: the folder or the device can't be used.
        """
        return cls.open(load_settings(settings | ({} if model_dir is None else {"model_dir": os.fspath(model_dir)})))

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Loads the model that the settings name.

        Raises:
            SettingsError: the file of aliases can't be used.
            ModelError: the model or the device can't be used.
        """
        read_aliases(settings.aliases)
        folder = load_manifest(settings.model_dir)
        decoders = start_decoder_pool(settings, folder.image_size)  # before there is a model
        try:
            return cls(settings, decoders, load_model(folder, settings))
        except BaseException:
            decoders.close()
            raise

    def count(
        self,
        file: File,
        prompt: str = Task.OBJECT_DETECTION,
        text: str = "",
        num_labels: int = ALL_LABELS,
        min_score: float = 0.0,
        classes: Iterable[str] | None = None,
        merge_iou: float = 0.0,
        video_count: str = VideoCount.PEAK,
        tiles: Tiles | None = None,
    ) -> dict[str, int]:
        """How many objects of each label a picture or video has, in the alphabetical order of the labels.

        Of a file with several pages it is the sum over them, of a video what `video_count` says.

        Args:
            file: its path, or its bytes.
            prompt: a task's name, such as `OD` or `OPEN_VOCABULARY_DETECTION`.
            text: what to look for, of the tasks that need it.
            num_labels: at most so many labels, those with the highest counts; 0, the default, is all.
            min_score: boxes of a lower score, 0 to 1, are left out.
            classes: only these are counted, and each of them, with 0 where there is none; 1 to 100 names.
            merge_iou: of boxes whose intersection over union is this or more the strongest is kept; 0 is off.
            video_count: `peak`, the most in any one frame, or `distinct`, how many different ones pass.
            tiles: a side that each picture is looked at in, 1 to 6 or "auto"; the setting's by default.

        Raises:
            DocumentError: the file can't be read, is not accepted or is damaged; says why.
            RequestError: an argument has a value that is not accepted.
            NotReadyError: the tagger is closed.
        """
        if not isinstance(num_labels, int) or not 0 <= num_labels <= MAX_LABELS:
            raise RequestError(f"num_labels is {num_labels}; accepted is an integer from 0 to {MAX_LABELS}.")
        rules = rules_named(classes, merge_iou, video_count)
        counts = count_document(self._detect(file, prompt, text, min_score, rules, tiles).frames, rules)
        content = as_content(counts, labels_kept(num_labels, rules))
        return {label: number for one in content for label, number in one.items()}

    def detect(
        self,
        file: File,
        prompt: str = Task.OBJECT_DETECTION,
        text: str = "",
        min_score: float = 0.0,
        classes: Iterable[str] | None = None,
        merge_iou: float = 0.0,
        video_count: str = VideoCount.PEAK,
        tiles: Tiles | None = None,
    ) -> DocumentResult:
        """What is in each page or sampled frame: labels, scores, and boxes in pixels of the picture as displayed.

        Arguments and errors are those of `count`. With `distinct` the boxes have the numbers of their tracks.
        """
        return self._detect(file, prompt, text, min_score, rules_named(classes, merge_iou, video_count), tiles)

    def _detect(
        self, file: File, prompt: str, text: str, min_score: float, rules: Rules, tiles: Tiles | None
    ) -> DocumentResult:
        if not isinstance(min_score, int | float) or not 0 <= min_score <= 1:
            raise RequestError(f"min_score is {min_score}; accepted is a number from 0 to 1.")
        wanted = prompt_named(prompt, text, rules.classes)
        sides = self._settings.tiles if tiles is None else check_tiles(tiles)
        with self._room:
            if not self._end.alive:
                raise NotReadyError("The tagger is closed.")
            content = file if isinstance(file, bytes) else read_file(file, self._pipeline.limits.document_bytes)
            (outcome,) = self._pipeline.run([content], sampling_from(self._settings), wanted, rules=rules, tiles=sides)
        if isinstance(outcome, DocumentError):
            # Whatever is said of a file then is none of its faults.
            raise outcome if self._end.alive else NotReadyError("The tagger is closed.")
        return DocumentResult(above(outcome.frames, min_score), outcome.incomplete)

    def close(self) -> None:
        """Ends its threads and processes; what they are at fails with NotReadyError. May be called again."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_tiles(tiles: Tiles) -> Tiles:
    """Tiles a side as they are; RequestError where they are none that are accepted."""
    if tiles == AUTO or (type(tiles) is int and 1 <= tiles <= MAX_TILES):
        return tiles
    raise RequestError(f"tiles is {tiles}; accepted is an integer from 1 to {MAX_TILES} or {AUTO}.")


def end(scheduler: Scheduler, decoders: DecoderPool) -> None:
    """Ends what a tagger has started."""
    scheduler.close()
    decoders.close()
