"""Choice of the device, and compilation of graphs for it with OpenVINO."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from florence_tagger.errors import DeviceError, ModelError
from florence_tagger.florence.device_memory import DeviceMemory, infer

logger = logging.getLogger(__name__)

DRIVER_ERROR = "its driver reports an error, and the log has it"

# The only core of the process, kept until the process ends. The CPU plugin sets an alternate signal stack for the
# thread that loads it and frees the stack with its core, even in another thread or after a later core, whose
# destruction then restores the freed stack. The next signal that Python handles in such a thread, a SIGTERM or a
# SIGCHLD, would end the process with a segmentation fault (src/plugins/intel_cpu/src/sigstack_manager.cpp of OpenVINO).
CORE: Any = ov.Core()


@dataclass(frozen=True)
class Workaround:
    """Fault of an OpenVINO plugin, and the workaround for it.

    Attributes:
        name: name of the graph in `gpu/reproduce.py` that shows the fault; `tests/test_gpu.py` fails once it is fixed.
        seen_in: newest version of OpenVINO that has the fault.
        fault: description of the fault.
        instead: description of the workaround.
    """

    name: str
    seen_in: str
    fault: str
    instead: str


# Workarounds for the GPU plugin: for the decoder in `packed_graph`, `packed_decoder` and `device_memory`, for
# calibrated vision graphs in conversion; `quantization` rejects vision graphs that were converted without them.
WORKAROUNDS = (
    Workaround(
        "rows_shrink",
        "2026.4.1",
        "a state that is reordered by index is read and written out of bounds once it has fewer rows",
        "the decoder has no states, and its cache is never reordered",
    ),
    Workaround(
        "rows_grow",
        "2026.4.1",
        "such a state has wrong values once its rows grow after several steps of one row",
        "the decoder has no states, and its cache is never reordered",
    ),
    Workaround(
        "state_is_set",
        "2026.4.1",
        "a state that is set is read wrongly by later steps that reorder it",
        "slots that are not in use any more are dropped by a graph, not by setting a state",
    ),
    Workaround(
        "reset_and_the_same_shapes",
        "2026.4.1",
        "a step of the shapes of the one before fails after a reset of the state",
        "the decoder has no states, and starts with an empty tensor",
    ),
    Workaround(
        "bans_add_up",
        "2026.4.1",
        "at f16 ScatterElementsUpdate adds up in fixed point, and -inf becomes 32,768",
        "bans are written into a mask and not added to logits",
    ),
    Workaround(
        "gather_into_device_memory",
        "2026.4.1",
        "a Gather that ends a graph gives an output in the device's memory a wrong shape",
        "graphs whose outputs are in the device's memory end in a Concat",
    ),
    Workaround(
        "activations_scaled",
        "2026.4.1",
        "ACTIVATIONS_SCALE_FACTOR does not compile at f16 if activations are quantized",
        "a calibrated graph goes without the option",
    ),
    Workaround(
        "ranges_by_column",
        "2026.4.1",
        "depthwise weights that are quantized by kernel column give NaN",
        "depthwise convolutions are not calibrated, and their int8 weights have one range a channel",
    ),
    Workaround(
        "quantized_batch",
        "2026.4.1",
        "a product of quantized activations in a batch of 16 or more is wrong",
        "quantized linear layers take the tokens of all windows as one sequence",
    ),
)


@dataclass(frozen=True)
class RuntimeOptions:
    """Options of compilation and inference.

    Attributes:
        device: "AUTO" selects the GPU if OpenVINO lists one, otherwise the CPU, and each graph falls back to the CPU
            individually; a device's name selects that device only.
        precision: OpenVINO's inference precision hint for all graphs; "f32" implies an f32 cache; "" selects the
            default of the device, see `Graphs`.
        threads: number of inference threads, 0 for OpenVINO's default.
        cache_dir: folder for compiled models, None for no cache.
        max_pictures: maximum number of pictures that are decoded together.
    """

    device: str = "AUTO"
    precision: str = ""
    threads: int = 0
    cache_dir: Path | None = None
    max_pictures: int = 8


def choose_device(requested: str, available: Sequence[str]) -> tuple[str, ...]:
    """Return the devices to try in order: the requested one, or for "AUTO" the GPU, if available, and the CPU.

    Raises:
        ModelError: the requested device is not available.
    """
    if requested == "AUTO":
        return ("GPU", "CPU") if any(name.startswith("GPU") for name in available) else ("CPU",)
    # OpenVINO names a single device GPU and the first of several GPU.0, and accepts either name for both.
    known = {*available, *(name.partition(".")[0] for name in available), *(f"{name}.0" for name in available)}
    if requested not in known:
        raise ModelError(f"Device {requested} is not there; OpenVINO finds {', '.join(available) or 'none'}.")
    return (requested,)


@dataclass(frozen=True)
class Device:
    """Device as reported by OpenVINO.

    Attributes:
        name: OpenVINO's name of the device.
        full_name: name of the hardware.
        capabilities: supported precisions and features.
    """

    name: str
    full_name: str
    capabilities: tuple[str, ...]


def find_devices(core: Any = CORE) -> list[Device]:
    """Return the devices of this machine that OpenVINO finds."""
    return [describe_device(core, name) for name in core.available_devices]


def describe_device(core: Any, name: str) -> Device:
    """Return a device by its name; if its driver fails, the hardware's name is a note of the failure."""
    try:
        capabilities = tuple(str(capability) for capability in core.get_property(name, "OPTIMIZATION_CAPABILITIES"))
        return Device(name, str(core.get_property(name, "FULL_DEVICE_NAME")), capabilities)
    except RuntimeError as exc:
        logger.warning("%s can't be asked: %s", name, reason_of(exc))
        return Device(name, f"can't be asked: {DRIVER_ERROR}", ())


