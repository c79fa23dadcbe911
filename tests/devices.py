"""A GPU that the CPU plays: an OpenVINO core with devices that are not there, whose memory is the host's."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from florence_tagger.florence.devices import CORE


class Handle:
    """A pointer, as tensors of a device give it."""

    def __init__(self, address: int) -> None:
        self.address = address

    def astype(self, kind: type) -> str:
        assert kind is str
        return hex(self.address)


class HostTensor(ov.Tensor):
    """A tensor of the host with what one of a device has."""

    def get_params(self) -> dict[str, Handle]:
        return {"MEM_HANDLE": Handle(self.data.ctypes.data)}


class HostContext:
    """A device's context whose memory is the host's. What it gave is kept: views do not keep it."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def create_tensor(self, element_type: Any, shape: Any, properties: dict[str, Any]) -> HostTensor:
        dtype = element_type.to_dtype()
        if "MEM_HANDLE" in properties:
            size = int(np.prod(list(shape))) * dtype.itemsize
            memory = (ctypes.c_byte * size).from_address(properties["MEM_HANDLE"].address)
            array = np.frombuffer(memory, dtype).reshape(list(shape))
        else:
            array = np.full(list(shape), 77, dtype)  # what is there by chance
        self.kept.append(array)
        return HostTensor(array, shared_memory=True)

    def create_host_tensor(self, element_type: Any, shape: Any) -> HostTensor:
        return self.create_tensor(element_type, shape, {})


class FakeCore:
    """OpenVINO with a GPU that runs on the CPU, and refuses the graphs it is told to."""

    def __init__(self, devices: list[str], refused: tuple[str, ...] = ()) -> None:
        self.available_devices = devices
        self.refused = refused
        self.compiled: list[tuple[str, dict[str, Any]]] = []

    def get_property(self, device: str, name: str) -> Any:
        return CORE.get_property("CPU", name)

    def get_default_context(self, device: str) -> HostContext:
        assert device.startswith("GPU")
        return HostContext()

    def read_model(self, path: Path) -> Any:
        return CORE.read_model(path)

    def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
        graph = name_of({name for port in model.inputs for name in port.names})
        if device.startswith("GPU") and graph in self.refused:
            raise RuntimeError("Exception from somewhere.cpp:1:\nno kernel for this\n\n")
        if graph:
            self.compiled.append((f"{graph} on {device}", properties))
        return CORE.compile_model(model, "CPU", properties)


def name_of(inputs: set[str]) -> str:
    """Return which of the three graphs has such inputs, "" for another one."""
    known = {"pixels": "vision", "prompt_embeddings": "encoder", "position_ids": "decoder"}
    return next((graph for name, graph in known.items() if name in inputs), "")
