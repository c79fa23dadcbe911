"""The three graphs of a model folder on their devices: pixels to features to cross-attention to likely tokens."""

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
SMALL_VISION_BYTES = 32_000_000  # of weights; the bundled model has 4 MB, Florence-2-base 184 MB at fp16

# What the decoder attends to of one picture, by its inputs' names: see `EncoderGraph` in convert/text.py. Arrays for a
# decoder on the CPU, else tensors of its device.
CrossAttention = Mapping[str, Any]


class Graphs:
    """A model folder, compiled: `encode` is for one thread, `decoder` for one, which may be another.

    On a CPU the default precision is f32 but for a large vision tower, which most of the work goes into and which bf16
    makes twice as fast. For the decoder, bound by memory, and for a small tower it gains next to nothing, and wherever
    it rounds it changes counts where two answers are nearly as likely.

    Raises:
        ModelError: a graph can't be read, or compiles on none of the devices asked for.
    """

    def __init__(self, folder: ModelManifest, options: RuntimeOptions, core: Any = CORE) -> None:
        self._compiler = Compiler(options, core)
        self._folder, self._options, self._core = folder, options, core
        is_small = (folder.path / "vision.bin").stat().st_size < SMALL_VISION_BYTES
        # A graph that was read keeps its file in memory: none is kept beside what was compiled of it.
        self._vision = self._compiler.compile(self._vision_graph, "vision", "f32" if is_small else "")
        self._image_tokens = self._vision.model.output(0).shape[1]
        self.most_prompt_tokens = folder.max_positions - self._image_tokens
        self._encoder = lru_cache(PROMPT_LENGTHS_COMPILED)(self._compile_encoder)
        table = self._compiler.read(folder.path / "decoder.xml")
        self._embedding = self._compiler.compile_lookup(embedding_of(table)).create_infer_request()
        self._embed = lru_cache(PROMPT_LENGTHS_COMPILED)(self._embed_prompt)
        self.decoder = make_decoder(self._compiler, folder.path, options)

    @property
    def devices(self) -> dict[str, str]:
        """The device of each graph by its name."""
        return self._compiler.devices

    @property
    def precisions(self) -> dict[str, str]:
        """The precision in which each graph computes, by its name."""
        return self._compiler.precisions

    def encode(self, pixels: UInt8Array, prompt_ids: tuple[int, ...]) -> CrossAttention:
        """Return what the decoder attends to for uint8 pixels (H, W, 3) of the model's input size, and a prompt."""
        return self.encode_features(self._see(pixels), prompt_ids)

    def encode_features(self, features: Any, prompt_ids: tuple[int, ...]) -> CrossAttention:
        """Return the same for image features (1, tokens, d_model): an array, or a tensor that the vision graph made."""
        encoder = self._encoder(len(prompt_ids))
        features = self._hand_over(features, encoder.memory)
        inputs = {"image_features": features, "prompt_embeddings": self._embed(prompt_ids)}
        return self._as_decoder_takes(encoder.run(inputs), encoder.memory)

    def image_features(self, pixels: UInt8Array) -> FloatArray:
        """Return the vision tower's features (1, tokens, d_model) of pixels (H, W, 3)."""
        features: FloatArray = to_host(self._see(pixels), self._vision.memory)
        return features

    def test_device(self, prompt_ids: tuple[int, ...]) -> DeviceTest | None:
        """Encode pictures and take the decoder through steps that GPUs have got wrong, as the CPU does at f32.

        Nothing may be under way. Returns how far both are apart, None where all graphs are on the CPU.
        """
        tested = next((name for name, device in self.devices.items() if device != "CPU"), None)
        if tested is None:
            return None
        test = DeviceTest(self.devices[tested], self.precisions[tested])
        exact = Graphs(self._folder, replace(self._options, device="CPU", precision="f32"), self._core)
        pictures, memory = make_pictures(self._folder.image_size), self.decoder.memory
        try:
            encoded = [self.encode(pixels, prompt_ids) for pixels in pictures]
            on_host = encoded if memory is None else [picture_on_host(one, memory) for one in encoded]
            expected = (exact.encode(pixels, prompt_ids) for pixels in pictures)
            test = replace(test, cosine=min(map(encoded_cosine, on_host, expected)))
            if memory is None:
                return test
            # As if the prompts were of different lengths, each of which would have to be compiled.
            shorter = [shortened(one, tokens) for one, tokens in zip(on_host, (0, 3, 1), strict=True)]
            both = [(picture_on_device(one, memory), one) for one in shorter]
            return replace(test, difference=run_self_test(self.decoder, exact.decoder, both, self._options.pictures))
        except RuntimeError as exc:
            logger.warning("%s fails in its self-test: %s", test.device, reason_of(exc))
            return replace(test, error=DRIVER_ERROR)

    def _see(self, pixels: UInt8Array) -> Any:
        return self._vision.run({"pixels": pixels[np.newaxis]})["image_features"]

    def _hand_over(self, value: Any, to: DeviceMemory | None) -> Any:
        """Return what a graph put out as another one takes it: as it is, where both are on one device."""
        return to_host(value, self._compiler.memory) if to is None else to.upload(value)

    def _as_decoder_takes(self, attended: CrossAttention, memory: DeviceMemory | None) -> CrossAttention:
        """Return what an encoder put out, arrays or tensors of a device, where and as the decoder takes it."""
        if self.decoder.memory is memory:
            return attended
        if self.decoder.memory is not None:
            return picture_on_device(attended, self.decoder.memory)
        return attended if memory is None else picture_on_host(attended, memory)

    def _vision_graph(self, memory: DeviceMemory | None) -> Any:
        graph = self._compiler.read(self._folder.path / "vision.xml")
        if memory is None:
            return graph
        require_gpu_ranges(graph, self._folder.path, self._folder.precision)
        return retype_outputs(graph, memory.element_type)

    def _compile_encoder(self, prompt_tokens: int) -> Compiled:
        return self._compiler.compile(lambda memory: self._encoder_graph(prompt_tokens, memory), "encoder", "f32")

    def _encoder_graph(self, prompt_tokens: int, memory: DeviceMemory | None) -> Any:
        graph = self._compiler.read(self._folder.path / "encoder.xml")
        features, prompt = graph.inputs
        width = prompt.partial_shape[2].get_length()
        graph.reshape({features: features.partial_shape, prompt: [1, prompt_tokens, width]})
        if memory is None:
            return graph
        graph = retype_inputs(graph, "image_features", memory.element_type)
        return retype_outputs(keys_by_token(graph), memory.element_type)

    def _embed_prompt(self, prompt_ids: tuple[int, ...]) -> FloatArray:
        """Return the embeddings (1, P, d_model) of prompt ids."""
        self._embedding.infer([np.array(prompt_ids, np.int64)])
        rows: FloatArray = self._embedding.get_output_tensor(0).data.copy()
        return rows[np.newaxis]


