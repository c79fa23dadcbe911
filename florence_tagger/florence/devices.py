"""Where the graphs run: the choice of device, and compiling for it. With `runtime` what serves on OpenVINO."""

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

# The one core of the process, kept to its end. The CPU plugin gives the thread that loads it a stack for its signals,
# and frees that with its core, be it in another thread or after a later core, whose end then leads back to it. The next
# signal that Python handles in such a thread, a SIGTERM or a SIGCHLD, would end the process with a segmentation fault
# (src/plugins/intel_cpu/src/sigstack_manager.cpp of OpenVINO).
CORE: Any = ov.Core()


@dataclass(frozen=True)
class Workaround:
    """Something that a plugin of OpenVINO gets wrong, and what is done instead.

    Attributes:
        name: of the graph in `gpu/plugin_faults.py` that shows it; `tests/test_gpu.py` says when it is gone.
        seen_in: the newest version of OpenVINO that had it.
    """

    name: str
    seen_in: str
    fault: str
    instead: str


# What is done for the GPU plugin's sake: for the decoder in `packed_graph`, `packed_decoder` and `device_memory`, for
# calibrated vision graphs in conversion; `quantization` refuses those that were made without it.
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
        "the decoder has no states, and begins anew with an empty tensor",
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
        "ACTIVATIONS_SCALE_FACTOR does not compile at f16 where activations are quantised",
        "a calibrated graph goes without the option",
    ),
    Workaround(
        "ranges_by_column",
        "2026.4.1",
        "depthwise weights that are quantised by kernel column give NaN",
        "depthwise convolutions are not calibrated, and their int8 weights have one range a channel",
    ),
    Workaround(
        "quantized_batch",
        "2026.4.1",
        "a product of quantised activations in a batch of 16 or more is wrong",
        "quantised linear layers take the tokens of all windows as one sequence",
    ),
)


@dataclass(frozen=True)
class RuntimeOptions:
    """Where and how to run.

    Attributes:
        device: "AUTO" is the GPU if OpenVINO lists one, else the CPU, each graph falling back to the CPU by itself;
            a device's name is that device or an error.
        precision: OpenVINO's inference precision hint for all graphs, of which "f32" means an f32 cache as well; "" for
            the device's best, see `Graphs`.
        threads: of inference, 0 for OpenVINO's choice.
        cache_dir: for compiled models, None for no cache.
        pictures: most that are decoded together.
    """

    device: str = "AUTO"
    precision: str = ""
    threads: int = 0
    cache_dir: Path | None = None
    pictures: int = 8


def choose_device(wanted: str, available: Sequence[str]) -> tuple[str, ...]:
    """The devices to try in turn: `wanted` if it is among the `available` ones, for "AUTO" the GPU and the CPU.

    Raises:
        ModelError: the device is not there.
    """
    if wanted == "AUTO":
        return ("GPU", "CPU") if any(name.startswith("GPU") for name in available) else ("CPU",)
    # OpenVINO calls a lone device GPU and the first of several GPU.0, and takes either name for both.
    known = {*available, *(name.partition(".")[0] for name in available), *(f"{name}.0" for name in available)}
    if wanted not in known:
        raise ModelError(f"Device {wanted} is not there; OpenVINO finds {', '.join(available) or 'none'}.")
    return (wanted,)


@dataclass(frozen=True)
class Device:
    """A device as OpenVINO describes it: its name, the hardware's, and the precisions and features it has."""

    name: str
    full_name: str
    capabilities: tuple[str, ...]


def find_devices(core: Any = CORE) -> list[Device]:
    """What OpenVINO sees on this machine."""
    return [describe_device(core, name) for name in core.available_devices]


def describe_device(core: Any, name: str) -> Device:
    """A device by its name; one with a broken driver has that for the hardware's name."""
    try:
        capabilities = tuple(str(one) for one in core.get_property(name, "OPTIMIZATION_CAPABILITIES"))
        return Device(name, str(core.get_property(name, "FULL_DEVICE_NAME")), capabilities)
    except RuntimeError as exc:
        logger.warning("%s can't be asked: %s", name, reason_of(exc))
        return Device(name, f"can't be asked: {DRIVER_ERROR}", ())


@dataclass(frozen=True)
class Compiled:
    """A graph on its device.

    Attributes:
        model: as OpenVINO compiled it.
        request: the one that runs it.
        memory: the device's own; None on the CPU, whose memory is the host's.
    """

    model: Any
    request: Any
    memory: DeviceMemory | None

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a graph of static shape on arrays or tensors of its device, and return its outputs by name.

        They are new: float32 arrays, or tensors of the device.
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


# Makes a graph for a device's memory, or for the CPU where there is none.
GraphMaker = Callable[[DeviceMemory | None], Any]


class Compiler:
    """Reads and compiles graphs as the options say, and remembers what each one got."""

    def __init__(self, options: RuntimeOptions, core: Any = CORE) -> None:
        self._core = core
        self._devices_to_try = choose_device(options.device, self._core.available_devices)
        self._options = options
        self.devices: dict[str, str] = {}
        self.precisions: dict[str, str] = {}

    @cached_property
    def memory(self) -> DeviceMemory | None:
        """The memory of the device that is tried first; None where that is the CPU."""
        device = self._devices_to_try[0]
        element_type = ov.Type.f32 if self._options.precision == "f32" else ov.Type.f16
        return None if device == "CPU" else DeviceMemory(self._core, device, element_type)

    def read(self, path: Path) -> Any:
        """The graph in an IR file; ModelError where it can't be read."""
        try:
            return self._core.read_model(path)
        except RuntimeError as exc:
            logger.warning("%s can't be read: %s", path, reason_of(exc))
            raise ModelError(f"{path} can't be read: it is no graph, or none that this OpenVINO knows.") from exc

    def compile(self, make: GraphMaker, name: str, cpu_precision: str = "") -> Compiled:
        """Compile the graph `name` for the first device that takes it.

        Args:
            make: makes it for the device.
            cpu_precision: the inference precision on the CPU where the options name none, "" for the CPU's best.

        Raises:
            ModelError: none does.
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

    def compile_beside(self, graph: Any, device: str) -> Any:
        """Compile a graph that moves values within a device, and return an infer request of it."""
        return self._core.compile_model(graph, device, self._properties(device, "")).create_infer_request()

    def compile_lookup(self, model: Any) -> Any:
        """A graph that looks up rows of a table, which the CPU does as they are stored, wherever the model runs."""
        return self._core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def _properties(self, device: str, cpu_precision: str) -> dict[str, Any]:
        """What OpenVINO is told for a graph on a device."""
        options, on_cpu = self._options, device == "CPU"
        precision = options.precision or (cpu_precision if on_cpu else "")
        properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if precision:
            properties["INFERENCE_PRECISION_HINT"] = precision
        if precision == "f32" and on_cpu:
            properties["KV_CACHE_PRECISION"] = "f32"  # which would be u8 otherwise
        if options.threads and on_cpu:
            properties["INFERENCE_NUM_THREADS"] = options.threads
        if options.cache_dir:
            properties["CACHE_DIR"] = str(options.cache_dir)
        return properties


def as_tensor(value: Any) -> Any:
    """Return an array as a tensor, which shares its memory if that may be written to, or a tensor as it is."""
    return ov.Tensor(value, shared_memory=value.flags.writeable) if isinstance(value, np.ndarray) else value


def reason_of(exc: Exception) -> str:
    """The last line of an OpenVINO error, for the log: the ones before it are places in its source code."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else type(exc).__name__
