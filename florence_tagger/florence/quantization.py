"""Whether GPUs can run a quantised vision graph: those that older versions calibrated fail there, or answer wrongly.

In: a vision graph as it was read. Out: the reason against it, with the command that converts the folder anew.
"""

from math import prod
from pathlib import Path
from typing import Any

from florence_tagger.errors import DeviceError

# The three faults of the plugin are `activations_scaled`, `ranges_by_column` and `quantized_batch` of
# `florence_tagger.florence.devices.WORKAROUNDS`.
ACTIVATIONS_SCALE_FACTOR = ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]
BLOCKED_BATCH = 16  # from which on the plugin quantises activations into a blocked layout
CONVERTED = {"Convert", "Reshape"}  # operations that leave each weight what it is


def require_gpu_ranges(vision: Any, path: Path, precision: str) -> None:
    """Raise DeviceError if GPUs can't run the vision graph, an `ov.Model`, of the model folder `path`.

    Args:
        precision: the folder's, "int8" or "int4", for the command that converts it anew.
    """
    if fault := gpu_fault(vision):
        raise DeviceError(
            f"The vision graph of {path} can't run on a GPU: {fault}. An older version calibrated it; convert it anew: "
            f"`python -m convert --model CHECKPOINT --output {path} --precision {precision} --calibration PICTURES`."
        )


def gpu_fault(vision: Any) -> str:
    """Return why GPUs can't run a vision graph, an `ov.Model`; an empty text if they can."""
    operations = vision.get_ops()
    if any(ranges_a_channel(one) > 1 for one in operations if one.get_type_name() == "GroupConvolution"):
        return "its depthwise weights have several quantisation ranges a channel"
    if is_calibrated(vision) and vision.has_rt_info(ACTIVATIONS_SCALE_FACTOR):
        return "it asks for activations to be scaled that are quantised"
    if any(quantized_batch(one) >= BLOCKED_BATCH for one in operations if one.get_type_name() == "MatMul"):
        return "it quantises activations in batches"
    return ""


def is_calibrated(vision: Any) -> bool:
    """Return whether a vision graph, an `ov.Model`, quantises its activations."""
    return any(one.get_type_name() == "FakeQuantize" for one in vision.get_ops())


def quantized_batch(product: Any) -> int:
    """Return the batch of a MatMul's quantised activations (batch, tokens, channels); 0 if they are not quantised."""
    activations = product.input_value(0)
    shape = activations.get_partial_shape()
    if activations.get_node().get_type_name() != "FakeQuantize" or len(shape) != 3 or shape[0].is_dynamic:
        return 0
    return int(shape[0].get_length())


def ranges_a_channel(convolution: Any) -> float:
    """Return how many quantisation ranges a GroupConvolution's weights have for each channel; 0 if they are floats."""
    groups, channels_a_group, *_ = convolution.input_value(1).get_shape()
    weights = convolution.input_value(1).get_node()
    while weights.get_type_name() in CONVERTED:
        weights = weights.input_value(0).get_node()
    if weights.get_type_name() not in ("FakeQuantize", "Multiply"):
        return 0
    ranges = prod(weights.input_value(1).get_shape())
    return float(ranges / (groups * channels_a_group))
