"""What a machine can do at most, and what a model asks of it: the yardstick of the benchmark."""

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

SIDE = 4096  # of the matrices: large enough that nothing but the product takes time
READ_BYTES = 512 * 1024 * 1024  # far more than any cache holds
REPEATS = 8


def fastest(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def matmul_gflops(device: str, precision: str) -> float:
    """GFLOP/s of OpenVINO's product of two large matrices on a device; precision "" is the device's own."""
    left = opset13.parameter([SIDE, SIDE], np.float32)
    weights = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    model = ov.Model([opset13.matmul(left, weights, False, True)], [left])
    hints = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    request = CORE.compile_model(model, device, hints).create_infer_request()
    return 2 * SIDE**3 / fastest(lambda: request.infer([weights], share_inputs=True)) / 1e9


def memory_gb_per_s(threads: int) -> float:
    """GB/s (10^9) at which so many threads together read memory."""
    # summing, not a BLAS routine: OpenBLAS called from several threads has a pool of its own to wait for
    parts = np.array_split(np.ones(READ_BYTES // 8), threads)
    with ThreadPoolExecutor(threads) as pool:
        return READ_BYTES / fastest(lambda: list(pool.map(np.sum, parts))) / 1e9


@dataclass(frozen=True)
class Work:
    """What a picture asks: GFLOP of vision and encoder, and the bytes of weights that each decoder step reads."""

    vision_gflop: float
    encoder_gflop: float
    decoder_bytes: int


def work_of(folder: Path, prompt_tokens: int) -> Work:
    """The work of a model folder's graphs for a prompt of so many tokens."""
    vision, encoder, decoder = (CORE.read_model(folder / f"{name}.xml") for name in GRAPHS)
    prompt = encoder.input("prompt_embeddings")
    encoder.reshape({"prompt_embeddings": [1, prompt_tokens, prompt.partial_shape[2].get_length()]})
    return Work(gflop_of(vision), gflop_of(encoder), weight_bytes_of(decoder))


def gflop_of(model: Any) -> float:
    """GFLOP of the matrix products and convolutions in a graph of static shapes: two for each multiplication."""
    return sum(flop_of(node) for node in model.get_ordered_ops()) / 1e9


def flop_of(node: Any) -> int:
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
    """Bytes of the weights that a graph multiplies with, as they are stored, each once."""
    found: dict[int, int] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            for constant in constants_of(node.input_value(1).get_node()):
                found[constant.data.ctypes.data] = constant.get_byte_size()
    return sum(found.values())


def constants_of(node: Any) -> Iterator[Any]:
    """The constants that a weight is made of, through what widens and scales it."""
    if node.get_type_name() == "Constant":
        yield node
    elif node.get_type_name() in ("Convert", "Subtract", "Multiply", "Reshape", "Transpose"):
        for value in node.input_values():
            yield from constants_of(value.get_node())
