"""Loads a model folder as the service does and decodes a step: JSON lines of what the device's compiler made of it.

`python -m gpu.loading FOLDER` is run in a process of its own for each folder and chip. The service's own `Graphs`
makes the graphs and runs them; what it asks OpenVINO's core for goes through `CoreRecorder`, so that nothing here
knows how.
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
from gpu.compilation import BEAMS, PICTURES, Compiled, Ran
from gpu.kernels import CACHED_TOKENS, count_kernels, large_moves, read_nodes

PROMPT_TOKENS = 13  # of the question for all objects, by the published tokenizer
OUTLINED_BYTES = 4096  # shapes and bounds are constants, too, but small
PROFILED = {"PERF_COUNT": True}


class RecordedGraph:
    """A compiled graph that keeps the last request made of it; all else is OpenVINO's.

    Attributes:
        request: the last one.
        outline: the graph before it was compiled, without its weights.
    """

    def __init__(self, compiled: Any, outline: Any) -> None:
        self._compiled = compiled
        self.request: Any = None
        self.outline = outline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)

    def create_infer_request(self) -> Any:
        """Return a request, and keep it."""
        self.request = self._compiled.create_infer_request()
        return self.request


class CoreRecorder:
    """OpenVINO's core, but that it reports what it compiles for a device.

    Args:
        device: whose graphs are reported, and profiled when they are run.
        report: of each graph.
    """

    def __init__(self, device: str, report: Callable[[Compiled], None]) -> None:
        self._device = device
        self._report = report
        self.graphs: dict[str, RecordedGraph] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(CORE, name)

    def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
        """Compile a graph; one for another device is reported by its name alone."""
        name = model.get_friendly_name()
        if device != self._device:
            self._report(Compiled(name, device, 0, 0))
            return CORE.compile_model(model, device, properties)
        reset_peak()
        started = time.process_time()
        try:
            compiled = CORE.compile_model(model, device, properties | PROFILED)
        except RuntimeError as exc:
            self._report(Compiled(name, device, time.process_time() - started, peak_mb(), error=reason_of(exc)))
            raise
        seconds, peak = time.process_time() - started, peak_mb()
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        unsupported = unsupported_by(device, model)
        self._report(Compiled(name, device, seconds, peak, device_mb(device), precision, unsupported))
        self.graphs[name] = RecordedGraph(compiled, outline_of(model))
        return self.graphs[name]


def outline_of(model: Any) -> Any:
    """Return a copy of a graph with inputs in the place of weights, which would be kept in memory otherwise."""
    copy = model.clone()
    for op in copy.get_ops():
        if op.get_type_name() == "Constant" and op.get_byte_size() > OUTLINED_BYTES:
            weights = ov.op.Parameter(op.get_element_type(), op.get_output_partial_shape(0))
            op.output(0).replace(weights.output(0))
            copy.add_parameters([weights])
    return copy


def shapes_in(outline: Any, inputs: Sequence[Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a graph's nodes by their names, where inputs of these shapes tell them."""
    outline.reshape(dict(zip(outline.inputs, map(ov.PartialShape, map(list, inputs)), strict=False)))
    ops = [op for op in outline.get_ops() if op.get_output_size() and op.get_output_partial_shape(0).is_static]
    return {op.get_friendly_name(): tuple(op.get_output_shape(0)) for op in ops}


def unsupported_by(device: str, model: Any) -> tuple[str, ...]:
    """Return the operations of a graph that a device does not take."""
    taken = CORE.query_model(model, device)
    return tuple(op.get_friendly_name() for op in model.get_ops() if op.get_friendly_name() not in taken)


def reset_peak() -> None:
    """Begin anew with the kernel's record of this process's peak (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Return the most memory that this process had since the last reset, MB."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def device_mb(device: str) -> float:
    """Return the memory that a device holds, MB, 0 where it does not say."""
    if not device.startswith("GPU"):
        return 0.0
    held: dict[str, int] = CORE.get_property(device, "GPU_MEMORY_STATISTICS")
    return sum(held.values()) / 1e6


def load_and_step(folder: ModelManifest, core: CoreRecorder, device: str) -> None:
    """Load a folder as the service does, and decode steps of pictures; what they say does not matter."""
    runtime = Graphs(folder, RuntimeOptions(device, pictures=PICTURES), core)
    attended = runtime.encode(np.zeros((*folder.image_size, 3), np.uint8), (0,) * PROMPT_TOKENS)
    for _ in range(PICTURES):
        runtime.decoder.add(attended)
    for position in range(CACHED_TOKENS):
        rows = np.zeros(BEAMS if position else 1, np.int64)
        query = StepInput(rows, rows, position, (np.array([0]),) * len(rows))
        runtime.decoder.step([query] * PICTURES)


def profile_of(name: str, graph: RecordedGraph) -> Ran:
    """Return which kernels a graph ran last, and what it moved."""
    request = graph.request
    nodes = read_nodes(graph.get_runtime_model(), request.get_profiling_info())
    inputs = [tuple(request.get_tensor(port).get_shape()) for port in graph.inputs]
    names = [port.get_node().get_friendly_name() for port in graph.inputs]
    given = shapes_in(graph.outline, inputs) | dict(zip(names, inputs, strict=True))
    kernels = tuple((kind, kernel, count) for (kind, kernel), count in sorted(count_kernels(nodes).items()))
    return Ran(name, kernels, tuple(large_moves(nodes, given, PICTURES * BEAMS)))


def tell(kind: str, facts: dict[str, Any]) -> None:
    """Print a line that `gpu.compile` reads, at once: the process may be ended."""
    click.echo(json.dumps({kind: facts}))


def describe(device: str) -> dict[str, Any]:
    """Return what OpenVINO says of a device."""
    names = ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "OPTIMIZATION_CAPABILITIES")
    full_name, architecture, capabilities = (CORE.get_property(device, name) for name in names)
    return {"name": full_name, "architecture": architecture, "capabilities": list(capabilities)}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--device", default="GPU", help="Whose graphs are reported.")
def main(folder: Path, device: str) -> None:
    """Loads a model folder, decodes a step and reports it as lines of JSON."""
    tell("device", describe(device))
    core = CoreRecorder(device, lambda compiled: tell("compiled", asdict(compiled)))
    load_and_step(load_manifest(folder), core, "AUTO" if device == "GPU" else device)
    for name, graph in core.graphs.items():
        tell("ran", asdict(profile_of(name, graph)))


if __name__ == "__main__":
    main()
