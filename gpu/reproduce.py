"""Faults of OpenVINO's GPU plugin on minimal graphs: `python reproduce.py FAULT` prints expected and actual values.

It needs only numpy, openvino and a GPU that OpenVINO finds. The exit code is 3 if the plugin has the fault, and 0 if
not.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

HEADS, WIDTH = 2, 16
ROWS, TOKENS = 0, 2  # axes of a cache (rows, heads, tokens, width)
TOLERANCE = 1e-3
F32, F16 = ({"INFERENCE_PRECISION_HINT": name} for name in ("f32", "f16"))
THERE, GONE = 3, 0  # exit codes
USM_DEVICE = {"SHARED_MEM_TYPE": "USM_DEVICE_BUFFER"}
core = ov.Core()
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """Step of a cache.

    Attributes:
        beams: index of the previous row that each row continues.
        reset: True if the state is reset before the step.
        drop: number of first tokens that are dropped before the step by setting the state.
    """

    beams: Sequence[int]
    reset: bool = False
    drop: int = 0


def cache_graph(through_maximum: bool = False) -> Any:
    """Return the graph of a query's scores against a cache: a state, reordered by beam and extended by a token."""
    new, query = (ops.parameter([-1, HEADS, 1, WIDTH], np.float32, name=name) for name in ("new", "query"))
    beam_idx = ops.parameter([-1], np.int32, name="beam_idx")
    info = VariableInfo()
    info.data_shape, info.data_type = ov.PartialShape([-1, HEADS, -1, WIDTH]), ov.Type.f32
    info.variable_id = "cache"
    variable = Variable(info)
    rows = ops.gather(ops.shape_of(new, "i64"), ops.constant(np.array([0])), ops.constant(0))
    empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([rows, ops.constant(np.array([HEADS, 0, WIDTH]))], 0))
    chosen = ops.maximum(beam_idx, ops.constant(np.int32(0))) if through_maximum else beam_idx
    past = ops.gather(ops.read_value(empty, variable), chosen, ops.constant(np.int64(ROWS)))
    grown = ops.concat([past, new], TOKENS)
    scores = ops.result(ops.matmul(query, grown, False, True))
    return ov.Model([scores], [ops.assign(grown, variable)], [new, query, beam_idx], "cache")


def cache_errs(steps: Sequence[Step], through_maximum: bool = False) -> bool:
    """Return True if steps of a cache give different scores on the GPU and in NumPy."""
    request = core.compile_model(cache_graph(through_maximum), "GPU", F32).create_infer_request()
    random = np.random.default_rng(0)
    cache: Array = np.zeros((1, HEADS, 0, WIDTH), np.float32)
    for step in steps:
        if step.reset:
            request.reset_state()
            cache = cache[:1, :, :0]
        if step.drop:
            (state,) = request.query_state()
            state.state = ov.Tensor(np.ascontiguousarray(state.state.data[:, :, step.drop :]))
            cache = cache[:, :, step.drop :]
        if not cache.shape[TOKENS]:
            cache = cache[:1].repeat(len(step.beams), ROWS)
        new, query = random.standard_normal((2, len(step.beams), HEADS, 1, WIDTH)).astype(np.float32)
        cache = np.concatenate([cache[list(step.beams)], new], TOKENS)
        inputs = {"new": new, "query": query, "beam_idx": np.array(step.beams, np.int32)}
        scores = request.infer(inputs)[0]
        if differs(f"scores of the step with beams {list(step.beams)}", query @ cache.transpose(0, 1, 3, 2), scores):
            return True
    return False


def differs(name: str, expected: Any, actual: Any) -> bool:
    """Return True, and print both values, if they differ; NaN always differs."""
    if np.shape(expected) == np.shape(actual) and np.abs(np.subtract(expected, actual)).max() <= TOLERANCE:
        return False
    print(f"{name}\nexpected: {np.asarray(expected).ravel()[:12]}\nactual:   {np.asarray(actual).ravel()[:12]}")
    return True


def rows_shrink() -> bool:
    """Shrink six rows to four, as when one of three pictures is finished."""
    return cache_errs([Step(range(6)), Step([5, 4, 3, 2, 1, 0]), Step([5, 4, 1, 0]), Step([3, 2, 1, 0])])


def rows_grow() -> bool:
    """Grow one row to four after three steps, as in beam search."""
    return cache_errs([Step([0]), Step([0]), Step([0]), Step([0] * 4), Step([3, 1, 2, 0]), Step([0, 1, 1, 3])])


def state_is_set() -> bool:
    """Drop a token by setting the state, with rows that are reordered but constant in number."""
    before, after = [Step(range(4)) for _ in range(3)], [Step([1, 0, 3, 2]) for _ in range(3)]
    return cache_errs([*before, Step([3, 2, 1, 0], drop=1), *after])


def reset_and_the_same_shapes() -> bool:
    """Reset the state before a step with the previous step's shapes, with a cache that is not reordered by index."""
    try:
        return cache_errs([Step([0]), Step([0], reset=True), Step([0])], through_maximum=True)
    except RuntimeError as exc:
        print(f"expected: scores of the new token\nactual:   {str(exc).strip().splitlines()[-1]}")
        return "Layout mismatch" in str(exc)


