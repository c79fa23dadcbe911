"""Loads a model folder like the service and decodes steps: reports compilation and kernels as JSON lines.

`python -m gpu.loading FOLDER` runs in a separate process for each folder and chip. The service's `Graphs` builds and
runs the graphs, with `CoreRecorder` in place of OpenVINO's core, so that this module does not depend on how the graphs
are built.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import openvino as ov

from florence_tagger.florence.decoding import StepInput
from florence_tagger.florence.devices import CORE, RuntimeOptions, reason_of
from florence_tagger.florence.graphs import Graphs
from florence_tagger.florence.manifest import ModelManifest, load_manifest
from gpu.compilation import BEAMS, PICTURES, CompiledGraph, ExecutedGraph
from gpu.kernels import CACHED_TOKENS, count_kernels, large_moves, read_nodes

PROMPT_TOKENS = 13  # of the prompt for object detection, by the published tokenizer
OUTLINED_BYTES = 4096  # maximum size of constants that an outline keeps, such as shapes and bounds
PROFILING = {"PERF_COUNT": True}


class RecordedGraph:
    """Compiled graph that keeps its last infer request; all other attributes are those of OpenVINO's compiled model.

    Attributes:
        request: last infer request.
        outline: graph before compilation, without its weights.
    """

    def __init__(self, compiled: Any, outline: Any) -> None:
        self._compiled = compiled
        self.request: Any = None
        self.outline = outline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)

    def create_infer_request(self) -> Any:
        """Return a new infer request, and keep it."""
        self.request = self._compiled.create_infer_request()
        return self.request


class CoreRecorder:
    """Wrapper of OpenVINO's core that reports each graph compiled for a device.

    Args:
        device: device whose graphs are reported in full and profiled.
        report: callback for each compiled graph.

    Attributes:
        graphs: compiled graphs by name.
    """

    def __init__(self, device: str, report: Callable[[CompiledGraph], None]) -> None:
        self._device = device
        self._report = report
        self.graphs: dict[str, RecordedGraph] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(CORE, name)

    def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
        """Compile a graph; for another device, report its name only."""
        name = model.get_friendly_name()
        if device != self._device:
            self._report(CompiledGraph(name, device, 0, 0))
            return CORE.compile_model(model, device, properties)
        reset_peak()
        started = time.process_time()
        try:
            compiled = CORE.compile_model(model, device, properties | PROFILING)
        except RuntimeError as exc:
            seconds = time.process_time() - started
            self._report(CompiledGraph(name, device, seconds, peak_mb(), error=reason_of(exc)))
            raise
        seconds, peak = time.process_time() - started, peak_mb()
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        unsupported = unsupported_by(device, model)
        self._report(CompiledGraph(name, device, seconds, peak, device_mb(device), precision, unsupported))
        self.graphs[name] = RecordedGraph(compiled, outline_of(model))
        return self.graphs[name]


def outline_of(model: Any) -> Any:
    """Return a copy of a graph with inputs instead of weights, which would otherwise stay in memory."""
    copy = model.clone()
    for op in copy.get_ops():
        if op.get_type_name() == "Constant" and op.get_byte_size() > OUTLINED_BYTES:
            weights = ov.op.Parameter(op.get_element_type(), op.get_output_partial_shape(0))
            op.output(0).replace(weights.output(0))
            copy.add_parameters([weights])
    return copy


def shapes_in(outline: Any, inputs: Sequence[Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a graph's nodes by name that follow from the shapes of its inputs."""
    outline.reshape(dict(zip(outline.inputs, map(ov.PartialShape, map(list, inputs)), strict=False)))
    ops = [op for op in outline.get_ops() if op.get_output_size() and op.get_output_partial_shape(0).is_static]
    return {op.get_friendly_name(): tuple(op.get_output_shape(0)) for op in ops}


def unsupported_by(device: str, model: Any) -> tuple[str, ...]:
    """Return the names of a graph's operations that a device does not support."""
    supported = CORE.query_model(model, device)
    return tuple(op.get_friendly_name() for op in model.get_ops() if op.get_friendly_name() not in supported)


def reset_peak() -> None:
    """Reset the kernel's record of this process's peak memory (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Return this process's peak memory since the last reset, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def device_mb(device: str) -> float:
    """Return the memory allocated on a device, MB, or 0 if the device is not a GPU."""
    if not device.startswith("GPU"):
        return 0.0
    allocated: dict[str, int] = CORE.get_property(device, "GPU_MEMORY_STATISTICS")
    return sum(allocated.values()) / 1e6


def load_and_step(manifest: ModelManifest, core: CoreRecorder, device: str) -> None:
    """Load a model like the service, and decode `CACHED_TOKENS` steps of a batch; the decoded tokens do not matter."""
    graphs = Graphs(manifest, RuntimeOptions(device, max_pictures=PICTURES), core)
    cross_attention = graphs.encode(np.zeros((*manifest.image_size, 3), np.uint8), (0,) * PROMPT_TOKENS)
    for _ in range(PICTURES):
        graphs.decoder.add(cross_attention)
    for position in range(CACHED_TOKENS):
        rows = np.zeros(BEAMS if position else 1, np.int64)
        step_input = StepInput(rows, rows, position, (np.array([0]),) * len(rows))
        graphs.decoder.step([step_input] * PICTURES)


def profile_of(name: str, graph: RecordedGraph) -> ExecutedGraph:
    """Return the kernels and large moves of a graph's last run."""
    request = graph.request
    nodes = read_nodes(graph.get_runtime_model(), request.get_profiling_info())
    input_shapes = [tuple(request.get_tensor(port).get_shape()) for port in graph.inputs]
    names = [port.get_node().get_friendly_name() for port in graph.inputs]
    shapes = shapes_in(graph.outline, input_shapes) | dict(zip(names, input_shapes, strict=True))
    kernels = tuple((kind, kernel, count) for (kind, kernel), count in sorted(count_kernels(nodes).items()))
    return ExecutedGraph(name, kernels, tuple(large_moves(nodes, shapes, PICTURES * BEAMS)))


def print_record(kind: str, record: dict[str, Any]) -> None:
    """Print a JSON line for `gpu.compile` and flush it, because the process may be killed."""
    click.echo(json.dumps({kind: record}))


def describe(device: str) -> dict[str, Any]:
    """Return OpenVINO's description of a device."""
    names = ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "OPTIMIZATION_CAPABILITIES")
    full_name, architecture, capabilities = (CORE.get_property(device, name) for name in names)
    return {"name": full_name, "architecture": architecture, "capabilities": list(capabilities)}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--device", default="GPU", help="Device whose graphs are reported.")
def main(folder: Path, device: str) -> None:
    """Load a model folder, decode steps, and report compilation and kernels as JSON lines."""
    print_record("device", describe(device))
    core = CoreRecorder(device, lambda compiled: print_record("compiled", asdict(compiled)))
    load_and_step(load_manifest(folder), core, "AUTO" if device == "GPU" else device)
    for name, graph in core.graphs.items():
        print_record("executed", asdict(profile_of(name, graph)))


if __name__ == "__main__":
    main()
