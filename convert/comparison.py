"""A checkpoint in PyTorch beside the model folder made from it: the same pictures through both.

Both sides' answers are read by the runtime's own parsers, so that what differs is what the models say.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from convert.agreement import Answer, Pair, cosine
from convert.calibration_pictures import read_frame
from convert.checkpoint import Checkpoint, describe_weights, read_checkpoint
from convert.conversion_error import ConversionError
from convert.transformers_reference import Reference
from florence_tagger.florence.decoding import GenerationSettings, certainly
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.manifest import MANIFEST, ModelManifest, check_hashes, load_manifest, read_json
from florence_tagger.florence.model import Florence2
from florence_tagger.florence.postprocessing import parse_detections
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.schemas import Task


class Comparison:
    """A checkpoint folder and a model folder, both loaded.

    Raises:
        ConversionError: the folder was not made from the checkpoint: weights, size of pictures, tokenizer or generation
            settings are others.
        ModelError: a file of the folder is not as its manifest says.
    """

    def __init__(self, checkpoint: Path, ir: Path, options: RuntimeOptions) -> None:
        original = read_checkpoint(checkpoint)
        self._folder = load_manifest(ir)
        check_origin(original, self._folder)
        self._reference = Reference(original)
        self._detector = Florence2(self._folder, options, self._folder.generation)
        self._cosines: dict[Path, float] = {}
        self._tokenizer = Tokenizer(self._folder.read_text("tokenizer.json"))

    def modes(self, max_new_tokens: int | None) -> dict[str, GenerationSettings]:
        """Greedy and the checkpoint's own settings, by a name for each."""
        own = self._detector.generation
        own = replace(own, max_new_tokens=min(max_new_tokens or own.max_new_tokens, own.max_new_tokens))
        greedy = replace(own, num_beams=1)
        return {"greedy": greedy} | ({f"{own.num_beams} beams": own} if own.num_beams > 1 else {})

    def pair(self, picture: Path, settings: GenerationSettings) -> Pair:
        """Both sides' answers for a picture; DocumentError where it can't be read."""
        frame = read_frame(picture, self._folder.image_size)
        started = time.perf_counter()
        ours = self._detector.generate(frame.pixels, settings)
        between = time.perf_counter()
        theirs = certainly(self._reference.generate(picture, settings))
        ended = time.perf_counter()
        if picture not in self._cosines:  # which no mode of decoding changes
            features = self._detector.image_features(frame.pixels), self._reference.image_features(picture)
            self._cosines[picture] = cosine(*features)
        read = partial(
            parse_detections,
            tokenizer=self._tokenizer,
            task=Task.OBJECT_DETECTION,
            width=frame.width,
            height=frame.height,
        )
        return Pair(
            picture.name,
            Answer(ours.token_ids, read(ours), between - started),
            Answer(theirs.token_ids, read(theirs), ended - between),
            self._cosines[picture],
        )


def check_origin(checkpoint: Checkpoint, folder: ModelManifest) -> None:
    """ConversionError where a model folder was made from something else than a checkpoint."""
    check_hashes(folder)
    source = read_json(folder.path / MANIFEST).get("source")
    made_from = source.get("weights_sha256") if isinstance(source, dict) else None
    differing = {
        "weights": made_from != describe_weights(checkpoint)["weights_sha256"],
        "size of pictures": folder.image_size != checkpoint.preprocessing.image_size,
        "tokenizer": folder.read_text("tokenizer.json") != checkpoint.tokenizer_json,
        "generation settings": folder.generation != checkpoint.generation,
    }
    if any(differing.values()):
        named = ", ".join(name for name, differs in differing.items() if differs)
        raise ConversionError(f"{folder.path} was made from another checkpoint than {checkpoint.path}: other {named}.")


def is_lossless(manifest: dict[str, Any]) -> bool:
    """Whether a model folder stores the weights of its checkpoint unrounded, so that token ids must be equal."""
    precision, stored = manifest.get("precision"), manifest.get("source", {}).get("dtypes")
    return precision == "fp32" or (precision == "fp16" and stored == ["float16"])
