"""Tensors in a GPU's memory: one graph's outputs become another's inputs without leaving the device."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov

USM_DEVICE = {"SHARED_MEM_TYPE": "USM_DEVICE_BUFFER"}  # device memory with a pointer that views can share
USM_HOST = {"SHARED_MEM_TYPE": "USM_HOST_BUFFER"}  # host memory that the device can write to


class DeviceMemory:
    """Memory of a device, for tensors of one element type.

    Args:
        core: OpenVINO's core.
        device: the device's name, such as `GPU.1`.
        element_type: element type of the tensors, f32 or f16.
    """

    def __init__(self, core: Any, device: str, element_type: Any) -> None:
        self.element_type = element_type
        self._context = core.get_default_context(device)

    def empty(self, shape: Sequence[int]) -> Any:
        """Return a new, uninitialized tensor."""
        return self._context.create_tensor(self.element_type, ov.Shape(shape), USM_DEVICE)

    def view(self, tensor: Any, shape: Sequence[int]) -> Any:
        """Return a view of a tensor's first values in another shape.

        The plugin reads and writes the view in place; it would copy a region of a tensor (`RemoteTensor` with begin and
        end) at every inference. The tensor must outlive the view until each infer request that used the view has run
        with another tensor.
        """
        handle = tensor.get_params()["MEM_HANDLE"]
        shared = {"SHARED_MEM_TYPE": "USM_USER_BUFFER", "MEM_HANDLE": handle}
        return self._context.create_tensor(self.element_type, ov.Shape(shape), shared)

    def upload(self, values: Any) -> Any:
        """Copy an array of the host to the device; return a tensor of the device unchanged."""
        if not isinstance(values, np.ndarray):
            return values
        tensor = self.empty(values.shape)
        tensor.copy_from(ov.Tensor(np.ascontiguousarray(values, self.element_type.to_dtype())))
        return tensor

    def download(self, tensor: Any) -> Any:
        """Copy a tensor of the device to a float32 array; return an array unchanged."""
        if isinstance(tensor, np.ndarray):
            return tensor
        host = ov.Tensor(self.element_type, tensor.get_shape())
        tensor.copy_to(host)
        return host.data.astype(np.float32)

    def copy_item(self, source: Any, source_index: int, target: Any, target_index: int) -> None:
        """Copy an item of one tensor's first axis over an item of another's, within the device."""
        item_of(target, target_index).copy_from(item_of(source, source_index))

    def input_from_host(self, element_type: Any, shape: Sequence[int]) -> tuple[Any, Any]:
        """Return a tensor for an input that the device reads in place, and its values as a writable array."""
        tensor = self._context.create_host_tensor(element_type, ov.Shape(shape))
        return tensor, tensor.data

    def output_to_host(self, element_type: Any, shape: Sequence[int]) -> tuple[Any, Any]:
        """Return a tensor for an output that the device writes to the host's memory, and its values as an array.

        For a tensor from `create_host_tensor`, the plugin would copy from an internal tensor, with an additional wait.
        """
        tensor = self._context.create_tensor(element_type, ov.Shape(shape), USM_HOST)
        pointer = int(tensor.get_params()["MEM_HANDLE"].astype(str), 16)
        memory = (ctypes.c_byte * tensor.get_byte_size()).from_address(pointer)
        return tensor, np.frombuffer(memory, element_type.to_dtype()).reshape(shape)


def infer(request: Any) -> None:
    """Run a graph whose tensors are set; `request.infer` would also convert its outputs to Python objects."""
    request.start_async()
    request.wait()


def item_of(tensor: Any, index: int) -> Any:
    """Return an item of a tensor's first axis, as a region that can be copied."""
    shape = list(tensor.get_shape())
    begin, end = [index] + [0] * (len(shape) - 1), [index + 1, *shape[1:]]
    return type(tensor)(tensor, ov.Coordinate(begin), ov.Coordinate(end))
