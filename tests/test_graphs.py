"""The graphs of the committed model: what a GPU needs of them, and what the benchmark counts in them."""

from typing import Any

import numpy as np
import openvino as ov
import pytest

from florence_tagger.bench.roofline import gflop_of, matmul_gflops, memory_gb_per_s, work_of
from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.florence.devices import CORE
from florence_tagger.media.images import open_picture
from tests.conftest import SCENES, TRUTH

F16_MAX = 65_504.0
MOVED = {
    "Assign",
    "Constant",
    "Convert",
    "Gather",
    "Parameter",
    "ReadValue",
    "Reshape",
    "Result",
    "ShapeOf",
    "Transpose",
}


def graph(name: str) -> Any:
    return CORE.read_model(DEFAULT_MODEL / f"{name}.xml")


def with_inner_outputs(model: Any) -> Any:
    """A graph that also gives what each of its operations computes, in f32."""
    inner = [
        output
        for node in model.get_ordered_ops()
        if node.get_type_name() not in MOVED
        for output in node.outputs()
        if output.get_element_type() == ov.Type.f32
    ]
    model.add_outputs(inner)
    return CORE.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def largest(values: Any) -> float:
    return max(float(np.abs(value).max()) for value in values if value.dtype == np.float32)


def test_activations_stay_far_inside_the_range_of_f16() -> None:
    encoder = graph("encoder")
    prompt = encoder.input("prompt_embeddings")
    encoder.reshape({"prompt_embeddings": [1, 13, prompt.partial_shape[2].get_length()]})
    decoder = with_inner_outputs(graph("decoder")).create_infer_request()
    bans = graph("decoder").input("banned_ids").partial_shape[1].get_length()
    vision, encoder = with_inner_outputs(graph("vision")), with_inner_outputs(encoder)
    most = 0.0
    for name in list(TRUTH)[:4]:
        frame = open_picture((SCENES / name).read_bytes(), (224, 224), 10**8)
        seen = vision([frame.pixels[np.newaxis]])
        read = encoder([seen[0], np.zeros((1, 13, 192), np.float32)])
        inputs = {port.any_name: read[port] for port in encoder.outputs if port.names and "cross" in port.any_name}
        inputs |= {"input_ids": np.array([2]), "position_ids": np.array([0]), "beam_idx": np.array([0], np.int32)}
        inputs["encoder_mask"] = np.zeros((1, 1, 1, inputs["cross_attention.0.key"].shape[3]), np.float32)
        inputs |= {"attention_mask": np.zeros((1, 1, 1, 1), np.float32), "banned_ids": np.full((1, bans), -1)}
        decoder.reset_state()
        said = [value for value in decoder.infer(inputs).values() if value.size and np.isfinite(value).all()]
        most = max(most, largest(seen.values()), largest(read.values()), largest(said))
    print(f"largest activation: {most:.0f}")
    assert most < F16_MAX / 64


@pytest.mark.parametrize("name", ["vision", "encoder", "decoder"])
def test_gpus_are_told_to_scale_activations(name: str) -> None:
    assert graph(name).get_rt_info(["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]).astype(str) == "8.0"


def test_only_the_decoder_has_shapes_that_change() -> None:
    assert not graph("vision").is_dynamic()
    dynamic = [port.any_name for port in graph("encoder").inputs if port.partial_shape.is_dynamic]
    assert dynamic == ["prompt_embeddings"]  # which the runtime fixes
    assert all(str(port.element_type) == "<Type: 'uint8_t'>" for port in graph("vision").inputs)
    # by how many tokens of picture, prompt and answer; all else, by its rows
    cached = ("cross_attention", "encoder_mask", "attention_mask")
    for port in graph("decoder").inputs:
        changing = [axis for axis, length in enumerate(port.partial_shape) if length.is_dynamic]
        assert changing == [0] or (port.any_name.startswith(cached) and changing in ([0, 2], [0, 3]))


def test_no_row_of_the_vocabulary_leaves_the_decoder() -> None:
    shapes = [port.partial_shape for port in graph("decoder").outputs]
    assert [shape[1].get_length() for shape in shapes] == [32, 32, 192]


def test_work_is_counted_from_the_shapes() -> None:
    left = ov.opset13.parameter([6, 8], np.float32)
    right = ov.opset13.constant(np.ones((8, 5), np.float32))
    assert gflop_of(ov.Model([ov.opset13.matmul(left, right, False, False)], [left])) == 2 * 6 * 8 * 5 / 1e9
    work = work_of(DEFAULT_MODEL, 13)
    assert work.vision_gflop == pytest.approx(1.2, rel=0.01)
    assert 0.8 < work.decoder_bytes / (DEFAULT_MODEL / "decoder.bin").stat().st_size < 1


def test_limits_of_the_machine_are_measured() -> None:
    assert matmul_gflops("CPU", "f32") > 1
    assert memory_gb_per_s(1) > 0.5
