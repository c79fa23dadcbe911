"""The three graphs of a Florence-2 IR folder, exported by optimum-intel's machinery.

optimum-intel knows no Florence-2. What it maintains stays its job: tracing, naming, the cache as state with reordering
by beam, the record of versions. What it lacks is here: which graphs there are, and their inputs and outputs.

Two things of it are not used, because they would cost speed or correctness. Its model patchers change transformers' own
forward methods while they are traced; `vision` and `text` are forwards of our own on the same weights, in the order of
operations that the CPU runs twice as fast. And its saving compresses to float16, which rounds what the graph computes
from constants, too; here the weights have their type before they are traced.
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
from convert.vision import VisionGraph, image_tokens
from florence_tagger.florence.manifest import GRAPHS

TASK = "image-text-to-text"
Axes = dict[str, dict[int, str]]
ROWS = {0: "rows"}


class GraphConfig(OpenVINOConfig):  # type: ignore[misc]  # optimum ships no types
    """What optimum-intel asks of a graph: named inputs and outputs with their dynamic axes, and an example."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    # What GPUs divide activations by where they compute in f16, whose range ends at 65,504. The bundled model's reach
    # 372 (tests/test_graphs.py); real checkpoints could not be measured where this was written, so they get room.
    runtime_options: ClassVar[dict[str, str]] = {"ACTIVATIONS_SCALE_FACTOR": "8.0"}

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
    """One step: dynamic in its rows (beams of pictures) and in how many tokens of picture and answer they attend to."""

    @property
    def inputs(self) -> Axes:
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
        present = {name: ROWS | {2: "present_tokens"} for name in self.layer_names("present")}
        return {"log_probabilities": ROWS, "token_ids": ROWS, "token_embeddings": ROWS} | present

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, Any]:
        heads = self.text.decoder_attention_heads
        head_dim, rows, pictures, cached, encoded = self.text.d_model // heads, 6, 2, 3, 5
        cross = (torch.zeros(pictures, heads, head_dim, encoded), torch.zeros(pictures, heads, encoded, head_dim))
        cache = (torch.zeros(rows, heads, cached, head_dim),) * 2
        return {
            "input_ids": torch.zeros(rows, dtype=torch.int64),
            "position_ids": torch.full((rows,), cached),
            "attention_mask": torch.zeros(rows, 1, 1, cached + 1),
            # room for all tokens of an answer, and for the end token
            "banned_ids": torch.full((rows, self.text.max_position_embeddings + 1), -1),
            "encoder_mask": torch.zeros(pictures, 1, 1, encoded),
            "cross_attention": [cross] * self.text.decoder_layers,
            "self_key_values": [cache] * self.text.decoder_layers,
        }


@register_in_tasks_manager("florence2", TASK, library_name="transformers")
class Florence2Config(OpenVINOConfig):  # type: ignore[misc]
    """Florence-2 as optimum-intel's registry knows models of several parts, here called behaviours.

    Args:
        preprocessors: one `Preprocessing`, which the vision graph does in part.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    SUPPORTED_BEHAVIORS = GRAPHS
    inputs: ClassVar[Axes] = {}

    @property
    def preprocessing(self) -> Preprocessing:
        (one,) = self._preprocessors
        return cast(Preprocessing, one)

    def with_behavior(self, behavior: str) -> GraphConfig:
        """The configuration of a part."""
        if behavior == "vision":
            return VisionConfig(self._config, self.preprocessing.image_size)
        tokens = image_tokens(self._config.vision_config, self.preprocessing.image_size)
        return EncoderConfig(self._config, tokens) if behavior == "encoder" else DecoderConfig(self._config)

    def get_model_for_behavior(self, model: Any, behavior: str) -> nn.Module:
        """The graph of a part, on the weights of a `Florence2ForConditionalGeneration`."""
        if behavior == "vision":
            wanted = self.preprocessing
            return VisionGraph(model.model, wanted.image_size, wanted.image_mean, wanted.image_std)
        return (EncoderGraph if behavior == "encoder" else DecoderGraph)(model.model.language_model)


def export_graphs(model: Any, output: Path, preprocessing: Preprocessing) -> Iterator[str]:
    """Writes vision, encoder and decoder as `<name>.xml` and `.bin` into `output`; yields each name before it is made.

    Each graph is saved as it is, without optimum's own rounding to float16: the weights already have the precision they
    shall have, and what the graph computes from constants must not be rounded.

    Args:
        model: a `Florence2ForConditionalGeneration` whose weights have the type the IR shall store.
    """
    constructor = TasksManager.get_exporter_config_constructor(
        model=model, task=TASK, exporter="openvino", library_name="transformers"
    )
    config = constructor(model.config, preprocessors=[preprocessing])
    for name in config.SUPPORTED_BEHAVIORS:
        yield name
        part, graph = config.with_behavior(name), config.get_model_for_behavior(model, name)
        graph.config = model.config  # where optimum looks for it
        export(graph, part, output / f"{name}.xml", stateful=name == "decoder", library_name="transformers")
        number_names(output / f"{name}.xml")
