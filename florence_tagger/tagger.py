"""The Python API: a file -> counts or detections, by the same pipeline as the service's."""

import os
import weakref
from threading import BoundedSemaphore
from typing import Any, Self

from florence_tagger.admission import MAX_FRAMES_IN_FLIGHT
from florence_tagger.assembly import build_pipeline, sampling_from, start_decoder_pool
from florence_tagger.config import Settings, load_settings
from florence_tagger.counting import filter_by_score
from florence_tagger.errors import DocumentError, NotReadyError, RequestError
from florence_tagger.florence.manifest import load_manifest
from florence_tagger.florence.model import Florence2, load_model
from florence_tagger.labels import read_aliases
from florence_tagger.media.content import read_file
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.object_counter import ObjectCounter
from florence_tagger.prompts import parse_prompt
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import AUTO, MAX_TILES, DocumentResult, File, Rules, Tiles


class Tagger(ObjectCounter):
    """A loaded model that counts the objects in files. It is thread-safe, and faster when used by several threads.

    It owns threads and processes, which end with `close`, with the `with` block, or with the object. Files are decoded
    in separate processes, within the limits of the settings.

        with Tagger.load("ov_models/florence-2-base") as tagger:
            tagger.count("photo.jpg")  # {"car": 7, "person": 6}
    """

    def __init__(self, settings: Settings, decoders: DecoderPool, florence2: Florence2) -> None:
        """Take ownership of `decoders` and `florence2`, which `load` creates."""
        scheduler = Scheduler(lambda: florence2, settings.queue_size)
        scheduler.wait_until_ready()
        self._settings = settings
        self._pipeline = build_pipeline(settings, decoders, scheduler)
        # This number of files never exceeds the queue: further files wait, and none is refused.
        self._file_slots = BoundedSemaphore(max(settings.queue_size // MAX_FRAMES_IN_FLIGHT, 1))
        self._finalizer = weakref.finalize(self, close_all, scheduler, decoders)

    @classmethod
    def load(cls, model_dir: str | os.PathLike[str] | None = None, **settings: Any) -> Self:
        """Load a model folder, the bundled one if none is given here or in the environment.

        Args:
            model_dir: a folder that `python -m convert` has written.
            **settings: those of docs/configuration.md by their names, as in `device="GPU", num_beams=1`; they override
                the environment's `FLORENCE_*`.

        Raises:
            SettingsError: a setting has a value that is not accepted.
            ModelError: the folder or the device can't be used.
        """
        return cls.open(load_settings(settings | ({} if model_dir is None else {"model_dir": os.fspath(model_dir)})))

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Load the model of the settings.

        Raises:
            SettingsError: the file of aliases can't be used.
            ModelError: the model or the device can't be used.
        """
        read_aliases(settings.aliases)
        manifest = load_manifest(settings.model_dir)
        decoders = start_decoder_pool(settings, manifest.image_size)  # before there is a model
        try:
            return cls(settings, decoders, load_model(manifest, settings))
        except BaseException:
            decoders.close()
            raise

    def detect_with(
        self, file: File, prompt: str, text: str, min_score: float, rules: Rules, tiles: Tiles | None
    ) -> DocumentResult:
        """Return the detections of a file by the rules, which `count` and `detect` have checked."""
        if not isinstance(min_score, int | float) or not 0 <= min_score <= 1:
            raise RequestError(f"min_score is {min_score}; accepted is a number from 0 to 1.")
        model_prompt = parse_prompt(prompt, text, rules.classes)
        tiles = self._settings.tiles if tiles is None else check_tiles(tiles)
        with self._file_slots:
            if not self._finalizer.alive:
                raise NotReadyError("The tagger is closed.")
            content = file if isinstance(file, bytes) else read_file(file, self._pipeline.limits.document_bytes)
            sampling = sampling_from(self._settings)
            (outcome,) = self._pipeline.run([content], sampling, model_prompt, rules=rules, tiles=tiles)
        if isinstance(outcome, DocumentError):
            # Once the tagger is closed, the error is not the file's.
            raise outcome if self._finalizer.alive else NotReadyError("The tagger is closed.")
        return DocumentResult(filter_by_score(outcome.frames, min_score), outcome.incomplete)

    def close(self) -> None:
        """End all threads and processes; running calls raise NotReadyError. It may be called more than once."""
        self._finalizer()


def check_tiles(tiles: Tiles) -> Tiles:
    """Return the tiles per side; raise RequestError if they are not accepted."""
    if tiles == AUTO or (type(tiles) is int and 1 <= tiles <= MAX_TILES):
        return tiles
    raise RequestError(f"tiles is {tiles}; accepted is an integer from 1 to {MAX_TILES} or {AUTO}.")


def close_all(scheduler: Scheduler, decoders: DecoderPool) -> None:
    """Close the scheduler and the decoder processes of a tagger."""
    scheduler.close()
    decoders.close()
