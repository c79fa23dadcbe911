"""Compiled vision, encoder and decoder graphs of a model: pixels -> features -> cross-attention -> top-k tokens."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from florence_tagger.florence.decoding import FloatArray
from florence_tagger.florence.device_memory import DeviceMemory
from florence_tagger.florence.devices import CORE, DRIVER_ERROR, Compiled, Compiler, RuntimeOptions, reason_of
from florence_tagger.florence.manifest import ModelManifest
from florence_tagger.florence.packed_decoder import (
    DecoderGraphs,
    PackedDecoder,
    picture_on_device,
    picture_on_host,
)
from florence_tagger.florence.packed_graph import (
    CROSS_ATTENTION,
    ban_exactly,
    inputs_named,
    keys_by_token,
    pack_cache,
    pad_graph,
    repack_graph,
    retype_inputs,
    retype_outputs,
)
from florence_tagger.florence.quantization import require_gpu_ranges
from florence_tagger.florence.rows import ENCODER_MASK, token_axis
from florence_tagger.florence.self_test import DeviceTest, encoded_cosine, make_pictures, run_self_test
from florence_tagger.florence.stateful_decoder import StatefulDecoder
from florence_tagger.schemas import UInt8Array

logger = logging.getLogger(__name__)

PROMPT_LENGTHS_COMPILED = 4
SMALL_VISION_BYTES = 32_000_000  # weights; the bundled model has 4 MB, Florence-2-base 184 MB at fp16

# Cross-attention keys and values of one picture by the decoder's input names; see `EncoderGraph` in convert/text.py.
# Arrays for a decoder on the CPU, otherwise tensors of its device.
CrossAttention = Mapping[str, Any]


class Graphs:
    """Compiled graphs of a model folder.

    One thread may use `encode` and one thread `decoder`; they may be different threads.

    On a CPU the default precision is f32, except for a large vision tower, which takes most of the time and runs twice
    as fast in bf16. For the decoder, which is bound by memory bandwidth, and for a small tower, bf16 gains almost
    nothing, and its rounding changes counts if two answers are almost equally probable.

    Args:
        manifest: manifest of the model folder.
        options: options of compilation and inference.
        core: OpenVINO's core.

    Raises:
        ModelError: a graph can't be read, or compiles on none of the selected devices.
    """

    def __init__(self, manifest: ModelManifest, options: RuntimeOptions, core: Any = CORE) -> None:
        self._compiler = Compiler(options, core)
        self._manifest, self._options, self._core = manifest, options, core
        is_small = (manifest.path / "vision.bin").stat().st_size < SMALL_VISION_BYTES
        # A graph that was read keeps its file in memory, so only compiled graphs are kept.
        self._vision = self._compiler.compile(self._vision_graph, "vision", "f32" if is_small else "")
        self._image_tokens = self._vision.model.output(0).shape[1]
        self.max_prompt_tokens = manifest.max_positions - self._image_tokens
        self._encoder = lru_cache(PROMPT_LENGTHS_COMPILED)(self._compile_encoder)
        table = self._compiler.read(manifest.path / "decoder.xml")
        self._embedding = self._compiler.compile_lookup(embedding_of(table)).create_infer_request()
        self._embed = lru_cache(PROMPT_LENGTHS_COMPILED)(self._embed_prompt)
        self.decoder = make_decoder(self._compiler, manifest.path, options)

    @property
    def devices(self) -> dict[str, str]:
        """Device of each graph by name."""
        return self._compiler.devices

    @property
    def precisions(self) -> dict[str, str]:
        """Inference precision of each graph by name."""
        return self._compiler.precisions

    def encode(self, pixels: UInt8Array, prompt_ids: tuple[int, ...]) -> CrossAttention:
        """Return the cross-attention of uint8 pixels (H, W, 3) of the model's input size and a prompt."""
        return self.encode_features(self._run_vision(pixels), prompt_ids)

    def encode_features(self, features: Any, prompt_ids: tuple[int, ...]) -> CrossAttention:
        """Return the cross-attention of image features (1, tokens, d_model), an array or a tensor, and a prompt."""
        encoder = self._encoder(len(prompt_ids))
        features = self._transfer(features, encoder.memory)
        inputs = {"image_features": features, "prompt_embeddings": self._embed(prompt_ids)}
        return self._to_decoder(encoder.run(inputs), encoder.memory)

    def image_features(self, pixels: UInt8Array) -> FloatArray:
        """Return the vision tower's features (1, tokens, d_model) of pixels (H, W, 3)."""
        features: FloatArray = to_host(self._run_vision(pixels), self._vision.memory)
        return features

    def test_device(self, prompt_ids: tuple[int, ...]) -> DeviceTest | None:
        """Compare encoding and decoding on the device with the CPU at f32, in steps that GPUs got wrong.

        No sequence may be running.

        Returns:
            The differences, or None if all graphs are on the CPU.
        """
        tested = next((name for name, device in self.devices.items() if device != "CPU"), None)
        if tested is None:
            return None
        test = DeviceTest(self.devices[tested], self.precisions[tested])
        exact = Graphs(self._manifest, replace(self._options, device="CPU", precision="f32"), self._core)
        pictures, memory = make_pictures(self._manifest.image_size), self.decoder.memory
        try:
            encoded = [self.encode(pixels, prompt_ids) for pixels in pictures]
            on_host = encoded if memory is None else [picture_on_host(picture, memory) for picture in encoded]
            expected = (exact.encode(pixels, prompt_ids) for pixels in pictures)
            test = replace(test, cosine=min(map(encoded_cosine, on_host, expected)))
            if memory is None:
                return test
            # Truncation simulates prompts of different lengths, which would each require another compiled encoder.
            shorter = [truncate(picture, tokens) for picture, tokens in zip(on_host, (0, 3, 1), strict=True)]
            pairs = [(picture_on_device(picture, memory), picture) for picture in shorter]
            return replace(
                test, difference=run_self_test(self.decoder, exact.decoder, pairs, self._options.max_pictures)
            )
        except RuntimeError as exc:
            logger.warning("%s fails in its self-test: %s", test.device, reason_of(exc))
            return replace(test, error=DRIVER_ERROR)

    def _run_vision(self, pixels: UInt8Array) -> Any:
        return self._vision.run({"pixels": pixels[np.newaxis]})["image_features"]

    def _transfer(self, value: Any, target: DeviceMemory | None) -> Any:
        """Return a graph's output in another graph's memory, unchanged if both are on one device."""
        return to_host(value, self._compiler.memory) if target is None else target.upload(value)

    def _to_decoder(self, cross_attention: CrossAttention, memory: DeviceMemory | None) -> CrossAttention:
        """Return an encoder's output, which is in `memory`, in the memory and layout of the decoder."""
        if self.decoder.memory is memory:
            return cross_attention
        if self.decoder.memory is not None:
            return picture_on_device(cross_attention, self.decoder.memory)
        return cross_attention if memory is None else picture_on_host(cross_attention, memory)

    def _vision_graph(self, memory: DeviceMemory | None) -> Any:
        graph = self._compiler.read(self._manifest.path / "vision.xml")
        if memory is None:
            return graph
        require_gpu_ranges(graph, self._manifest.path, self._manifest.precision)
        return retype_outputs(graph, memory.element_type)

    def _compile_encoder(self, prompt_tokens: int) -> Compiled:
        return self._compiler.compile(lambda memory: self._encoder_graph(prompt_tokens, memory), "encoder", "f32")

    def _encoder_graph(self, prompt_tokens: int, memory: DeviceMemory | None) -> Any:
        graph = self._compiler.read(self._manifest.path / "encoder.xml")
        features, prompt = graph.inputs
        width = prompt.partial_shape[2].get_length()
        graph.reshape({features: features.partial_shape, prompt: [1, prompt_tokens, width]})
        if memory is None:
            return graph
        graph = retype_inputs(graph, "image_features", memory.element_type)
        return retype_outputs(keys_by_token(graph), memory.element_type)

    def _embed_prompt(self, prompt_ids: tuple[int, ...]) -> FloatArray:
        """Return the embeddings (1, P, d_model) of a prompt's token ids."""
        self._embedding.infer([np.array(prompt_ids, np.int64)])
        rows: FloatArray = self._embedding.get_output_tensor(0).data.copy()
        return rows[np.newaxis]


