"""A fake GPU: an OpenVINO core that lists GPUs but runs everything on the CPU, in the host's memory."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from florence_tagger.florence.devices import CORE


class Handle:
    """A pointer, as a device's tensors return it."""

    def __init__(self, address: int) -> None:
        self.address = address

    def astype(self, dtype: type) -> str:
        """Return the address in hexadecimal; `dtype` must be `str`."""
        assert dtype is str
        return hex(self.address)


class HostTensor(ov.Tensor):
    """A host tensor with the parameters of a device's tensor."""

    def get_params(self) -> dict[str, Handle]:
        """Return the memory's handle."""
        return {"MEM_HANDLE": Handle(self.data.ctypes.data)}


class HostContext:
    """A device's context in the host's memory; keeps a reference to each array, because views do not."""

    def __init__(self) -> None:
        self._arrays: list[Any] = []

    def create_tensor(self, element_type: Any, shape: Any, properties: dict[str, Any]) -> HostTensor:
        """Return a tensor over the memory at `MEM_HANDLE`, or over new memory of arbitrary content."""
        dtype = element_type.to_dtype()
        if "MEM_HANDLE" in properties:
            size = int(np.prod(list(shape))) * dtype.itemsize
            memory = (ctypes.c_byte * size).from_address(properties["MEM_HANDLE"].address)
            array = np.frombuffer(memory, dtype).reshape(list(shape))
        else:
            array = np.full(list(shape), 77, dtype)  # stands for uninitialized memory
        self._arrays.append(array)
        return HostTensor(array, shared_memory=True)

    def create_host_tensor(self, element_type: Any, shape: Any) -> HostTensor:
        """Return a tensor over new memory."""
        return self.create_tensor(element_type, shape, {})


class FakeCore:
    """An OpenVINO core whose GPUs run on the CPU and refuse to compile the graphs in `refused`."""

    def __init__(self, devices: list[str], refused: tuple[str, ...] = ()) -> None:
        self.available_devices = devices
        self.refused = refused
        self.compiled: list[tuple[str, dict[str, Any]]] = []

    def get_property(self, device: str, name: str) -> Any:
        """Return the CPU's property."""
        return CORE.get_property("CPU", name)

    def get_default_context(self, device: str) -> HostContext:
        """Return a new context of a GPU."""
        assert device.startswith("GPU")
        return HostContext()

    def read_model(self, path: Path) -> Any:
        """Return the graph in a file."""
        return CORE.read_model(path)

    def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
        """Compile a graph for the CPU and record its name, device and properties; RuntimeError if it is refused."""
        graph = graph_name({name for port in model.inputs for name in port.names})
        if device.startswith("GPU") and graph in self.refused:
            raise RuntimeError("Exception from somewhere.cpp:1:\nno kernel for this\n\n")
        if graph:
            self.compiled.append((f"{graph} on {device}", properties))
        return CORE.compile_model(model, "CPU", properties)


def graph_name(inputs: set[str]) -> str:
    """Return the name of the model's graph that has such inputs, or "" for any other graph."""
    characteristic_inputs = {"pixels": "vision", "prompt_embeddings": "encoder", "position_ids": "decoder"}
    return next((graph for name, graph in characteristic_inputs.items() if name in inputs), "")
