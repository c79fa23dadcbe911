"""Florence-2 as one function: a frame in, the regions that its object-detection prompt finds out."""

from dataclasses import replace
from typing import Any

import numpy as np

from florence_tagger.config import Settings
from florence_tagger.florence.decoding import Decoded, FloatArray, GenerationSettings, decode
from florence_tagger.florence.folder import ModelFolder
from florence_tagger.florence.postprocessing import parse_regions
from florence_tagger.florence.runtime import Runtime, RuntimeOptions
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.schemas import Detection, Frame, UInt8Array

OBJECT_DETECTION = "Locate the objects with category name in the image."  # what Florence-2 was trained to read for <OD>


class Detector:
    """A model folder, loaded and warm; for one thread at a time.

    Raises:
        ModelError: the folder or the device can't be used.
    """

    def __init__(
        self, folder: ModelFolder, options: RuntimeOptions, generation: GenerationSettings, core: Any = None
    ) -> None:
        self.folder = folder
        self.generation = replace(generation, max_new_tokens=min(generation.max_new_tokens, folder.max_positions))
        self._tokenizer = Tokenizer(folder.read_text("tokenizer.json"))
        self._runtime = Runtime(folder, options, core)
        self._prompt_ids = self._tokenizer.encode(OBJECT_DETECTION)

    @property
    def devices(self) -> dict[str, str]:
        """The device of each graph by its name."""
        return self._runtime.devices

    def detect(self, frame: Frame) -> Detection:
        """The objects in a frame, decoded with the detector's own settings."""
        decoded = self.generate(frame.pixels, self.generation)
        regions = parse_regions(decoded.token_ids, self._tokenizer, frame.width, frame.height)
        return Detection(regions, decoded.truncated)

    def image_features(self, pixels: UInt8Array) -> FloatArray:
        """The features (1, tokens, d_model) that the text model is given for uint8 pixels (H, W, 3)."""
        return self._runtime.image_features(pixels)

    def generate(self, pixels: UInt8Array, settings: GenerationSettings) -> Decoded:
        """What the model says of uint8 pixels (H, W, 3) of its input size."""
        cross_attention = self._runtime.encode(pixels, self._prompt_ids)
        return decode(self._runtime.decoder_step(cross_attention), settings)


def load_detector(folder: ModelFolder, settings: Settings) -> Detector:
    """The model of a folder on the device that the settings name, after one frame, so that no request waits for it."""
    options = RuntimeOptions(settings.device, settings.precision, settings.inference_threads, settings.cache_dir)
    own = folder.generation
    generation = replace(
        own,
        num_beams=settings.num_beams or own.num_beams,
        no_repeat_ngram_size=own.no_repeat_ngram_size if settings.no_repeat_ngram is None else settings.no_repeat_ngram,
        max_new_tokens=settings.max_new_tokens or own.max_new_tokens,
    )
    detector = Detector(folder, options, generation)
    height, width = folder.image_size
    detector.detect(Frame(np.zeros((height, width, 3), np.uint8), width, height))
    return detector