def make_decoder(compiler: Compiler, path: Path, options: RuntimeOptions) -> StatefulDecoder | PackedDecoder:
    """Compile the decoder of a model folder, and what moves its cache where it is on a device with its own memory."""
    file = path / "decoder.xml"
    compiled = compiler.compile(lambda memory: decoder_graph(compiler.read(file), memory), "decoder", "f32")
    model, memory = compiled.model, compiled.memory
    if memory is None:
        return StatefulDecoder(compiled.request, options.pictures)

    def beside(graph: Any) -> Any:
        return compiler.compile_beside(graph, compiler.devices["decoder"])

    pad = beside(pad_graph(inputs_named(model, CROSS_ATTENTION)[0]))
    return PackedDecoder(DecoderGraphs(compiled.request, beside(repack_graph(model)), pad), memory, options.pictures)


def shortened(values: CrossAttention, tokens: int) -> dict[str, Any]:
    """Return what a decoder attends to, arrays of the host, without the last so many tokens."""
    return {
        name: np.take(one, range(one.shape[axis := token_axis(name)] - tokens), axis) for name, one in values.items()
    }


def decoder_graph(decoder: Any, memory: DeviceMemory | None) -> Any:
    """Return the graph of the decoder's step for a device with memory of its own, or for the CPU."""
    decoder = without_embedding(decoder)
    if memory is None:
        return decoder
    packed = keys_by_token(pack_cache(ban_exactly(decoder), memory.element_type))
    return retype_inputs(packed, (CROSS_ATTENTION, ENCODER_MASK), memory.element_type)


def embedding_of(decoder: Any) -> Any:
    """Return the graph of the decoder's output `token_embeddings`: token ids to embeddings.

    The table is stored once, in the decoder's file; what is compiled of this graph looks rows up in it.
    """
    rows = decoder.output("token_embeddings").get_node().input_value(0)
    return ov.Model([rows], [decoder.input("input_ids").get_node()], "embedding")


def without_embedding(decoder: Any) -> Any:
    """Return the decoder's graph without the output `token_embeddings`, which its steps do not need."""
    decoder.remove_result(decoder.output("token_embeddings").get_node())
    return decoder


def to_host(value: Any, memory: DeviceMemory | None) -> Any:
    """Return what a graph put out as an array of the host."""
    return value if memory is None else memory.download(value)