@dataclass(frozen=True)
class Compiled:
    """Compiled graph.

    Attributes:
        model: OpenVINO's compiled model.
        request: infer request that runs the model.
        memory: memory of the device; None on the CPU, which uses host memory.
    """

    model: Any
    request: Any
    memory: DeviceMemory | None

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a graph of static shape on arrays or tensors of its device, and return its outputs by name.

        Returns:
            New float32 arrays on the CPU, otherwise new tensors of the device.
        """
        for name, value in inputs.items():
            self.request.set_tensor(name, as_tensor(value))
        ports = {port.get_any_name(): port for port in self.model.outputs}
        if self.memory is None:
            self.request.infer()
            return {name: self.request.get_tensor(port).data.copy() for name, port in ports.items()}
        outputs = {name: self.memory.empty(port.shape) for name, port in ports.items()}
        for name, tensor in outputs.items():
            self.request.set_tensor(name, tensor)
        infer(self.request)
        return outputs


# Builds a graph for a device with separate memory, or for the CPU (None).
GraphMaker = Callable[[DeviceMemory | None], Any]


class Compiler:
    """Reader and compiler of graphs.

    Args:
        options: options of compilation and inference.
        core: OpenVINO's core.

    Attributes:
        devices: device of each compiled graph by name.
        precisions: inference precision of each compiled graph by name.
    """

    def __init__(self, options: RuntimeOptions, core: Any = CORE) -> None:
        self._core = core
        self._devices_to_try = choose_device(options.device, self._core.available_devices)
        self._options = options
        self.devices: dict[str, str] = {}
        self.precisions: dict[str, str] = {}

    @cached_property
    def memory(self) -> DeviceMemory | None:
        """Memory of the device that is tried first; None for the CPU."""
        device = self._devices_to_try[0]
        element_type = ov.Type.f32 if self._options.precision == "f32" else ov.Type.f16
        return None if device == "CPU" else DeviceMemory(self._core, device, element_type)

    def read(self, path: Path) -> Any:
        """Return the graph of an IR file.

        Raises:
            ModelError: the file can't be read.
        """
        try:
            return self._core.read_model(path)
        except RuntimeError as exc:
            logger.warning("%s can't be read: %s", path, reason_of(exc))
            raise ModelError(f"{path} can't be read: it is no graph, or none that this OpenVINO knows.") from exc

    def compile(self, make: GraphMaker, name: str, cpu_precision: str = "") -> Compiled:
        """Compile a graph for the first device that accepts it.

        Args:
            make: function that builds the graph for a device.
            name: name of the graph.
            cpu_precision: inference precision on the CPU if the options set none, "" for the CPU's default.

        Raises:
            ModelError: no device accepts the graph.
        """
        refusals = []
        for device in self._devices_to_try:
            memory = None if device == "CPU" else self.memory
            try:
                model = self._core.compile_model(make(memory), device, self._properties(device, cpu_precision))
            except DeviceError as exc:
                logger.warning("%s does not compile on %s: %s", name, device, exc)
                refusals.append(str(exc))
            except RuntimeError as exc:
                logger.warning("%s does not compile on %s: %s", name, device, reason_of(exc))
            else:
                self.devices[name] = device
                self.precisions[name] = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
                return Compiled(model, model.create_infer_request(), memory)
        tried = ", ".join(self._devices_to_try)
        refusals = refusals or [f"The {name} compiles on no device that was tried ({tried}); the log says why."]
        raise ModelError(" ".join(refusals))

    def compile_request(self, graph: Any, device: str) -> Any:
        """Compile a graph that moves values within `device`, and return its infer request."""
        return self._core.compile_model(graph, device, self._properties(device, "")).create_infer_request()

    def compile_lookup(self, model: Any) -> Any:
        """Compile a graph that looks up rows of a table; it runs on the CPU, which reads them in their stored type."""
        return self._core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def _properties(self, device: str, cpu_precision: str) -> dict[str, Any]:
        """Return OpenVINO's compilation properties for a graph on a device."""
        options, on_cpu = self._options, device == "CPU"
        precision = options.precision or (cpu_precision if on_cpu else "")
        properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if precision:
            properties["INFERENCE_PRECISION_HINT"] = precision
        if precision == "f32" and on_cpu:
            properties["KV_CACHE_PRECISION"] = "f32"  # the default is u8
        if options.threads and on_cpu:
            properties["INFERENCE_NUM_THREADS"] = options.threads
        if options.cache_dir:
            properties["CACHE_DIR"] = str(options.cache_dir)
        return properties


def as_tensor(value: Any) -> Any:
    """Return an array as a tensor, which shares the array's memory if it is writable; return a tensor unchanged."""
    return ov.Tensor(value, shared_memory=value.flags.writeable) if isinstance(value, np.ndarray) else value


def reason_of(exc: Exception) -> str:
    """Return the last line of an OpenVINO error for the log; the lines before it are source locations."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else type(exc).__name__
