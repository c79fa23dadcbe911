"""Exported graphs to int8: weights alone, or the vision tower's activations, too, where there are pictures to look at.

NNCF does the work. The text graphs keep f32 activations whatever is given: they are bound by the weights they read, and
what they say is decided by small differences.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
from optimum.intel.openvino.configuration import OVConfig, OVQuantizationConfig, OVWeightQuantizationConfig

from convert.errors import ConversionError
from convert.ir import number_names
from florence_tagger.errors import DocumentError
from florence_tagger.media.images import open_picture
from florence_tagger.schemas import UInt8Array

PICTURES = ("*.png", "*.jpg", "*.jpeg")
MOST_PIXELS = 100_000_000
LEAST_PICTURES = 10  # fewer do not show what activations there are
MOST_PICTURES = 300  # NNCF's own default


def quantize_graph(path: Path, pictures: Sequence[UInt8Array] = ()) -> None:
    """Rewrites an IR file with int8 weights, and with int8 activations where uint8 `pictures` (H, W, 3) are given."""
    graph = ov.Core().read_model(path)
    if pictures:
        dataset = nncf.Dataset([{"pixels": pixels[np.newaxis]} for pixels in pictures])
        quantized = nncf.quantize(graph, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pictures))
    else:
        quantized = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
    save_over(quantized, path)


def save_over(graph: Any, path: Path) -> None:
    """Saves a graph over the file that it was read from, which is mapped into memory as long as the graph lives."""
    beside = path.with_stem(f"{path.stem}-quantized")
    ov.save_model(graph, beside, compress_to_fp16=False)
    beside.with_suffix(".bin").rename(path.with_suffix(".bin"))
    beside.rename(path)
    number_names(path)


def record(precision: str, calibrated: bool) -> OVConfig:
    """optimum-intel's record of what was done, its `openvino_config.json`."""
    if precision != "int8":
        return OVConfig(dtype=precision)
    weights = OVWeightQuantizationConfig(bits=8, sym=False)
    return OVConfig(quantization_config=OVQuantizationConfig(bits=8) if calibrated else weights)


def read_pictures(folder: Path, image_size: tuple[int, int]) -> list[UInt8Array]:
    """The pictures of a folder at the model's input size (height, width), at most `MOST_PICTURES` of them.

    Raises:
        ConversionError: a picture can't be read, or there are too few.
    """
    paths = sorted(path for pattern in PICTURES for path in folder.glob(pattern))[:MOST_PICTURES]
    if len(paths) < LEAST_PICTURES:
        raise ConversionError(
            f"{folder} has {len(paths)} pictures ({', '.join(PICTURES)}); calibration needs {LEAST_PICTURES} or more."
        )
    try:
        return [open_picture(path.read_bytes(), image_size, MOST_PIXELS).pixels for path in paths]
    except DocumentError as exc:
        raise ConversionError(f"{folder}: {exc}") from exc