def make_decoder(compiler: Compiler, path: Path, options: RuntimeOptions) -> StatefulDecoder | PackedDecoder:
    """Compile the decoder of a model folder, with the graphs that move its cache if its device has separate memory."""
    file = path / "decoder.xml"
    compiled = compiler.compile(lambda memory: decoder_graph(compiler.read(file), memory), "decoder", "f32")
    model, memory = compiled.model, compiled.memory
    if memory is None:
        return StatefulDecoder(compiled.request, options.max_pictures)

    def make_request(graph: Any) -> Any:
        return compiler.compile_request(graph, compiler.devices["decoder"])

    pad = make_request(pad_graph(inputs_named(model, CROSS_ATTENTION)[0]))
    graphs = DecoderGraphs(compiled.request, make_request(repack_graph(model)), pad)
    return PackedDecoder(graphs, memory, options.max_pictures)


def truncate(cross_attention: CrossAttention, num_tokens: int) -> dict[str, Any]:
    """Return cross-attention arrays of the host without their last `num_tokens` tokens."""
    return {
        name: np.take(value, range(value.shape[axis := token_axis(name)] - num_tokens), axis)
        for name, value in cross_attention.items()
    }


def decoder_graph(decoder: Any, memory: DeviceMemory | None) -> Any:
    """Return the graph of the decoder's step for a device with separate memory, or for the CPU (None)."""
    decoder = without_embedding(decoder)
    if memory is None:
        return decoder
    packed = keys_by_token(pack_cache(ban_exactly(decoder), memory.element_type))
    return retype_inputs(packed, (CROSS_ATTENTION, ENCODER_MASK), memory.element_type)


def embedding_of(decoder: Any) -> Any:
    """Return the graph of the decoder's output `token_embeddings`: token ids to embeddings.

    The table is stored once, in the decoder's file; the compiled graph looks rows up in it.
    """
    rows = decoder.output("token_embeddings").get_node().input_value(0)
    return ov.Model([rows], [decoder.input("input_ids").get_node()], "embedding")


def without_embedding(decoder: Any) -> Any:
    """Return the decoder's graph without the output `token_embeddings`, which decode steps do not need."""
    decoder.remove_result(decoder.output("token_embeddings").get_node())
    return decoder


def to_host(value: Any, memory: DeviceMemory | None) -> Any:
    """Return a graph's output as an array of the host."""
    return value if memory is None else memory.download(value)
