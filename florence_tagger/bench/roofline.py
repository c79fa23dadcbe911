"""The roofline of the benchmark: the machine's limits, and the work of a model's graphs."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13

from florence_tagger.florence.devices import CORE
from florence_tagger.florence.manifest import GRAPHS

SIDE = 4096  # of the matrices: large enough that only the product takes time
READ_BYTES = 512 * 1024 * 1024  # far larger than any cache
REPEATS = 8


def fastest(run: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of `REPEATS` runs."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def matmul_gflops(device: str, precision: str) -> float:
    """Return the GFLOP/s of a product of large matrices on a device; precision "" is the device's default."""
    left = opset13.parameter([SIDE, SIDE], np.float32)
    weights = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    model = ov.Model([opset13.matmul(left, weights, False, True)], [left])
    hints = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    request = CORE.compile_model(model, device, hints).create_infer_request()
    return 2 * SIDE**3 / fastest(lambda: request.infer([weights], share_inputs=True)) / 1e9


def memory_gb_per_s(threads: int) -> float:
    """Return the GB/s (10^9) at which `threads` threads together read memory."""
    # a sum, not a BLAS routine: OpenBLAS that is called from several threads waits for its own pool
    parts = np.array_split(np.ones(READ_BYTES // 8), threads)
    with ThreadPoolExecutor(threads) as pool:
        return READ_BYTES / fastest(lambda: list(pool.map(np.sum, parts))) / 1e9


@dataclass(frozen=True)
class Workload:
    """The work for a picture: GFLOP of vision and encoder, and the bytes of weights that each decoder step reads."""

    vision_gflop: float
    encoder_gflop: float
    decoder_bytes: int


def workload_of(folder: Path, prompt_tokens: int) -> Workload:
    """Return the workload of a model folder's graphs for a prompt of `prompt_tokens` tokens."""
    vision, encoder, decoder = (CORE.read_model(folder / f"{name}.xml") for name in GRAPHS)
    prompt = encoder.input("prompt_embeddings")
    encoder.reshape({"prompt_embeddings": [1, prompt_tokens, prompt.partial_shape[2].get_length()]})
    return Workload(gflop_of(vision), gflop_of(encoder), weight_bytes_of(decoder))


def gflop_of(model: Any) -> float:
    """Return the GFLOP of matrix products and convolutions in a graph of static shapes, two FLOP a multiplication."""
    return sum(flop_of(node) for node in model.get_ordered_ops()) / 1e9


def flop_of(node: Any) -> int:
    """Return the FLOP of a matrix product or convolution, 0 for other operations."""
    kind, shape = node.get_type_name(), tuple(node.output(0).shape) if node.outputs() else ()
    if kind == "MatMul":
        inner = tuple(node.input_value(0).shape)[-2 if node.get_attributes()["transpose_a"] else -1]
        return int(2 * prod(shape) * inner)
    if kind == "Convolution":  # weights (out, in, y, x)
        return int(2 * prod(shape) * prod(tuple(node.input_value(1).shape)[1:]))
    if kind == "GroupConvolution":  # weights (groups, out, in, y, x)
        return int(2 * prod(shape) * prod(tuple(node.input_value(1).shape)[2:]))
    return 0


def weight_bytes_of(model: Any) -> int:
    """Return the stored bytes of the weights in a graph's matrix products, each weight once."""
    sizes: dict[int, int] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            for constant in constants_of(node.input_value(1).get_node()):
                sizes[constant.data.ctypes.data] = constant.get_byte_size()
    return sum(sizes.values())


def constants_of(node: Any) -> Iterator[Any]:
    """Yield the constants of a weight, behind the operations that convert and scale it."""
    if node.get_type_name() == "Constant":
        yield node
    elif node.get_type_name() in ("Convert", "Subtract", "Multiply", "Reshape", "Transpose"):
        for value in node.input_values():
            yield from constants_of(value.get_node())
