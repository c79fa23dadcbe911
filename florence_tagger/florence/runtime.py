"""The three graphs on a device: pixels to image features to cross-attention to log-probabilities.

The only user of OpenVINO. A runtime belongs to one thread at a time: the decoder's cache is state of its infer request.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from florence_tagger.errors import ModelError
from florence_tagger.florence.decoding import DecoderStep, FloatArray, IntArray
from florence_tagger.florence.folder import ModelFolder
from florence_tagger.schemas import UInt8Array

logger = logging.getLogger(__name__)

PROMPT_LENGTHS_COMPILED = 4
SMALL_VISION_BYTES = 32_000_000  # of weights; the bundled model has 4 MB, Florence-2-base 184 MB at fp16


@dataclass(frozen=True)
class RuntimeOptions:
    """Where and how to run.

    Attributes:
        device: "AUTO" is the GPU if OpenVINO lists one, else the CPU, each graph falling back to the CPU by itself;
            a device's name is that device or an error.
        precision: OpenVINO's inference precision hint for all graphs, of which "f32" means an f32 cache as well; "" for
            the device's best, see `Runtime`.
        threads: of inference, 0 for OpenVINO's choice.
        cache_dir: for compiled models, None for no cache.
    """

    device: str = "AUTO"
    precision: str = ""
    threads: int = 0
    cache_dir: Path | None = None


def choose_device(wanted: str, available: Sequence[str]) -> tuple[str, ...]:
    """The devices to try in turn: `wanted` if it is among the `available` ones, for "AUTO" the GPU and the CPU.

    Raises:
        ModelError: the device is not there.
    """
    if wanted == "AUTO":
        return ("GPU", "CPU") if any(name.startswith("GPU") for name in available) else ("CPU",)
    # OpenVINO calls a lone device GPU and the first of several GPU.0, and takes either name for both.
    known = {*available, *(name.partition(".")[0] for name in available), *(f"{name}.0" for name in available)}
    if wanted not in known:
        raise ModelError(f"Device {wanted} is not there; OpenVINO finds {', '.join(available) or 'none'}.")
    return (wanted,)


class Compiler:
    """Reads and compiles graphs as the options say, and remembers which device each one got."""

    def __init__(self, options: RuntimeOptions, core: Any = None) -> None:
        self._core = core or ov.Core()
        self._devices_to_try = choose_device(options.device, self._core.available_devices)
        self._options = options
        self.devices: dict[str, str] = {}

    def read(self, path: Path) -> Any:
        """The graph in an IR file; ModelError where it can't be read."""
        try:
            return self._core.read_model(path)
        except RuntimeError as exc:
            raise ModelError(f"{path} can't be read: {reason_of(exc)}") from exc

    def compile(self, model: Any, name: str, cpu_precision: str = "") -> Any:
        """The graph `name`, compiled for the first device that takes it; ModelError where none does.

        Args:
            cpu_precision: the inference precision on the CPU where the options name none, "" for the CPU's best.
        """
        failures = []
        for device in self._devices_to_try:
            try:
                compiled = self._core.compile_model(model, device, self._properties(device, cpu_precision))
            except RuntimeError as exc:
                failures.append(f"{device}: {reason_of(exc)}")
                logger.warning("%s does not compile on %s: %s", name, device, reason_of(exc))
            else:
                self.devices[name] = device
                return compiled
        raise ModelError(f"The {name} compiles on no device. {' '.join(failures)}")

    def _properties(self, device: str, cpu_precision: str) -> dict[str, Any]:
        """What OpenVINO is told for a graph on a device."""
        options, on_cpu = self._options, device == "CPU"
        precision = options.precision or (cpu_precision if on_cpu else "")
        properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if precision:
            properties["INFERENCE_PRECISION_HINT"] = precision
        if precision == "f32":
            properties["KV_CACHE_PRECISION"] = "f32"  # which would be u8 otherwise
        if options.threads and on_cpu:
            properties["INFERENCE_NUM_THREADS"] = options.threads
        if options.cache_dir:
            properties["CACHE_DIR"] = str(options.cache_dir)
        return properties


