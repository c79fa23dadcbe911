"""Whether GPUs can run a quantised vision graph: those that older versions calibrated fail there, or answer wrongly.

In: a vision graph as it was read. Out: the reason against it, with the command that converts the folder anew.
"""

from math import prod
from pathlib import Path
from typing import Any

from florence_tagger.errors import DeviceError

# The GPU plugin of OpenVINO 2026.4.1 scales f16 activations by this option with passes that can't do it where
# FakeQuantize is: "Argument element types are inconsistent", "-1e+15 assigned value out of range for f16".
ACTIVATIONS_SCALE_FACTOR = ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]
CONVERTED = {"Convert", "Reshape"}  # operations that leave each weight what it is


def require_gpu_ranges(vision: Any, path: Path, precision: str, computed: str) -> None:
    """Raise DeviceError if GPUs can't run the vision graph, an `ov.Model`, of the model folder `path`.

    Args:
        precision: the folder's, "int8" or "int4", for the command that converts it anew.
        computed: the precision in which the GPU computes.
    """
    if computed == "f16" and is_calibrated(vision):
        # On the emulated GPU features are off (cosine 0.991) and change from one inference to the next; whether the
        # plugin of 2026.4.1 or the emulation errs is not settled.
        raise DeviceError(
            f"The vision graph of {path} is calibrated, and GPUs may compute it wrongly at f16: set "
            "FLORENCE_PRECISION=f32, or convert without --calibration."
        )
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
    return ""


def is_calibrated(vision: Any) -> bool:
    """Return whether a vision graph, an `ov.Model`, quantises its activations."""
    return any(one.get_type_name() == "FakeQuantize" for one in vision.get_ops())


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