def bans_add_up() -> bool:
    """Add -inf, or 0 for no ban, to negative logits by ScatterElementsUpdate at f16."""
    logits = ops.parameter([-1, 32], np.float32, name="logits")
    banned = ops.parameter([-1, 3], np.int64, name="banned")
    none = ops.constant(np.int64(0))
    bans = ops.select(ops.less(banned, none), ops.constant(np.float32(0)), ops.constant(np.float32(-np.inf)))
    indices, axis = ops.maximum(banned, none), ops.constant(np.int64(1))
    out = ops.scatter_elements_update(logits, indices, bans, axis, reduction="sum", use_init_val=True)
    compiled = core.compile_model(ov.Model([out], [logits, banned], "bans"), "GPU", F16)
    scores = compiled([np.full((2, 32), -1, np.float32), np.array([[3, 7, -1], [5, 5, 9]])])[0]
    banned = scores[[0, 0, 1, 1], [3, 7, 5, 9]]
    print(f"banned logits, expected: -inf, or below -60,000\nactual: {banned}")
    return not bool((banned < -60_000).all())


def gather_into_device_memory() -> bool:
    """Get the shape of a device tensor that is the output of a graph ending in a Gather."""
    source = ops.parameter([1, HEADS, -1, WIDTH], np.float32, name="source")
    indices = ops.parameter([-1], np.int32, name="indices")
    taken = ops.result(ops.gather(source, indices, ops.constant(TOKENS)))
    taken.output(0).get_tensor().set_names({"taken"})
    request = core.compile_model(ov.Model([taken], [source, indices], "take"), "GPU", F32).create_infer_request()
    shape = [1, HEADS, 8, WIDTH]
    output = core.get_default_context("GPU").create_tensor(
        ov.Type.f32, ov.Shape(shape), {"SHARED_MEM_TYPE": "USM_DEVICE_BUFFER"}
    )
    request.set_tensor("source", ov.Tensor(np.zeros([1, HEADS, 32, WIDTH], np.float32)))
    request.set_tensor("indices", ov.Tensor(np.arange(8, dtype=np.int32)))
    request.set_tensor("taken", output)
    request.start_async()
    request.wait()
    return differs("shape of the output", shape, list(output.get_shape()))


def quantized(values: Any, ends: Any, levels: int) -> Any:
    """Return values quantized in the range from minus to plus `ends`."""
    low, high = ops.constant(-np.float32(ends)), ops.constant(np.float32(ends))
    return ops.fake_quantize(values, low, high, low, high, levels)


def linear_layer(values: Any, width: int, seed: int) -> Any:
    """Return a linear layer of int8 weights over values (batch, tokens, width)."""
    random = np.random.default_rng(seed)
    weights = ops.convert(ops.constant(random.integers(-127, 128, (width, width)).astype(np.int8)), np.float32)
    return ops.matmul(values, ops.multiply(weights, ops.constant(np.full((width, 1), 0.01, np.float32))), False, True)


def differs_from_cpu(name: str, graph: Any, values: Array) -> bool:
    """Return True, and print both outputs, if a graph's output at f32 differs between the CPU and GPU plugins."""
    expected, actual = (core.compile_model(graph, device, F32)(values)[0] for device in ("CPU", "GPU"))
    return differs(name, expected, actual)


def activations_scaled() -> bool:
    """Compile a graph of quantized and other linear layers at f16 with ACTIVATIONS_SCALE_FACTOR."""
    values = ops.parameter([1, 8, 32], np.float32, name="values")
    first = linear_layer(quantized(values, np.full((1, 1, 1), 4), 256), 32, seed=0)
    normalized = ops.mvn(ops.add(first, values), ops.constant(np.array([2])), True, 1e-5, "inside_sqrt")
    graph = ov.Model([ops.concat([linear_layer(normalized, 32, seed=1), first], 1)], [values], "scaled")
    graph.set_rt_info("8", ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"])
    try:
        core.compile_model(graph, "GPU", F16)
    except RuntimeError as exc:
        print(f"expected: the graph compiles\nactual:   {str(exc).strip().splitlines()[-1]}")
        return "element type" in str(exc)
    return False


def ranges_by_column() -> bool:
    """Run a depthwise convolution whose weights are quantized with a range for each column of its kernels."""
    random, channels = np.random.default_rng(0), 32
    weights = random.standard_normal((channels, 1, 1, 3, 3)).astype(np.float32)
    columns = np.abs(weights).max(axis=(2, 3), keepdims=True)
    values = ops.parameter([1, channels, 56, 56], np.float32, name="values")
    pads: list[int] = [1, 1]
    out = ops.group_convolution(values, quantized(ops.constant(weights), columns, 255), [1, 1], pads, pads, [1, 1])
    pixels = random.standard_normal((1, channels, 56, 56)).astype(np.float32)
    return differs_from_cpu("values of the convolution", ov.Model([out], [values], "columns"), pixels)


def quantized_batch() -> bool:
    """Run a quantized linear layer over a batch of 16, as over 16 windows of a picture."""
    values = ops.parameter([16, 49, 32], np.float32, name="values")
    out = linear_layer(quantized(values, np.full((1, 1, 1), 4), 256), 32, seed=0)
    numbers = np.random.default_rng(1).standard_normal((16, 49, 32)).astype(np.float32)
    return differs_from_cpu("values of the layer", ov.Model([out], [values], "batch"), numbers)


FAULTS: dict[str, Callable[[], bool]] = {
    fault.__name__: fault
    for fault in (
        rows_shrink,
        rows_grow,
        state_is_set,
        reset_and_the_same_shapes,
        bans_add_up,
        gather_into_device_memory,
        activations_scaled,
        ranges_by_column,
        quantized_batch,
    )
}


if __name__ == "__main__":
    sys.exit(THERE if FAULTS[sys.argv[1]]() else GONE)
