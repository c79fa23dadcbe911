"""The three graphs of a Florence-2 IR folder, exported by optimum-intel's machinery.

optimum-intel knows no Florence-2. What it maintains stays its job: tracing, naming, the cache as state with reordering
by beam, the record of versions. What it lacks is here: which graphs there are, and their inputs and outputs.
"""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from optimum.exporters.openvino.base import OpenVINOConfig
from optimum.exporters.openvino.convert import export
from optimum.utils import NormalizedConfig
from torch import Tensor, nn

from convert.errors import ConversionError
from convert.ir import number_names
from convert.text import DecoderGraph, EncoderGraph
from convert.vision import VisionGraph

Axes = dict[str, dict[int, str]]
ROWS = {0: "rows"}


class GraphConfig(OpenVINOConfig):  # type: ignore[misc]  # optimum ships no types
    """What optimum-intel asks of a graph: named inputs and outputs with their dynamic axes, and an example."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig

    @property
    def text(self) -> Any:
        return self._config.text_config

    @abstractmethod
    def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, Any]: ...

    def layer_names(self, prefix: str) -> Iterator[str]:
        for layer in range(self.text.decoder_layers):
            yield from (f"{prefix}.{layer}.key", f"{prefix}.{layer}.value")


class VisionConfig(GraphConfig):
    """Pixels to image features: static."""

    def __init__(self, config: Any, image_size: tuple[int, int]) -> None:
        super().__init__(config)
        self.image_size = image_size

    inputs: ClassVar[Axes] = {"pixels": {}}
    outputs: ClassVar[Axes] = {"image_features": {}}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, Tensor]:
        return {"pixels": torch.zeros(1, *self.image_size, 3, dtype=torch.uint8)}


class EncoderConfig(GraphConfig):
    """Image features and prompt to cross-attention: static but for the prompt's length, which the runtime fixes."""

    def __init__(self, config: Any, image_tokens: int) -> None:
        super().__init__(config)
        self.image_tokens = image_tokens

    inputs: ClassVar[Axes] = {"image_features": {}, "prompt_embeddings": {1: "prompt_tokens"}}

    @property
    def outputs(self) -> Axes:
        return {name: {} for name in self.layer_names("cross_attention")}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, Tensor]:
        width = self.text.d_model
        return {
            "image_features": torch.zeros(1, self.image_tokens, width),
            "prompt_embeddings": torch.zeros(1, 13, width),
        }


class DecoderConfig(GraphConfig):
    """One step: dynamic in the rows (beams), the positions attended to and the tokens cached."""

    @property
    def inputs(self) -> Axes:
        cross = {
            name: {3 if name.endswith("key") else 2: "encoder_tokens"} for name in self.layer_names("cross_attention")
        }
        cache = {name: ROWS | {2: "cached_tokens"} for name in self.layer_names("self_key_values")}
        return {"input_ids": ROWS, "position_ids": ROWS} | cross | cache

    @property
    def outputs(self) -> Axes:
        present = {name: ROWS | {2: "present_tokens"} for name in self.layer_names("present")}
        return {"log_probabilities": ROWS, "token_embeddings": ROWS} | present

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, Any]:
        heads = self.text.decoder_attention_heads
        head_dim, rows, cached, encoded = self.text.d_model // heads, 2, 3, 5
        cross = (torch.zeros(1, heads, head_dim, encoded), torch.zeros(1, heads, encoded, head_dim))
        cache = (torch.zeros(rows, heads, cached, head_dim),) * 2
        return {
            "input_ids": torch.zeros(rows, dtype=torch.int64),
            "position_ids": torch.full((rows,), cached),
            "cross_attention": [cross] * self.text.decoder_layers,
            "self_key_values": [cache] * self.text.decoder_layers,
        }


def export_graphs(
    model: Any, output: Path, image_size: tuple[int, int], image_mean: list[float], image_std: list[float]
) -> Iterator[str]:
    """Writes vision, encoder and decoder as `<name>.xml` and `.bin` into `output`; yields each name when it is done.

    Args:
        model: a `Florence2ForConditionalGeneration` whose weights have the type the IR shall store.
        image_size: (height, width), pixels; image_mean, image_std: of the checkpoint's preprocessing.
    """
    language_model = model.model.language_model
    vision = VisionGraph(model.model, image_size, image_mean, image_std)
    yield write(vision, VisionConfig(model.config, image_size), output / "vision.xml")
    with torch.no_grad():
        image_tokens = vision(torch.zeros(1, *image_size, 3, dtype=torch.uint8)).shape[1]
    if image_tokens >= (most := model.config.text_config.max_position_embeddings):
        raise ConversionError(f"A picture becomes {image_tokens} tokens; the encoder has only {most} positions.")
    yield write(EncoderGraph(language_model), EncoderConfig(model.config, image_tokens), output / "encoder.xml")
    yield write(DecoderGraph(language_model), DecoderConfig(model.config), output / "decoder.xml")


def write(graph: nn.Module, config: GraphConfig, path: Path) -> str:
    """Traces one graph and saves it as it is: the weights already have the precision they shall have."""
    graph.config = config._config  # where optimum looks for it
    export(graph, config, path, stateful=isinstance(config, DecoderConfig), library_name="transformers")
    number_names(path)
    return path.stem
