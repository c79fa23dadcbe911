"""Results of compiling a model for a chip, read from the JSON lines of the process that compiles it."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpu.kernels import Move

GRAPHS = ("vision", "encoder", "decoder")
PICTURES, BEAMS = 8, 3  # of the decode step that is profiled


@dataclass(frozen=True)
class CompiledGraph:
    """Result of compiling a graph.

    Attributes:
        graph: name of the graph.
        device: device that it was compiled for.
        seconds: CPU time of all threads, which does not depend on other programs.
        peak_mb: peak memory of the process during compilation, MB.
        device_mb: memory that the device then holds for all graphs, MB; 0 if not reported.
        precision: inference precision.
        unsupported: names of the operations that the device does not support.
        error: reason why the graph does not compile, "" if it does.
    """

    graph: str
    device: str
    seconds: float
    peak_mb: float
    device_mb: float = 0
    precision: str = ""
    unsupported: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class ExecutedGraph:
    """Profile of a graph that ran on the chip.

    Attributes:
        graph: name of the graph.
        kernels: (layer type, kernel, number of runs) of each kernel.
        moves: large tensors that it moved.
    """

    graph: str
    kernels: tuple[tuple[str, str, int], ...]
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Result:
    """Result of a model on a chip.

    Attributes:
        chip: name of the chip.
        model: name of the variant.
        device: OpenVINO's description of the chip: name, architecture, capabilities; empty if not reported.
        compiled: graphs in the order of compilation, including those that do not compile.
        executed: graphs that ran on the chip.
        failure: reason why the process failed, "" if it succeeded.
    """

    chip: str
    model: str
    device: dict[str, Any]
    compiled: tuple[CompiledGraph, ...]
    executed: tuple[ExecutedGraph, ...]
    failure: str = ""


def read_result(chip: str, model: str, lines: Iterable[str], failure: str) -> Result:
    """Return the result of the JSON lines that a process printed."""
    records: dict[str, list[Any]] = defaultdict(list)
    for line in lines:
        ((kind, record),) = json.loads(line).items()
        records[kind].append(record)
    device: dict[str, Any] = next(iter(records["device"]), {})
    compiled = tuple(map(read_compiled, records["compiled"]))
    return Result(chip, model, device, compiled, tuple(map(read_executed, records["executed"])), failure)


def read_compiled(record: dict[str, Any]) -> CompiledGraph:
    """Return the compiled graph of a record."""
    return CompiledGraph(**record | {"unsupported": tuple(record["unsupported"])})


def read_executed(record: dict[str, Any]) -> ExecutedGraph:
    """Return the executed graph of a record."""
    kernels = tuple((kind, kernel, count) for kind, kernel, count in record["kernels"])
    return ExecutedGraph(record["graph"], kernels, tuple(Move(**move) for move in record["moves"]))
