"""Florence-2 as one function: a frame in, the regions that its object-detection prompt finds out."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from florence_tagger.config import Settings
from florence_tagger.florence.decoding import Decoded, FloatArray, GenerationSettings
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.folder import ModelFolder
from florence_tagger.florence.generation import Generation
from florence_tagger.florence.postprocessing import parse_regions
from florence_tagger.florence.runtime import CrossAttention, Runtime
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.schemas import Detection, Frame, UInt8Array

OBJECT_DETECTION = "Locate the objects with category name in the image."  # what Florence-2 was trained to read for <OD>
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Encoded:
    """A frame as the decoder attends to it.

    Attributes:
        width, height: of the picture as displayed, pixels.
    """

    cross_attention: CrossAttention
    width: int
    height: int


class Detector:
    """A model folder, loaded: `encode` is for one thread, `start` and `step` are for one, which may be another.

    Raises:
        ModelError: the folder or the device can't be used.
    """

    def __init__(
        self, folder: ModelFolder, options: RuntimeOptions, generation: GenerationSettings, core: Any = None
    ) -> None:
        self.folder = folder
        self.capacity = options.pictures
        most = min(generation.max_new_tokens, folder.max_positions)
        self.generation = replace(generation, max_new_tokens=most, min_new_tokens=min(generation.min_new_tokens, most))
        self._tokenizer = Tokenizer(folder.read_text("tokenizer.json"))
        self.prompt_ids = self._tokenizer.encode(OBJECT_DETECTION)
        self._runtime = Runtime(folder, options, core)
        self._answers: Generation[Hashable, CrossAttention] = Generation(self._runtime.decoder)
        self._sizes: dict[Hashable, tuple[int, int]] = {}

    @property
    def devices(self) -> dict[str, str]:
        """The device of each graph by its name."""
        return self._runtime.devices

    @property
    def precisions(self) -> dict[str, str]:
        """The precision in which each graph computes, by its name."""
        return self._runtime.precisions

    @property
    def takes_turns(self) -> bool:
        """Whether encoding and decoding only slow each other down when they run at the same time, as on a CPU."""
        return self.devices["decoder"] == "CPU" and "CPU" in (self.devices["vision"], self.devices["encoder"])

    def encode(self, frame: Frame) -> Encoded:
        """Looks at a frame."""
        return Encoded(self._runtime.encode(frame.pixels, self.prompt_ids), frame.width, frame.height)

    def start(self, key: Hashable, encoded: Encoded) -> None:
        """Begins the answer for a frame, decoded with the detector's own settings; there must be room for it."""
        self._answers.start(key, encoded.cross_attention, self.generation)
        self._sizes[key] = (encoded.width, encoded.height)

    def step(self) -> dict[Hashable, Detection | Exception]:
        """Takes the answers under way a token on; what was found in the frames whose answers are finished, by key."""
        return {key: self._found(key, decoded) for key, decoded in self._answers.step().items()}

    def detect(self, frame: Frame) -> Detection:
        """The objects in a frame by itself; nothing else may be under way."""
        return self.read(self.generate(frame.pixels, self.generation), frame.width, frame.height)

    def image_features(self, pixels: UInt8Array) -> FloatArray:
        """The features (1, tokens, d_model) that the text model is given for uint8 pixels (H, W, 3)."""
        return self._runtime.image_features(pixels)

    def generate(self, pixels: UInt8Array, settings: GenerationSettings) -> Decoded:
        """What the model says of uint8 pixels (H, W, 3) of its input size; nothing else may be under way."""
        return self.decode(self._runtime.encode(pixels, self.prompt_ids), settings)

    def decode(self, cross_attention: CrossAttention, settings: GenerationSettings) -> Decoded:
        """What the model says of an encoded picture; nothing else may be under way."""
        self._answers.start(None, cross_attention, settings)
        while not (said := self._answers.step()):
            pass
        if isinstance(decoded := said[None], Exception):
            raise decoded
        return decoded

    def _found(self, key: Hashable, decoded: Decoded | Exception) -> Detection | Exception:
        width, height = self._sizes.pop(key)
        if isinstance(decoded, Exception):
            return decoded
        try:
            return self.read(decoded, width, height)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the other answers of the step are not lost for it
            return exc

    def read(self, decoded: Decoded, width: int, height: int) -> Detection:
        """What an answer says was found in a picture of `width` and `height` pixels."""
        return Detection(parse_regions(decoded, self._tokenizer, width, height), decoded.truncated)


def load_detector(folder: ModelFolder, settings: Settings, core: Any = None) -> Detector:
    """The model of a folder on the device that the settings name, warmed up, so that no request waits for it."""
    options = RuntimeOptions(
        settings.device, settings.precision, settings.inference_threads, settings.cache_dir, settings.batch_size
    )
    own = folder.generation
    generation = replace(
        own,
        num_beams=settings.num_beams or own.num_beams,
        no_repeat_ngram_size=own.no_repeat_ngram_size if settings.no_repeat_ngram is None else settings.no_repeat_ngram,
        max_new_tokens=settings.max_new_tokens or own.max_new_tokens,
    )
    detector = Detector(folder, options, generation, core)
    height, width = folder.image_size
    few = replace(generation, max_new_tokens=min(generation.max_new_tokens, WARM_UP_TOKENS))
    detector.generate(np.zeros((height, width, 3), np.uint8), few)
    return detector
