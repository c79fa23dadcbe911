"""Exported graphs to int8, weights alone or, where there are pictures to look at, the vision tower's activations, too.

NNCF does the work. The text graphs keep f32 activations whatever is given: they are bound by the weights they read, and
what they say is decided by small differences.
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
INT4_GROUP = 64  # weights that share a scale
MIN_PICTURES = 10  # fewer do not show what activations there are
MAX_PICTURES = 300  # NNCF's own default
F16_MAX = float(np.finfo(np.float16).max)


def quantize(folder: Path, precision: str, pictures: Sequence[UInt8Array]) -> Iterator[str]:
    """Rewrites the graphs of a folder with int8 weights, those of the text with int4 if `precision` says so.

    Yields each graph's name before it is rewritten. Where uint8 `pictures` (H, W, 3) are given, the vision tower's
    activations are quantised, too.
    """
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own set_log_level would silence everybody's handlers
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
    """A text graph with int4 weights; the embedding, which is the output layer, gets int8."""
    fallback = AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    return nncf.compress_weights(
        graph,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=INT4_GROUP,
        advanced_parameters=fallback,  # for widths that are no multiple of the group
    )


def quantize_activations(graph: Any, pictures: Sequence[UInt8Array]) -> Any:
    """Return the vision graph in int8, weights and activations, as `pictures` show that it can be.

    Of the depthwise convolutions only the weights become int8, with one range for each channel.

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
    leave_activations_unscaled(quantized)
    join_batches(quantized)
    check_ranges(quantized)
    return quantized


def float_operations(graph: Any) -> nncf.IgnoredScope:
    """Return which operations of a vision graph keep float activations.

    Depthwise convolutions: NNCF would give each token and each kernel column a range, because it looks for channels in
    (1, tokens, channels) and (channels, 1, 3, 3), ahead of the reshapes. No plugin computes with such ranges in int8,
    and with the columns' GPUs answer wrongly. Channel attention: its queries, scaled by 1/sqrt(tokens), have ranges
    near the narrowest that f16 can quantise in, and the CPU is faster without.
    """
    products = [one.get_friendly_name() for one in graph.get_ops() if is_product_of_activations(one)]
    return nncf.IgnoredScope(names=products, types=["GroupConvolution"])


def is_product_of_activations(operation: Any) -> bool:
    """Return whether an operation multiplies two matrices of which none is a constant."""
    if operation.get_type_name() != "MatMul":
        return False
    factors = [value.get_node() for value in operation.input_values()]
    factors = [one.input_value(0).get_node() if one.get_type_name() == "Convert" else one for one in factors]
    return all(one.get_type_name() != "Constant" for one in factors)


def leave_activations_unscaled(graph: Any) -> None:
    """Remove the option that has GPUs scale activations, with which they do not compile a graph of int8 activations.

    They go without: published checkpoints are fp16, and PyTorch runs them in it unscaled.
    """
    if graph.has_rt_info(ACTIVATIONS_SCALE_FACTOR):
        section, _ = ACTIVATIONS_SCALE_FACTOR
        del graph.rt_info[section]  # the one option in it


def join_batches(graph: Any) -> None:
    """Let quantised linear layers take the tokens of a batch, as windows are, as one sequence.

    GPUs compute quantised activations of a batch wrongly (`quantized_batch` in florence_tagger/florence/devices.py). It
    is done here and not where the graph is made: with such reshapes around layers of floats, the GPU plugin of
    2026.4.1 gets image features wrong (cosine 0.9996 at f32).
    """
    joined: dict[str, Any] = {}  # quantised activations, by the name of the batch that they were
    for product in [one for one in graph.get_ordered_ops() if one.get_type_name() == "MatMul"]:
        if quantized_batch(product) > 1:
            quantized = product.input_value(0).get_node()
            name = quantized.get_friendly_name()
            joined[name] = joined.get(name) or join_tokens(quantized)
            replace_by_joined(product, joined[name])
    graph.validate_nodes_and_infer_types()


def join_tokens(quantized: Any) -> Any:
    """Return a FakeQuantize of (batch, tokens, channels) as one of (1, batch * tokens, channels)."""
    batch, tokens, channels = quantized.get_output_shape(0)
    values = reshape(quantized.input_value(0), [1, batch * tokens, channels])
    ranges = (quantized.input_value(index) for index in range(1, 5))
    return ops.fake_quantize(values, *ranges, quantized.get_attributes()["levels"])


def replace_by_joined(product: Any, activations: Any) -> None:
    """Put a linear layer over joined activations in the place of a MatMul over a batch, and of its bias if any."""
    transposed = product.get_attributes()
    layer = ops.matmul(activations, product.input_value(1), transposed["transpose_a"], transposed["transpose_b"])
    last, users = product, [one.get_node() for one in product.output(0).get_target_inputs()]
    if len(users) == 1 and users[0].get_type_name() == "Add":
        last = users[0]
        bias = next(one for one in last.input_values() if one.get_node() is not product)
        layer = ops.add(layer, bias)
    batches = reshape(layer, last.get_output_shape(0))
    for user in last.output(0).get_target_inputs():
        user.replace_source_output(batches.output(0))


def reshape(values: Any, shape: Sequence[int]) -> Any:
    """Return values in another shape."""
    return ops.reshape(values, ops.constant(np.array(list(shape), np.int64)), special_zero=False)


def check_ranges(graph: Any) -> None:
    """Raise ConversionError if a range of activations does not fit f16, which GPUs compute in.

    Its ends and the quantiser's factor, levels - 1 over its width, must be finite there.
    """
    for operation in graph.get_ops():
        if operation.get_type_name() != "FakeQuantize":
            continue
        low, high = (operation.input_value(index).get_node().data.astype(np.float64) for index in (1, 2))
        narrowest = (operation.get_attributes()["levels"] - 1) / F16_MAX
        fits = np.maximum(np.abs(low), np.abs(high)).max() <= F16_MAX and (high - low).min() >= narrowest
        if not fits:  # nor does what is not a number
            raise ConversionError(
                f"The pictures give the vision tower activations from {low.min():g} to {high.max():g}, a range that "
                "GPUs can't compute with in f16. Use more and other pictures, or convert without --calibration."
            )


def save_over(graph: Any, path: Path) -> None:
    """Saves a graph over the file that it was read from, which is mapped into memory as long as the graph lives."""
    beside = path.with_stem(f"{path.stem}-quantized")
    ov.save_model(graph, beside, compress_to_fp16=False)
    beside.with_suffix(".bin").rename(path.with_suffix(".bin"))
    beside.rename(path)
    number_names(path)


def record(precision: str, calibrated: bool) -> OVConfig:
    """optimum-intel's record of what was done, its `openvino_config.json`."""
    if precision not in QUANTIZED:
        return OVConfig(dtype=precision)
    if precision == "int4":
        return OVConfig(quantization_config=OVWeightQuantizationConfig(bits=4, sym=False, group_size=INT4_GROUP))
    weights = OVWeightQuantizationConfig(bits=8, sym=False)
    return OVConfig(quantization_config=OVQuantizationConfig(bits=8) if calibrated else weights)


def read_pictures(folder: Path, image_size: tuple[int, int]) -> list[UInt8Array]:
    """The pictures of a folder at the model's input size (height, width), at most `MAX_PICTURES` of them.

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
