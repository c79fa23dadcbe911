"""The calibrated vision graph: what GPUs need of its ranges, and graphs that lack it."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from convert.conversion_error import ConversionError
from convert.precision import check_ranges, quantize_activations
from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.errors import DeviceError, ModelError
from florence_tagger.florence.devices import CORE, RuntimeOptions
from florence_tagger.florence.graphs import Graphs
from florence_tagger.florence.manifest import load_manifest
from florence_tagger.florence.quantization import (
    ACTIVATIONS_SCALE_FACTOR,
    gpu_fault,
    quantized_batch,
    ranges_per_channel,
    require_gpu_ranges,
)
from florence_tagger.media.images import open_picture
from tests.conftest import SCENES, TRUTH
from tests.devices import FakeCore

F16_MAX = 65_504.0
DEPTHWISE = 20  # convolutions of the bundled model: two in each of 5 spatial and 5 channel blocks


def bundled_vision() -> Any:
    return CORE.read_model(DEFAULT_MODEL / "vision.xml")


def pictures() -> list[Any]:
    return [open_picture((SCENES / name).read_bytes(), (224, 224), 10**8).pixels for name in TRUTH]


def operations(graph: Any, kind: str) -> list[Any]:
    return [one for one in graph.get_ops() if one.get_type_name() == kind]


def constant_of(value: Any) -> Any:
    node = value.get_node()
    return (node.input_value(0).get_node() if node.get_type_name() == "Convert" else node).data.astype(np.float64)


@pytest.fixture(scope="module")
def calibrated() -> Any:
    """The bundled vision graph as conversion calibrates it."""
    return quantize_activations(bundled_vision(), pictures()[:10])


@pytest.fixture(scope="module")
def calibrated_before() -> Any:
    """The bundled vision graph as NNCF calibrates it where it is told nothing of it."""
    dataset = nncf.Dataset([{"pixels": pixels[np.newaxis]} for pixels in pictures()[:1]])
    return nncf.quantize(bundled_vision(), dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=1)


def test_depthwise_weights_have_one_range_a_channel(calibrated: Any, calibrated_before: Any) -> None:
    assert [ranges_per_channel(one) for one in operations(calibrated, "GroupConvolution")] == [1] * DEPTHWISE
    assert [ranges_per_channel(one) for one in operations(calibrated_before, "GroupConvolution")] == [3] * DEPTHWISE


def ranges(graph: Any) -> Iterator[tuple[Any, Any, int]]:
    """The lower and upper ends of each quantiser of activations, and its levels."""
    for one in operations(graph, "FakeQuantize"):
        levels = one.get_attributes()["levels"]
        yield constant_of(one.input_value(1)), constant_of(one.input_value(2)), levels
        yield constant_of(one.input_value(3)), constant_of(one.input_value(4)), levels


def test_ranges_fit_f16(calibrated: Any) -> None:
    found = list(ranges(calibrated))
    assert len(found) > 100
    for low, high, levels in found:
        assert low.size == high.size == 1, "a range for each token is of use to no plugin"
        assert max(abs(float(low)), abs(float(high))) <= F16_MAX
        assert (levels - 1) / float(high - low) <= F16_MAX


def test_joined_tensors_have_one_type_and_no_scale(calibrated: Any) -> None:
    # what made the types differ, in the plugin, was the scale of activations
    for one in operations(calibrated, "Concat"):
        assert len({value.get_element_type() for value in one.input_values()}) == 1
    assert not calibrated.has_rt_info(ACTIVATIONS_SCALE_FACTOR)
    assert bundled_vision().has_rt_info(ACTIVATIONS_SCALE_FACTOR)


def test_calibrated_features_are_close_to_those_of_floats(calibrated: Any) -> None:
    graphs = [
        CORE.compile_model(one, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}) for one in (bundled_vision(), calibrated)
    ]
    floats, integers = (np.stack([graph(one[np.newaxis])[0].ravel() for one in pictures()]) for graph in graphs)
    cosine = (floats * integers).sum() / np.linalg.norm(floats) / np.linalg.norm(integers)
    print(f"cosine {cosine:.6f}")
    assert cosine > 0.9997


def test_a_graph_is_fit_for_gpus_or_says_why_not(calibrated: Any, calibrated_before: Any) -> None:
    assert gpu_fault(bundled_vision()) == gpu_fault(calibrated) == ""
    assert gpu_fault(nncf.compress_weights(bundled_vision(), mode=nncf.CompressWeightsMode.INT8_ASYM)) == ""
    assert "several quantisation ranges a channel" in gpu_fault(calibrated_before)
    require_gpu_ranges(calibrated, Path("models/new"), "int8")
    command = "python -m convert --model CHECKPOINT --output models/old --precision int4 --calibration PICTURES"
    with pytest.raises(DeviceError, match=command):
        require_gpu_ranges(calibrated_before, Path("models/old"), "int4")


def linear_layer(batch: int, tokens: int) -> Any:
    """A graph of one linear layer over quantised activations (batch, tokens, 32)."""
    values = ops.parameter([batch, tokens, 32], np.float32)
    ends = [ops.constant(np.float32(one)) for one in (-1, 1, -1, 1)]
    product = ops.matmul(ops.fake_quantize(values, *ends, 256), ops.constant(np.ones((8, 32), np.float32)), False, True)
    return ov.Model([product], [values], "linear")


def test_quantised_windows_are_no_batch(calibrated: Any) -> None:
    batches = [quantized_batch(one) for one in operations(calibrated, "MatMul")]
    assert set(batches) == {0, 1}
    assert batches.count(1) > 50
    assert gpu_fault(linear_layer(1, 16 * 49)) == gpu_fault(linear_layer(15, 49)) == ""
    assert gpu_fault(linear_layer(16, 49)) == "it quantises activations in batches"


def test_a_folder_that_was_calibrated_before_is_refused_on_gpus_alone(
    calibrated_before: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(DEFAULT_MODEL, tmp_path, dirs_exist_ok=True)
    ov.save_model(calibrated_before, tmp_path / "vision.xml", compress_to_fp16=False)
    manifest, core = replace(load_manifest(DEFAULT_MODEL), path=tmp_path), FakeCore(["CPU", "GPU"])
    graphs = Graphs(manifest, RuntimeOptions("AUTO", "f32"), core)
    assert graphs.devices == {"vision": "CPU", "decoder": "GPU"}
    assert "vision does not compile on GPU: The vision graph" in caplog.text
    with pytest.raises(ModelError, match="convert it anew: `python -m convert"):
        Graphs(manifest, RuntimeOptions("GPU", "f32"), core)


def quantiser(low: float, high: float) -> Any:
    """A graph that quantises activations in a range."""
    values = ops.parameter([1, 4], np.float32)
    ends = [ops.constant(np.float32(one)) for one in (low, high, low, high)]
    return ov.Model([ops.fake_quantize(values, *ends, 256)], [values], "quantiser")


def test_quantised_activations_are_not_scaled() -> None:
    graph = quantiser(-1, 1)
    assert gpu_fault(graph) == ""
    graph.set_rt_info("8.0", ACTIVATIONS_SCALE_FACTOR)
    assert "scaled" in gpu_fault(graph)


@pytest.mark.parametrize(
    ("low", "high"), [(-1e15, 1e15), (0, 70_000), (0, 0.003), (float("nan"), 1), (0, float("inf"))]
)
def test_ranges_beyond_f16_are_refused(low: float, high: float) -> None:
    check_ranges(quantiser(-65_504, 65_504))
    check_ranges(quantiser(-0.002, 0.002))
    with pytest.raises(ConversionError, match="more and other pictures, or convert without --calibration"):
        check_ranges(quantiser(low, high))
