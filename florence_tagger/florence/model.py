"""Florence-2 as one function: a frame and a prompt in, the detections that are found out."""

import logging
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from florence_tagger.config import Settings
from florence_tagger.errors import DocumentError, ModelError, Reason
from florence_tagger.florence.batch import Batch
from florence_tagger.florence.decoding import Decoded, FloatArray, GenerationSettings
from florence_tagger.florence.devices import CORE, DRIVER_ERROR, RuntimeOptions, choose_device, reason_of
from florence_tagger.florence.graphs import CrossAttention, Graphs
from florence_tagger.florence.manifest import ModelManifest
from florence_tagger.florence.postprocessing import parse_detections
from florence_tagger.florence.self_test import DeviceTest
from florence_tagger.florence.tasks import generation_settings_for, prompt_text
from florence_tagger.florence.tokenizer import Kind, Tokenizer
from florence_tagger.schemas import OBJECT_DETECTION, Frame, FrameResult, Prompt, Task, UInt8Array

logger = logging.getLogger(__name__)

WARM_UP_TOKENS = 8
PROMPTS_KEPT = 64


@dataclass(frozen=True)
class PrefilledFrame:
    """A frame as the decoder attends to it, and what it takes to read the answer.

    Attributes:
        width, height: of the picture as displayed, pixels.
    """

    cross_attention: CrossAttention
    task: Task
    width: int
    height: int


class Florence2:
    """A model folder, loaded: `encode` is for one thread, `start` and `step` are for one, which may be another.

    Attributes:
        device_test: what `load_model` found of the decoder's device.

    Raises:
        ModelError: the folder or the device can't be used.
    """

    def __init__(
        self, folder: ModelManifest, options: RuntimeOptions, generation: GenerationSettings, core: Any = CORE
    ) -> None:
        self.folder = folder
        self.capacity = options.pictures
        most = min(generation.max_new_tokens, folder.max_positions)
        self.generation = replace(generation, max_new_tokens=most, min_new_tokens=min(generation.min_new_tokens, most))
        self._tokenizer = Tokenizer(folder.read_text("tokenizer.json"))
        self.prompt_ids = lru_cache(PROMPTS_KEPT)(self._encode_prompt)
        self._runtime = Graphs(folder, options, core)
        self._answers: Batch[Hashable, CrossAttention] = Batch(self._runtime.decoder)
        self._encoded: dict[Hashable, PrefilledFrame] = {}
        self.device_test: DeviceTest | None = None

    @property
    def devices(self) -> dict[str, str]:
        """The device of each graph by its name."""
        return self._runtime.devices

    @property
    def precisions(self) -> dict[str, str]:
        """The precision in which each graph computes, by its name."""
        return self._runtime.precisions

    @property
    def exclusive(self) -> bool:
        """Whether encoding and decoding only slow each other down when they run at the same time, as on a CPU."""
        return self.devices["decoder"] == "CPU" and "CPU" in (self.devices["vision"], self.devices["encoder"])

    def encode(self, frame: Frame, prompt: Prompt = OBJECT_DETECTION) -> PrefilledFrame:
        """Looks at a frame for what a prompt asks.

        Raises:
            DocumentError: the prompt's text can't be asked.
        """
        cross_attention = self._runtime.encode(frame.pixels, self.prompt_ids(prompt))
        return PrefilledFrame(cross_attention, prompt.task, frame.width, frame.height)

    def start(self, key: Hashable, encoded: PrefilledFrame) -> None:
        """Begins the answer for a frame, decoded with the detector's own settings; there must be room for it."""
        self._answers.start(key, encoded.cross_attention, generation_settings_for(encoded.task, self.generation))
        self._encoded[key] = replace(encoded, cross_attention={})  # the decoder has its own copy

    def step(self) -> dict[Hashable, FrameResult | Exception]:
        """Takes the answers under way a token on; what was found in the frames whose answers are finished, by key."""
        return {key: self._found(key, decoded) for key, decoded in self._answers.step().items()}

    def detect(self, frame: Frame, prompt: Prompt = OBJECT_DETECTION) -> FrameResult:
        """What a prompt finds in a frame by itself; nothing else may be under way."""
        encoded = self.encode(frame, prompt)
        return self.read(
            self.decode(encoded.cross_attention, generation_settings_for(prompt.task, self.generation)), encoded
        )

    def image_features(self, pixels: UInt8Array) -> FloatArray:
        """The features (1, tokens, d_model) that the text model is given for uint8 pixels (H, W, 3)."""
        return self._runtime.image_features(pixels)

    def generate(self, pixels: UInt8Array, settings: GenerationSettings) -> Decoded:
        """The answer to object detection on uint8 pixels (H, W, 3) of its input size; nothing else may be under way."""
        return self.decode(self._runtime.encode(pixels, self.prompt_ids(OBJECT_DETECTION)), settings)

    def decode(self, cross_attention: CrossAttention, settings: GenerationSettings) -> Decoded:
        """What the model says of an encoded picture; nothing else may be under way."""
        self._answers.start(None, cross_attention, settings)
        while not (said := self._answers.step()):
            pass
        if isinstance(decoded := said[None], Exception):
            raise decoded
        return decoded

    def test_device(self) -> DeviceTest | None:
        """Compare the decoder with the CPU's; None where it is there. Nothing may be under way."""
        return self._runtime.test_device(self.prompt_ids(OBJECT_DETECTION))

    def _found(self, key: Hashable, decoded: Decoded | Exception) -> FrameResult | Exception:
        encoded = self._encoded.pop(key)
        if isinstance(decoded, Exception):
            return decoded
        try:
            return self.read(decoded, encoded)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the other answers of the step are not lost for it
            return exc

    def read(self, decoded: Decoded, encoded: PrefilledFrame) -> FrameResult:
        """What the answer for a frame says was found in it."""
        detections = parse_detections(decoded, self._tokenizer, encoded.task, encoded.width, encoded.height)
        return FrameResult(detections, decoded.truncated, len(decoded.token_ids))

    def _encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The token ids of a prompt; DocumentError where its text can't be asked."""
        token_ids = self._tokenizer.encode(prompt_text(prompt))
        if any(self._tokenizer.kind(token_id) not in (Kind.TEXT, Kind.SEPARATOR) for token_id in token_ids[1:-1]):
            raise DocumentError(
                "The text has a mark of the model's own language, such as <loc_0>; of those only <and> is accepted.",
                Reason.MODEL,
            )
        if len(token_ids) > self._runtime.most_prompt_tokens:
            most = self._runtime.most_prompt_tokens
            raise DocumentError(
                f"The text is too long: {len(token_ids)} tokens with its question, {most} are accepted.", Reason.MODEL
            )
        return token_ids