def reason_of(exc: Exception) -> str:
    """The last line of an OpenVINO error: the ones before it are places in its source code."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else type(exc).__name__


class Runtime:
    """A model folder on its devices.

    On a CPU the default precision is f32 but for a large vision tower, which most of the work goes into and which bf16
    makes twice as fast. For the decoder, bound by memory, and for a small tower it gains next to nothing, and wherever
    it rounds it changes counts where two answers are nearly as likely.

    Raises:
        ModelError: a graph can't be read, or compiles on none of the devices asked for.
    """

    def __init__(self, folder: ModelFolder, options: RuntimeOptions, core: Any = None) -> None:
        self._compiler = Compiler(options, core)
        is_small = (folder.path / "vision.bin").stat().st_size < SMALL_VISION_BYTES
        vision = self._compiler.read(folder.path / "vision.xml")
        self._vision = self._compiler.compile(vision, "vision", "f32" if is_small else "").create_infer_request()
        self._encoder_graph = self._compiler.read(folder.path / "encoder.xml")
        self._encoder = lru_cache(PROMPT_LENGTHS_COMPILED)(self._compile_encoder)
        decoder = self._compiler.read(folder.path / "decoder.xml")
        self._embedding = detach_embedding(decoder)
        self._decoder = self._compiler.compile(decoder, "decoder", "f32").create_infer_request()
        self._embed = lru_cache(PROMPT_LENGTHS_COMPILED)(self._embed_prompt)

    @property
    def devices(self) -> dict[str, str]:
        """The device of each graph by its name."""
        return self._compiler.devices

    def encode(self, pixels: UInt8Array, prompt_ids: tuple[int, ...]) -> dict[str, Any]:
        """What the decoder attends to for a picture and a prompt.

        Args:
            pixels: uint8 (H, W, 3) of the model's input size.
            prompt_ids: the prompt between its sequence marks.

        Returns:
            OpenVINO tensors by the decoder's input names; they hold until the next call.
        """
        self._see(pixels)
        encoder = self._encoder(len(prompt_ids))
        encoder.set_tensor("image_features", self._vision.get_output_tensor(0))
        encoder.infer({"prompt_embeddings": self._embed(prompt_ids)}, share_inputs=True)
        return {output.any_name: encoder.get_tensor(output) for output in encoder.model_outputs}

    def image_features(self, pixels: UInt8Array) -> FloatArray:
        """What the vision tower makes of pixels (H, W, 3): features (1, tokens, d_model)."""
        self._see(pixels)
        features: FloatArray = self._vision.get_output_tensor(0).data.copy()
        return features

    def decoder_step(self, cross_attention: dict[str, Any]) -> DecoderStep:
        """The step function of a new answer on what `encode` gave; it ends the one before."""
        self._decoder.reset_state()
        for name, tensor in cross_attention.items():
            self._decoder.set_tensor(name, tensor)
        positions = count()

        def step(token_ids: IntArray, rows: IntArray) -> FloatArray:
            position_ids = np.full_like(token_ids, next(positions))
            self._decoder.infer(
                {"input_ids": token_ids, "position_ids": position_ids, "beam_idx": rows.astype(np.int32)}
            )
            log_probabilities: FloatArray = self._decoder.get_output_tensor(0).data
            return log_probabilities

        return step

    def _see(self, pixels: UInt8Array) -> None:
        self._vision.infer({0: pixels[np.newaxis]}, share_inputs=True)

    def _compile_encoder(self, prompt_tokens: int) -> Any:
        features, prompt = self._encoder_graph.inputs
        width = prompt.partial_shape[2].get_length()
        self._encoder_graph.reshape({features: features.partial_shape, prompt: [1, prompt_tokens, width]})
        return self._compiler.compile(self._encoder_graph, "encoder", "f32").create_infer_request()

    def _embed_prompt(self, prompt_ids: tuple[int, ...]) -> FloatArray:
        """Embeddings (1, P, d_model) of prompt ids."""
        embeddings = ov.Tensor(ov.Type.f32, ov.Shape([0]))
        if not self._embedding.evaluate([embeddings], [ov.Tensor(np.array(prompt_ids, np.int64))]):
            raise ModelError("The decoder's embedding table can't be read.")
        rows: FloatArray = embeddings.data
        return rows[np.newaxis]


def detach_embedding(decoder: Any) -> Any:
    """Takes the output `token_embeddings` off the decoder, as a graph of its own: token ids to embeddings.

    The table is stored once, in the decoder, and prompts are short and few, so the rows are looked up by OpenVINO's own
    interpreter instead of compiling a second copy.
    """
    output = decoder.output("token_embeddings")
    graph = ov.Model([output.get_node().input_value(0)], [decoder.input("input_ids").get_node()], "embedding").clone()
    decoder.remove_result(output.get_node())
    return graph
