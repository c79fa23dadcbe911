"""Comparison of a checkpoint in PyTorch with the model folder made from it, on the same pictures.

The runtime's parsers read the answers of both, so that all differences come from the models.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from convert.agreement import Answer, AnswerPair, cosine
from convert.calibration_pictures import read_frame
from convert.checkpoint import Checkpoint, describe_weights, read_checkpoint
from convert.conversion_error import ConversionError
from convert.transformers_reference import Reference
from florence_tagger.florence.decoding import GenerationSettings, decoded_from_ids
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.manifest import MANIFEST, ModelManifest, check_hashes, load_manifest, read_json
from florence_tagger.florence.model import Florence2
from florence_tagger.florence.postprocessing import parse_detections
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.schemas import Task


class Comparison:
    """A checkpoint folder and a model folder, both loaded.

    Raises:
        ConversionError: the folder was not made from the checkpoint: its weights, picture size, tokenizer or generation
            settings differ.
        ModelError: a file of the folder does not match the manifest.
    """

    def __init__(self, checkpoint: Path, ir: Path, options: RuntimeOptions) -> None:
        source = read_checkpoint(checkpoint)
        self._manifest = load_manifest(ir)
        check_origin(source, self._manifest)
        self._reference = Reference(source)
        self._florence2 = Florence2(self._manifest, options, self._manifest.generation)
        self._cosines: dict[Path, float] = {}
        self._tokenizer = Tokenizer(self._manifest.read_text("tokenizer.json"))

    def modes(self, max_new_tokens: int | None) -> dict[str, GenerationSettings]:
        """Return the settings of each decoding mode, by its name: greedy, and the checkpoint's beams if it has any."""
        settings = self._florence2.generation
        limit = min(max_new_tokens or settings.max_new_tokens, settings.max_new_tokens)
        settings = replace(settings, max_new_tokens=limit)
        beams = {f"{settings.num_beams} beams": settings} if settings.num_beams > 1 else {}
        return {"greedy": replace(settings, num_beams=1)} | beams

    def pair(self, picture: Path, settings: GenerationSettings) -> AnswerPair:
        """Return the model's and the reference's answers for a picture; DocumentError if it can't be read."""
        frame = read_frame(picture, self._manifest.image_size)
        started = time.perf_counter()
        answer = self._florence2.generate(frame.pixels, settings)
        answered = time.perf_counter()
        reference = decoded_from_ids(self._reference.generate(picture, settings))
        ended = time.perf_counter()
        if picture not in self._cosines:  # image features do not depend on the decoding mode
            features = self._florence2.image_features(frame.pixels), self._reference.image_features(picture)
            self._cosines[picture] = cosine(*features)
        parse = partial(
            parse_detections,
            tokenizer=self._tokenizer,
            task=Task.OBJECT_DETECTION,
            width=frame.width,
            height=frame.height,
        )
        return AnswerPair(
            picture.name,
            Answer(answer.token_ids, parse(answer), answered - started),
            Answer(reference.token_ids, parse(reference), ended - answered),
            self._cosines[picture],
        )


def check_origin(checkpoint: Checkpoint, manifest: ModelManifest) -> None:
    """Raise ConversionError if a model folder was made from another checkpoint than this one."""
    check_hashes(manifest)
    source = read_json(manifest.path / MANIFEST).get("source")
    source_sha256 = source.get("weights_sha256") if isinstance(source, dict) else None
    differing = {
        "weights": source_sha256 != describe_weights(checkpoint)["weights_sha256"],
        "size of pictures": manifest.image_size != checkpoint.preprocessing.image_size,
        "tokenizer": manifest.read_text("tokenizer.json") != checkpoint.tokenizer_json,
        "generation settings": manifest.generation != checkpoint.generation,
    }
    if any(differing.values()):
        names = ", ".join(name for name, differs in differing.items() if differs)
        raise ConversionError(
            f"{manifest.path} was made from another checkpoint than {checkpoint.path}: other {names}."
        )


def is_lossless(manifest: dict[str, Any]) -> bool:
    """Return whether a model folder stores its checkpoint's weights without rounding: then token ids must be equal."""
    precision, dtypes = manifest.get("precision"), manifest.get("source", {}).get("dtypes")
    return precision == "fp32" or (precision == "fp16" and dtypes == ["float16"])