def load_model(folder: ModelManifest, settings: Settings, core: Any = CORE) -> Florence2:
    """Load a model on the device that the settings name, warmed up, so that no request waits for it.

    A GPU is tested against the CPU before it is used. One that errs is not used where the device is `AUTO`.

    Raises:
        ModelError: the folder can't be used, or the device that is named can't be had or errs.
    """
    device = choose_device(settings.device, core.available_devices)[0]
    if device == "CPU":
        return load_on(device, folder, settings, core)
    try:
        florence2 = load_on(settings.device, folder, settings, core)
        test = florence2.device_test = florence2.test_device()
        if test is None or test.passed:
            return florence2
        del florence2  # before another one is loaded
    except (RuntimeError, ValueError) as exc:  # a plugin's word for everything
        logger.warning("%s fails: %s", device, reason_of(exc))
        test = DeviceTest(device, error=DRIVER_ERROR)
    except ModelError as exc:
        test = DeviceTest(device, error=str(exc))
    if settings.device != "AUTO":
        raise ModelError(f"{test} FLORENCE_DEVICE=CPU does without it; docs/gpu.md says what to report.")
    logger.error("%s The CPU is used instead.", test)
    florence2 = load_on("CPU", folder, settings, core)
    florence2.device_test = test
    return florence2


def load_on(device: str, folder: ModelManifest, settings: Settings, core: Any) -> Florence2:
    """Load a model on a device and warm it up."""
    options = RuntimeOptions(
        device, settings.precision, settings.inference_threads, settings.cache_dir, settings.batch_size
    )
    own = folder.generation
    generation = replace(
        own,
        num_beams=settings.num_beams or own.num_beams,
        no_repeat_ngram_size=own.no_repeat_ngram_size if settings.no_repeat_ngram is None else settings.no_repeat_ngram,
        max_new_tokens=settings.max_new_tokens or own.max_new_tokens,
    )
    florence2 = Florence2(folder, options, generation, core)
    height, width = folder.image_size
    few = replace(generation, max_new_tokens=min(generation.max_new_tokens, WARM_UP_TOKENS))
    florence2.generate(np.zeros((height, width, 3), np.uint8), few)
    return florence2
