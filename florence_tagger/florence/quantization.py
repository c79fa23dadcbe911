"""Checks that GPUs can run a quantized vision graph; graphs calibrated by older versions fail or give wrong answers.

In: a vision graph as read from its file. Out: the fault, with the command that converts the folder again.
"""

from math import prod
from pathlib import Path
from typing import Any

from florence_tagger.errors import DeviceError

# The three faults of the GPU plugin are `activations_scaled`, `ranges_by_column` and `quantized_batch` of
# `florence_tagger.florence.devices.WORKAROUNDS`.
ACTIVATIONS_SCALE_FACTOR = ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]
BLOCKED_BATCH = 16  # minimum batch whose quantized activations the plugin writes in a blocked layout
CONVERTED = {"Convert", "Reshape"}  # operations that do not change the weights' values


def require_gpu_ranges(vision: Any, path: Path, precision: str) -> None:
    """Raise DeviceError if GPUs can't run a vision graph.

    Args:
        vision: graph, an `ov.Model`.
        path: model folder.
        precision: precision of the folder, "int8" or "int4", for the command that converts it again.

    Raises:
        DeviceError: the graph has one of the faults.
    """
    if fault := gpu_fault(vision):
        raise DeviceError(
            f"The vision graph of {path} can't run on a GPU: {fault}. An older version calibrated it; convert it anew: "
            f"`python -m convert --model CHECKPOINT --output {path} --precision {precision} --calibration PICTURES`."
        )


def gpu_fault(vision: Any) -> str:
    """Return the reason why GPUs can't run a vision graph, an `ov.Model`, or "" if they can."""
    operations = vision.get_ops()
    if any(ranges_per_channel(node) > 1 for node in operations if node.get_type_name() == "GroupConvolution"):
        return "its depthwise weights have several quantisation ranges a channel"
    if is_calibrated(vision) and vision.has_rt_info(ACTIVATIONS_SCALE_FACTOR):
        return "it asks for activations to be scaled that are quantised"
    if any(quantized_batch(node) >= BLOCKED_BATCH for node in operations if node.get_type_name() == "MatMul"):
        return "it quantises activations in batches"
    return ""


def is_calibrated(vision: Any) -> bool:
    """Return True if a vision graph, an `ov.Model`, quantizes its activations."""
    return any(node.get_type_name() == "FakeQuantize" for node in vision.get_ops())


def quantized_batch(product: Any) -> int:
    """Return the batch size of a MatMul's quantized activations (batch, tokens, channels), or 0 if not quantized."""
    activations = product.input_value(0)
    shape = activations.get_partial_shape()
    if activations.get_node().get_type_name() != "FakeQuantize" or len(shape) != 3 or shape[0].is_dynamic:
        return 0
    return int(shape[0].get_length())


def ranges_per_channel(convolution: Any) -> float:
    """Return the number of quantization ranges per channel of a GroupConvolution's weights, or 0 for float weights."""
    groups, channels_per_group, *_ = convolution.input_value(1).get_shape()
    weights = convolution.input_value(1).get_node()
    while weights.get_type_name() in CONVERTED:
        weights = weights.input_value(0).get_node()
    if weights.get_type_name() not in ("FakeQuantize", "Multiply"):
        return 0
    ranges = prod(weights.input_value(1).get_shape())
    return float(ranges / (groups * channels_per_group))
