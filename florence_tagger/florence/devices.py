"""Where the graphs run: the choice of device, and compiling for it. With `runtime` what serves on OpenVINO."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from florence_tagger.errors import ModelError

logger = logging.getLogger(__name__)

# The one core of the process, kept to its end. The CPU plugin gives the thread that loads it a stack for its signals,
# and frees that with its core, be it in another thread or after a later core, whose end then leads back to it. The next
# signal that Python handles in such a thread, a SIGTERM or a SIGCHLD, would end the process with a segmentation fault
# (src/plugins/intel_cpu/src/sigstack_manager.cpp of OpenVINO).
CORE: Any = ov.Core()


@dataclass(frozen=True)
class RuntimeOptions:
    """Where and how to run.

    Attributes:
        device: "AUTO" is the GPU if OpenVINO lists one, else the CPU, each graph falling back to the CPU by itself;
            a device's name is that device or an error.
        precision: OpenVINO's inference precision hint for all graphs, of which "f32" means an f32 cache as well; "" for
            the device's best, see `Runtime`.
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
    """A device by its name; one with a broken driver has the driver's error for a name."""
    try:
        capabilities = tuple(str(one) for one in core.get_property(name, "OPTIMIZATION_CAPABILITIES"))
        return Device(name, str(core.get_property(name, "FULL_DEVICE_NAME")), capabilities)
    except RuntimeError as exc:
        return Device(name, f"can't be asked: {reason_of(exc)}", ())


class Compiler:
    """Reads and compiles graphs as the options say, and remembers what each one got."""

    def __init__(self, options: RuntimeOptions, core: Any = CORE) -> None:
        self._core = core
        self._devices_to_try = choose_device(options.device, self._core.available_devices)
        self._options = options
        self.devices: dict[str, str] = {}
        self.precisions: dict[str, str] = {}

    def read(self, path: Path) -> Any:
        """The graph in an IR file; ModelError where it can't be read."""
        try:
            return self._core.read_model(path)
        except RuntimeError as exc:
            raise ModelError(f"{path} can't be read: {reason_of(exc)}") from exc

    def compile(self, model: Any, name: str, cpu_precision: str = "") -> Any:
        """The graph `name`, compiled for the first device that takes it; ModelError where none does.

        Args:
            cpu_precision: the inference precision on the CPU where the options name none, "" for the CPU's best.
        """
        failures = []
        for device in self._devices_to_try:
            try:
                compiled = self._core.compile_model(model, device, self._properties(device, cpu_precision))
            except RuntimeError as exc:
                failures.append(f"{device}: {reason_of(exc)}")
                logger.warning("%s does not compile on %s: %s", name, device, reason_of(exc))
            else:
                self.devices[name] = device
                self.precisions[name] = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
                return compiled
        raise ModelError(f"The {name} compiles on no device. {' '.join(failures)}")

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
        if precision == "f32":
            properties["KV_CACHE_PRECISION"] = "f32"  # which would be u8 otherwise
        elif not on_cpu:
            properties["KV_CACHE_PRECISION"] = "f16"  # GPUs can't show a cache of i8, and ours is cut now and then
        if options.threads and on_cpu:
            properties["INFERENCE_NUM_THREADS"] = options.threads
        if options.cache_dir:
            properties["CACHE_DIR"] = str(options.cache_dir)
        return properties


def reason_of(exc: Exception) -> str:
    """The last line of an OpenVINO error: the ones before it are places in its source code."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else type(exc).__name__
