"""The three graphs of a Florence-2 model folder, exported with optimum-intel.

optimum-intel does not support Florence-2. It does the general work: tracing, naming, the cache as state with reordering
by beam, the record of versions. This module adds the specific part: the graphs, and their inputs and outputs.

Two features of optimum-intel are not used, because they would cost speed or accuracy. Its model patchers change
transformers' forward methods during tracing; `vision` and `text` have separate forward methods on the same weights, in
the order of operations that the CPU runs twice as fast. Its saving compresses to float16, which also rounds values that
the graph computes from constants; here the weights have their final type before tracing.
"""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from optimum.exporters.openvino.base import OpenVINOConfig
from optimum.exporters.openvino.convert import export
from optimum.exporters.openvino.model_configs import register_in_tasks_manager
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedConfig
from torch import Tensor, nn

from convert.ir import number_names
from convert.settings import Preprocessing
from convert.text import DecoderGraph, EncoderGraph
from convert.vision import VisionGraph, num_image_tokens
from florence_tagger.florence.manifest import GRAPHS

TASK = "image-text-to-text"
Axes = dict[str, dict[int, str]]
ROWS = {0: "rows"}


class GraphConfig(OpenVINOConfig):  # type: ignore[misc]  # optimum ships no types
    """Configuration of a graph for optimum-intel: named inputs and outputs with their dynamic axes, example inputs."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    # GPUs divide activations by this factor when they compute in f16, whose range ends at 65,504. The bundled model's
    # activations reach 372 (tests/test_graphs.py). Real checkpoints have not been measured yet, hence the margin.
    runtime_options: ClassVar[dict[str, str]] = {"ACTIVATIONS_SCALE_FACTOR": "8.0"}

    @property
    def text_config(self) -> Any:
        """The configuration of the text model."""
        return self._config.text_config

    @abstractmethod
    def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, Any]:
        """Return example inputs for tracing, by name."""

    def layer_names(self, prefix: str) -> Iterator[str]:
        """Yield the names `<prefix>.<layer>.key` and `<prefix>.<layer>.value` of all decoder layers."""
        for layer in range(self.text_config.decoder_layers):
            yield from (f"{prefix}.{layer}.key", f"{prefix}.{layer}.value")


class VisionConfig(GraphConfig):
    """The vision graph, from pixels to image features, with static shapes."""

    def __init__(self, config: Any, image_size: tuple[int, int]) -> None:
        super().__init__(config)
        self.image_size = image_size

    inputs: ClassVar[Axes] = {"pixels": {}}
    outputs: ClassVar[Axes] = {"image_features": {}}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, Tensor]:
        """Return a black picture."""
        return {"pixels": torch.zeros(1, *self.image_size, 3, dtype=torch.uint8)}


class EncoderConfig(GraphConfig):
    """The encoder graph, from image features and prompt to the cross-attention cache.

    Its shapes are static except for the prompt's length, which the runtime fixes.
    """

    def __init__(self, config: Any, num_image_tokens: int) -> None:
        super().__init__(config)
        self.num_image_tokens = num_image_tokens

    inputs: ClassVar[Axes] = {"image_features": {}, "prompt_embeddings": {1: "prompt_tokens"}}

    @property
    def outputs(self) -> Axes:
        """Keys and values of the cross-attention layers."""
        return {name: {} for name in self.layer_names("cross_attention")}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, Tensor]:
        """Return zeros as the features of a picture and a prompt of 13 tokens."""
        d_model = self.text_config.d_model
        return {
            "image_features": torch.zeros(1, self.num_image_tokens, d_model),
            "prompt_embeddings": torch.zeros(1, 13, d_model),
        }


class DecoderConfig(GraphConfig):
    """The decoder graph, which computes one step.

    Its dynamic dimensions are the rows (beams of pictures) and the tokens of pictures and answers that they attend to.
    """

    @property
    def inputs(self) -> Axes:
        """Rows, masks, the cross-attention cache and the self-attention cache."""
        rows = {"input_ids": ROWS, "position_ids": ROWS}
        rows |= {"attention_mask": ROWS | {3: "present_tokens"}, "banned_ids": ROWS}
        mask = {"encoder_mask": {0: "pictures", 3: "encoder_tokens"}}
        cross = {
            name: {0: "pictures", 3 if name.endswith("key") else 2: "encoder_tokens"}
            for name in self.layer_names("cross_attention")
        }
        cache = {name: ROWS | {2: "cached_tokens"} for name in self.layer_names("self_key_values")}
        return rows | mask | cross | cache

    @property
    def outputs(self) -> Axes:
        """The best next tokens, the embeddings of the input tokens and the grown self-attention cache."""
        present = {name: ROWS | {2: "present_tokens"} for name in self.layer_names("present")}
        return {"log_probabilities": ROWS, "token_ids": ROWS, "token_embeddings": ROWS} | present

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, Any]:
        """Return zeros for two pictures of three beams, three cached tokens and five encoded ones."""
        heads = self.text_config.decoder_attention_heads
        head_dim, rows, pictures, cached, encoded = self.text_config.d_model // heads, 6, 2, 3, 5
        cross = (torch.zeros(pictures, heads, head_dim, encoded), torch.zeros(pictures, heads, encoded, head_dim))
        cache = (torch.zeros(rows, heads, cached, head_dim),) * 2
        return {
            "input_ids": torch.zeros(rows, dtype=torch.int64),
            "position_ids": torch.full((rows,), cached),
            "attention_mask": torch.zeros(rows, 1, 1, cached + 1),
            # One column for each token of an answer, and one for the end token.
            "banned_ids": torch.full((rows, self.text_config.max_position_embeddings + 1), -1),
            "encoder_mask": torch.zeros(pictures, 1, 1, encoded),
            "cross_attention": [cross] * self.text_config.decoder_layers,
            "self_key_values": [cache] * self.text_config.decoder_layers,
        }


@register_in_tasks_manager("florence2", TASK, library_name="transformers")
class Florence2Config(OpenVINOConfig):  # type: ignore[misc]
    """Florence-2 in optimum-intel's registry, as a model of several graphs, which optimum-intel calls behaviors.

    Args:
        preprocessors: one `Preprocessing`; the vision graph includes its normalization.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    SUPPORTED_BEHAVIORS = GRAPHS
    inputs: ClassVar[Axes] = {}

    @property
    def preprocessing(self) -> Preprocessing:
        """The settings of the image processor."""
        (preprocessing,) = self._preprocessors
        return cast(Preprocessing, preprocessing)

    def with_behavior(self, behavior: str) -> GraphConfig:
        """Return the configuration of a graph."""
        if behavior == "vision":
            return VisionConfig(self._config, self.preprocessing.image_size)
        num_tokens = num_image_tokens(self._config.vision_config, self.preprocessing.image_size)
        return EncoderConfig(self._config, num_tokens) if behavior == "encoder" else DecoderConfig(self._config)

    def get_model_for_behavior(self, model: Any, behavior: str) -> nn.Module:
        """Return the module of a graph, on the weights of a `Florence2ForConditionalGeneration`."""
        if behavior == "vision":
            settings = self.preprocessing
            return VisionGraph(model.model, settings.image_size, settings.image_mean, settings.image_std)
        return (EncoderGraph if behavior == "encoder" else DecoderGraph)(model.model.language_model)


def export_graphs(model: Any, output: Path, preprocessing: Preprocessing) -> Iterator[str]:
    """Write vision, encoder and decoder as `<name>.xml` and `.bin` to `output`.

    Each graph is saved without optimum's rounding to float16: the weights already have their final precision, and
    values that the graph computes from constants must not be rounded.

    Args:
        model: a `Florence2ForConditionalGeneration` whose weights have the type to be stored.
        output: the folder to write to.
        preprocessing: the settings of the image processor.

    Yields:
        The name of each graph before it is exported.
    """
    constructor = TasksManager.get_exporter_config_constructor(
        model=model, task=TASK, exporter="openvino", library_name="transformers"
    )
    config = constructor(model.config, preprocessors=[preprocessing])
    for name in config.SUPPORTED_BEHAVIORS:
        yield name
        graph_config, graph = config.with_behavior(name), config.get_model_for_behavior(model, name)
        graph.config = model.config  # optimum reads it there
        export(graph, graph_config, output / f"{name}.xml", stateful=name == "decoder", library_name="transformers")
        number_names(output / f"{name}.xml")
