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
from optimum.intel.openvino.configuration import OVConfig, OVQuantizationConfig, OVWeightQuantizationConfig

from convert.errors import ConversionError
from convert.ir import number_names
from convert.pictures import find_pictures, read_frame
from florence_tagger.errors import DocumentError
from florence_tagger.florence.devices import CORE
from florence_tagger.florence.folder import GRAPHS
from florence_tagger.schemas import UInt8Array

QUANTIZED = ("int8", "int4")
INT4_GROUP = 64  # weights that share a scale
LEAST_PICTURES = 10  # fewer do not show what activations there are
MOST_PICTURES = 300  # NNCF's own default


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
    """The vision graph in int8, weights and activations, as `pictures` show that it can be."""
    dataset = nncf.Dataset([{"pixels": pixels[np.newaxis]} for pixels in pictures])
    return nncf.quantize(graph, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pictures))


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
    """The pictures of a folder at the model's input size (height, width), at most `MOST_PICTURES` of them.

    Raises:
        ConversionError: a picture can't be read, or there are too few.
    """
    pictures = []
    for path in find_pictures(folder, MOST_PICTURES, LEAST_PICTURES):
        try:
            pictures.append(read_frame(path, image_size).pixels)
        except DocumentError as exc:
            raise ConversionError(f"{path}: {exc}") from exc
    return pictures
