"""Florence-2 as one object: a frame and a prompt in, detections out."""

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
MAX_CACHED_PROMPTS = 64


@dataclass(frozen=True)
class PrefilledFrame:
    """A frame as cross-attention keys and values for the decoder, with the facts that postprocessing needs.

    Attributes:
        width, height: size of the picture as displayed, pixels.
    """

    cross_attention: CrossAttention
    task: Task
    width: int
    height: int


class Florence2:
    """A loaded model; one thread may call `prefill` while another calls `add` and `step`.

    Attributes:
        device_test: result of the self-test that `load_model` ran on the decoder's device, if any.

    Raises:
        ModelError: the model folder or the device can't be used.
    """

    def __init__(
        self, manifest: ModelManifest, options: RuntimeOptions, generation: GenerationSettings, core: Any = CORE
    ) -> None:
        self.manifest = manifest
        self.capacity = options.max_pictures
        max_tokens = min(generation.max_new_tokens, manifest.max_positions)
        min_tokens = min(generation.min_new_tokens, max_tokens)
        self.generation = replace(generation, max_new_tokens=max_tokens, min_new_tokens=min_tokens)
        self._tokenizer = Tokenizer(manifest.read_text("tokenizer.json"))
        self.prompt_ids = lru_cache(MAX_CACHED_PROMPTS)(self._encode_prompt)
        self._graphs = Graphs(manifest, options, core)
        self._batch: Batch[Hashable, CrossAttention] = Batch(self._graphs.decoder)
        self._running: dict[Hashable, PrefilledFrame] = {}
        self.device_test: DeviceTest | None = None

    @property
    def devices(self) -> dict[str, str]:
        """Device of each graph, by the graph's name."""
        return self._graphs.devices

    @property
    def precisions(self) -> dict[str, str]:
        """Inference precision of each graph, by the graph's name."""
        return self._graphs.precisions

    @property
    def exclusive(self) -> bool:
        """True if prefill and decode only slow each other down when they run at the same time, as on a CPU."""
        return self.devices["decoder"] == "CPU" and "CPU" in (self.devices["vision"], self.devices["encoder"])

    def prefill(self, frame: Frame, prompt: Prompt = OBJECT_DETECTION) -> PrefilledFrame:
        """Encode a frame and a prompt for the decoder.

        Raises:
            DocumentError: the prompt's text is not accepted.
        """
        cross_attention = self._graphs.encode(frame.pixels, self.prompt_ids(prompt))
        return PrefilledFrame(cross_attention, prompt.task, frame.width, frame.height)

    def add(self, key: Hashable, prefilled: PrefilledFrame) -> None:
        """Add a frame to the running sequences with the model's generation settings; fewer than `capacity` must run."""
        self._batch.add(key, prefilled.cross_attention, generation_settings_for(prefilled.task, self.generation))
        self._running[key] = replace(prefilled, cross_attention={})  # the decoder has its own copy

    def step(self) -> dict[Hashable, FrameResult | Exception]:
        """Decode one token for every running sequence; return the outcomes of finished and failed frames by key."""
        return {key: self._finish(key, decoded) for key, decoded in self._batch.step().items()}

    def detect(self, frame: Frame, prompt: Prompt = OBJECT_DETECTION) -> FrameResult:
        """Return the result for a single frame; no sequence may be running."""
        prefilled = self.prefill(frame, prompt)
        settings = generation_settings_for(prompt.task, self.generation)
        return self.postprocess(self.decode(prefilled.cross_attention, settings), prefilled)

    def image_features(self, pixels: UInt8Array) -> FloatArray:
        """Return the vision tower's features (1, tokens, d_model) of uint8 pixels (H, W, 3)."""
        return self._graphs.image_features(pixels)

    def generate(self, pixels: UInt8Array, settings: GenerationSettings) -> Decoded:
        """Return the answer to object detection on uint8 pixels (H, W, 3) of the model's input size.

        No sequence may be running.
        """
        return self.decode(self._graphs.encode(pixels, self.prompt_ids(OBJECT_DETECTION)), settings)

    def decode(self, cross_attention: CrossAttention, settings: GenerationSettings) -> Decoded:
        """Return the decoded answer for an encoded picture; no other sequence may be running."""
        self._batch.add(None, cross_attention, settings)
        while not (finished := self._batch.step()):
            pass
        if isinstance(decoded := finished[None], Exception):
            raise decoded
        return decoded

    def test_device(self) -> DeviceTest | None:
        """Compare the graphs with the CPU's; return None if all are on the CPU. No sequence may be running."""
        return self._graphs.test_device(self.prompt_ids(OBJECT_DETECTION))

    def _finish(self, key: Hashable, decoded: Decoded | Exception) -> FrameResult | Exception:
        prefilled = self._running.pop(key)
        if isinstance(decoded, Exception):
            return decoded
        try:
            return self.postprocess(decoded, prefilled)
        except Exception as exc:  # noqa: BLE001 - one frame's failure must not lose the step's other results
            return exc

    def postprocess(self, decoded: Decoded, prefilled: PrefilledFrame) -> FrameResult:
        """Return the detections that the answer for a frame describes."""
        detections = parse_detections(decoded, self._tokenizer, prefilled.task, prefilled.width, prefilled.height)
        return FrameResult(detections, decoded.truncated, len(decoded.token_ids))

    def _encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt.

        Raises:
            DocumentError: the prompt's text is not accepted.
        """
        token_ids = self._tokenizer.encode(prompt_text(prompt))
        if any(self._tokenizer.kind(token_id) not in (Kind.TEXT, Kind.SEPARATOR) for token_id in token_ids[1:-1]):
            raise DocumentError(
                "The text has a mark of the model's own language, such as <loc_0>; of those only <and> is accepted.",
                Reason.MODEL,
            )
        max_tokens = self._graphs.max_prompt_tokens
        if len(token_ids) > max_tokens:
            raise DocumentError(
                f"The text is too long: {len(token_ids)} tokens with its question, {max_tokens} are accepted.",
                Reason.MODEL,
            )
        return token_ids


def load_model(manifest: ModelManifest, settings: Settings, core: Any = CORE) -> Florence2:
    """Load a model on the device that the settings name, and warm it up.

    A GPU is compared with the CPU before it is used. With device `AUTO` the CPU replaces a GPU that fails.

    Raises:
        ModelError: the model folder can't be used, or the named device is unavailable or fails.
    """
    device = choose_device(settings.device, core.available_devices)[0]
    if device == "CPU":
        return load_on(device, manifest, settings, core)
    try:
        florence2 = load_on(settings.device, manifest, settings, core)
        test = florence2.device_test = florence2.test_device()
        if test is None or test.passed:
            return florence2
        del florence2  # frees its memory before another one is loaded
    except (RuntimeError, ValueError) as exc:  # the only types that plugins raise
        logger.warning("%s fails: %s", device, reason_of(exc))
        test = DeviceTest(device, error=DRIVER_ERROR)
    except ModelError as exc:
        test = DeviceTest(device, error=str(exc))
    if settings.device != "AUTO":
        raise ModelError(f"{test} FLORENCE_DEVICE=CPU does without it; docs/gpu.md says what to report.")
    logger.error("%s The CPU is used instead.", test)
    florence2 = load_on("CPU", manifest, settings, core)
    florence2.device_test = test
    return florence2


def load_on(device: str, manifest: ModelManifest, settings: Settings, core: Any) -> Florence2:
    """Load a model on a device and warm it up."""
    options = RuntimeOptions(
        device, settings.precision, settings.inference_threads, settings.cache_dir, settings.batch_size
    )
    defaults = manifest.generation
    no_repeat_ngram = settings.no_repeat_ngram
    generation = replace(
        defaults,
        num_beams=settings.num_beams or defaults.num_beams,
        no_repeat_ngram_size=defaults.no_repeat_ngram_size if no_repeat_ngram is None else no_repeat_ngram,
        max_new_tokens=settings.max_new_tokens or defaults.max_new_tokens,
    )
    florence2 = Florence2(manifest, options, generation, core)
    height, width = manifest.image_size
    warm_up = replace(generation, max_new_tokens=min(generation.max_new_tokens, WARM_UP_TOKENS))
    florence2.generate(np.zeros((height, width, 3), np.uint8), warm_up)
    return florence2
