"""Quantization of exported graphs with NNCF: weights, and with calibration pictures the vision tower's activations.

The text graphs always keep f32 activations: they are bound by reading the weights, and small differences of logits
decide their answers.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
from nncf.quantization.advanced_parameters import AdvancedCompressionParameters
from openvino import opset13 as ops
from optimum.intel.openvino.configuration import OVConfig, OVQuantizationConfig, OVWeightQuantizationConfig

from convert.calibration_pictures import find_pictures, read_frame
from convert.conversion_error import ConversionError
from convert.ir import number_names
from florence_tagger.errors import DocumentError
from florence_tagger.florence.devices import CORE
from florence_tagger.florence.manifest import GRAPHS
from florence_tagger.florence.quantization import ACTIVATIONS_SCALE_FACTOR, quantized_batch
from florence_tagger.schemas import UInt8Array

QUANTIZED = ("int8", "int4")
INT4_GROUP = 64  # number of weights that share a scale
MIN_PICTURES = 10  # fewer do not show the range of the activations
MAX_PICTURES = 300  # NNCF's own default
F16_MAX = float(np.finfo(np.float16).max)


def quantize(folder: Path, precision: str, pictures: Sequence[UInt8Array]) -> Iterator[str]:
    """Rewrite the graphs of a folder with quantized weights.

    Args:
        folder: the model folder.
        precision: "int8", or "int4" for int4 weights of the text graphs and int8 ones of the vision tower.
        pictures: uint8 (H, W, 3), with which the vision tower's activations are quantized to int8; may be empty.

    Yields:
        The name of each graph before it is rewritten.
    """
    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level would silence all handlers
    for name in GRAPHS:
        yield name
        path = folder / f"{name}.xml"
        graph = CORE.read_model(path)
        if name == "vision" and pictures:
            quantized = quantize_activations(graph, pictures)
        elif name != "vision" and precision == "int4":
            quantized = compress_to_int4(graph)
        else:
            quantized = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
        save_over(quantized, path)


def compress_to_int4(graph: Any) -> Any:
    """Return a text graph with int4 weights; those of the embedding, which is also the output layer, are int8."""
    fallback = AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    return nncf.compress_weights(
        graph,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=INT4_GROUP,
        advanced_parameters=fallback,  # for widths that are no multiple of the group
    )


def quantize_activations(graph: Any, pictures: Sequence[UInt8Array]) -> Any:
    """Return the vision graph with int8 weights, and int8 activations whose ranges are calibrated on `pictures`.

    For depthwise convolutions only the weights become int8, with one range for each channel.

    Raises:
        ConversionError: a range of activations does not fit f16.
    """
    dataset = nncf.Dataset([{"pixels": pixels[np.newaxis]} for pixels in pictures])
    quantized = nncf.quantize(
        graph,
        dataset,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(pictures),
        ignored_scope=float_operations(graph),
    )
    quantized = nncf.compress_weights(quantized, mode=nncf.CompressWeightsMode.INT8_ASYM)
    remove_activations_scale(quantized)
    join_batches(quantized)
    check_ranges(quantized)
    return quantized


def float_operations(graph: Any) -> nncf.IgnoredScope:
    """Return the operations of a vision graph that keep float activations.

    Depthwise convolutions: NNCF would give each token and each kernel column a range, because it takes the channels
    from (1, tokens, channels) and (channels, 1, 3, 3), ahead of the reshapes. No plugin computes with such ranges in
    int8, and GPUs give wrong results with a range for each column. Channel attention: its queries, scaled by
    1/sqrt(tokens), have ranges near the narrowest that can be quantized in f16, and the CPU is faster without
    quantization.
    """
    products = [operation.get_friendly_name() for operation in graph.get_ops() if is_product_of_activations(operation)]
    return nncf.IgnoredScope(names=products, types=["GroupConvolution"])


def is_product_of_activations(operation: Any) -> bool:
    """Return whether an operation multiplies two matrices neither of which is constant."""
    if operation.get_type_name() != "MatMul":
        return False
    factors = [value.get_node() for value in operation.input_values()]
    factors = [
        factor.input_value(0).get_node() if factor.get_type_name() == "Convert" else factor for factor in factors
    ]
    return all(factor.get_type_name() != "Constant" for factor in factors)


def remove_activations_scale(graph: Any) -> None:
    """Remove the option to scale activations: with it, GPUs do not compile a graph of int8 activations.

    Scaling is not necessary: published checkpoints are fp16, and PyTorch runs them in fp16 without it.
    """
    if graph.has_rt_info(ACTIVATIONS_SCALE_FACTOR):
        section, _ = ACTIVATIONS_SCALE_FACTOR
        del graph.rt_info[section]  # the section has no other option


def join_batches(graph: Any) -> None:
    """Rewrite quantized linear layers over a batch, such as windows, as layers over one sequence of all its tokens.

    GPUs compute wrong results from quantized activations of a batch (`quantized_batch` in
    florence_tagger/florence/devices.py). The rewrite is not part of the exported graph, because with such reshapes
    around float layers the GPU plugin of 2026.4.1 computes wrong image features (cosine 0.9996 at f32).
    """
    joined: dict[str, Any] = {}  # joined activations, by the name of the quantized batch
    for product in [operation for operation in graph.get_ordered_ops() if operation.get_type_name() == "MatMul"]:
        if quantized_batch(product) > 1:
            quantized = product.input_value(0).get_node()
            name = quantized.get_friendly_name()
            joined[name] = joined.get(name) or join_tokens(quantized)
            replace_with_joined(product, joined[name])
    graph.validate_nodes_and_infer_types()


def join_tokens(quantized: Any) -> Any:
    """Return a FakeQuantize of shape (1, batch * tokens, channels) for one of shape (batch, tokens, channels)."""
    batch, tokens, channels = quantized.get_output_shape(0)
    values = reshape(quantized.input_value(0), [1, batch * tokens, channels])
    ranges = (quantized.input_value(index) for index in range(1, 5))
    return ops.fake_quantize(values, *ranges, quantized.get_attributes()["levels"])


def replace_with_joined(product: Any, activations: Any) -> None:
    """Replace a MatMul over a batch, and its bias if any, with a linear layer over joined activations."""
    attributes = product.get_attributes()
    layer = ops.matmul(activations, product.input_value(1), attributes["transpose_a"], attributes["transpose_b"])
    replaced, consumers = product, [target.get_node() for target in product.output(0).get_target_inputs()]
    if len(consumers) == 1 and consumers[0].get_type_name() == "Add":
        replaced = consumers[0]
        bias = next(value for value in replaced.input_values() if value.get_node() is not product)
        layer = ops.add(layer, bias)
    batches = reshape(layer, replaced.get_output_shape(0))
    for target in replaced.output(0).get_target_inputs():
        target.replace_source_output(batches.output(0))


def reshape(values: Any, shape: Sequence[int]) -> Any:
    """Return the values in another shape."""
    return ops.reshape(values, ops.constant(np.array(list(shape), np.int64)), special_zero=False)


def check_ranges(graph: Any) -> None:
    """Raise ConversionError if a range of activations does not fit f16, in which GPUs compute.

    The ends of a range and the quantizer's factor, (levels - 1) / width, must be finite in f16.
    """
    for operation in graph.get_ops():
        if operation.get_type_name() != "FakeQuantize":
            continue
        low, high = (operation.input_value(index).get_node().data.astype(np.float64) for index in (1, 2))
        narrowest = (operation.get_attributes()["levels"] - 1) / F16_MAX
        fits = np.maximum(np.abs(low), np.abs(high)).max() <= F16_MAX and (high - low).min() >= narrowest
        if not fits:  # true for NaN, too
            raise ConversionError(
                f"The pictures give the vision tower activations from {low.min():g} to {high.max():g}, a range that "
                "GPUs can't compute with in f16. Use more and other pictures, or convert without --calibration."
            )


def save_over(graph: Any, path: Path) -> None:
    """Save a graph over the file that it was read from, which stays mapped into memory while the graph exists."""
    temporary = path.with_stem(f"{path.stem}-quantized")
    ov.save_model(graph, temporary, compress_to_fp16=False)
    temporary.with_suffix(".bin").rename(path.with_suffix(".bin"))
    temporary.rename(path)
    number_names(path)


def optimum_config(precision: str, calibrated: bool) -> OVConfig:
    """Return optimum-intel's record of the quantization, its `openvino_config.json`."""
    if precision not in QUANTIZED:
        return OVConfig(dtype=precision)
    if precision == "int4":
        return OVConfig(quantization_config=OVWeightQuantizationConfig(bits=4, sym=False, group_size=INT4_GROUP))
    weights = OVWeightQuantizationConfig(bits=8, sym=False)
    return OVConfig(quantization_config=OVQuantizationConfig(bits=8) if calibrated else weights)


def read_pictures(folder: Path, image_size: tuple[int, int]) -> list[UInt8Array]:
    """Return up to `MAX_PICTURES` pictures of a folder at the model's input size (height, width).

    Raises:
        ConversionError: a picture can't be read, or there are too few.
    """
    pictures = []
    for path in find_pictures(folder, MAX_PICTURES, MIN_PICTURES):
        try:
            pictures.append(read_frame(path, image_size).pixels)
        except DocumentError as exc:
            raise ConversionError(f"{path}: {exc}") from exc
    return pictures
