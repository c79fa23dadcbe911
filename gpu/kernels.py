"""Kernels that OpenVINO's GPU plugin ran for a graph: runtime model and profile -> counts of kernels and moves."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The plugin's layer types that output all elements of their first input, and others that compute almost nothing. A
# scatter writes few elements, but to a copy of its first input.
LAYOUT_KINDS = ("Reorder", "Permute", "Reshape", "Result")
SELECTING_KINDS = (
    "Concat",
    "Crop",
    "Gather",
    "Pad",
    "StridedSlice",
    "Tile",
    "broadcast",
    "gather_elements",
    "select",
    "slice",
)
SCATTERING_KINDS = ("scatter_elements_update", "scatter_nd_update", "scatter_update")
MOVING_KINDS = (*LAYOUT_KINDS, *SELECTING_KINDS, *SCATTERING_KINDS)
CACHE_KINDS = ("kv_cache", "read_value")
INPUT_KINDS = ("Input", *CACHE_KINDS)  # values that a step does not compute
CACHED_TOKENS = 100  # in the measured step, which is in the middle of a long answer
# Elements of a row; the widest activations of a step, in the feed-forward layers of Florence-2-large, are not larger.
LARGE = 4096
BYTES = {"f32": 4, "i32": 4, "i64": 8, "f16": 2, "u8": 1, "i8": 1, "boolean": 1}

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Node:
    """Node of a graph as executed by the plugin.

    Attributes:
        name: name of the node.
        kind: the plugin's layer type.
        kernel: kernel, with the type that it computes in.
        executed: True if the node ran, False if it was optimized away.
        shape: shape of the output, None for dimensions that are known only during a step.
        precision: element type of the output.
        inputs: names of the nodes before it, without constants.
    """

    name: str
    kind: str
    kernel: str
    executed: bool
    shape: Shape
    precision: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Move:
    """Large tensors that a step copies or converts without computing.

    Attributes:
        kind: layer type of the nodes that move them.
        source: layer type of the node that the elements come from.
        count: number of tensors.
        size: total size, bytes.
    """

    kind: str
    source: str
    count: int
    size: int

    @property
    def is_needless(self) -> bool:
        """True if a better graph can avoid the move: a change of layout, or a copy of an input of the step.

        The scores of the cache's parts, which are joined for one softmax and split again, are computed in the step.
        """
        return self.kind in LAYOUT_KINDS or self.source in INPUT_KINDS


def read_nodes(runtime_model: Any, profile: Sequence[Any]) -> list[Node]:
    """Return the nodes of a graph that ran with profiling enabled."""
    records = {record.node_name: record for record in profile}
    return [read_node(op, records.get(op.get_friendly_name())) for op in runtime_model.get_ordered_ops()]


def read_node(op: Any, record: Any) -> Node:
    """Return a node of a runtime model, with its profiling record, None if it has none."""
    info = op.get_rt_info()
    executed = record is not None and record.status.name == "EXECUTED"
    kernel = record.exec_type if executed else str(info["primitiveType"].value)
    dimensions = op.output(0).get_partial_shape() if op.get_output_size() else ()
    shape = tuple(None if dimension.is_dynamic else dimension.get_length() for dimension in dimensions)
    inputs = tuple(port.get_source_output().get_node().get_friendly_name() for port in op.inputs())
    kind, precision = str(info["layerType"].value), str(info["outputPrecisions"].value)
    return Node(op.get_friendly_name(), kind, kernel, executed, shape, precision, inputs)


def count_kernels(nodes: Sequence[Node]) -> Counter[tuple[str, str]]:
    """Return the number of runs of each kernel by layer type and kernel, without inputs, which the host writes."""
    return Counter((node.kind, node.kernel) for node in nodes if node.executed and node.kind != "Input")


def large_moves(nodes: Sequence[Node], shapes: Mapping[str, Sequence[int]], rows: int) -> list[Move]:
    """Return the large tensors that a step moves, grouped by kind and source.

    Args:
        nodes: nodes of the step.
        shapes: shapes of inputs and of other nodes in the step, by name.
        rows: number of rows of the step: all beams of all pictures.
    """
    sizes = Sizes({node.name: node for node in nodes}, shapes, rows)
    counts: Counter[tuple[str, str]] = Counter()
    total: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        if node.executed and node.kind in MOVING_KINDS and sizes.elements(node) > LARGE * rows:
            key = (node.kind, sizes.origin(node).kind)
            counts[key] += 1
            total[key] += sizes.elements(node) * BYTES[node.precision]
    return [Move(*key, count, total[key]) for key, count in counts.items()]


class Sizes:
    """Numbers of elements of a step's nodes; upper bounds if the plugin does not report a dimension.

    Args:
        nodes: nodes of the step by name.
        shapes: shapes of its inputs, and known shapes of other nodes, by name.
        rows: upper bound of an unknown first dimension.
    """

    def __init__(self, nodes: Mapping[str, Node], shapes: Mapping[str, Sequence[int]], rows: int) -> None:
        self._nodes = nodes
        self._shapes = {
            name: shapes[name] for name, node in nodes.items() if name in shapes and fits(shapes[name], node)
        }
        self._rows = rows
        inputs = [(self._shapes[name], nodes[name].shape) for name in self._shapes if nodes[name].kind == "Input"]
        self._tokens = max(
            (
                length
                for shape, declared in inputs
                for length, dimension in zip(shape, declared, strict=False)
                if dimension is None
            ),
            default=1,
        )

    def source(self, node: Node) -> Node:
        """Return the node that the elements of `node` come from unchanged."""
        while node.kind in LAYOUT_KINDS and node.inputs:
            node = self._nodes[node.inputs[0]]
        return node

    def origin(self, node: Node) -> Node:
        """Return the node that computes, or the input that holds, most elements of `node`."""
        while node.kind in MOVING_KINDS and node.inputs:
            node = max((self._nodes[name] for name in node.inputs), key=self.elements)
        return node

    def elements(self, node: Node) -> int:
        """Return the number of elements of a node's output."""
        source = self.source(node)
        for known in (node, source):
            if known.name in self._shapes:
                return math.prod(self._shapes[known.name])
        tokens = CACHED_TOKENS if source.kind in CACHE_KINDS else self._tokens
        first, *others = source.shape or (1,)
        return math.prod((first or self._rows, *(tokens if length is None else length for length in others)))


def fits(shape: Sequence[int], node: Node) -> bool:
    """Return True if a node's output can have the shape; the plugin gives some nodes the name of another node."""
    if node.kind == "Input":
        return True
    if len(shape) != len(node.shape):
        return False
    return all(declared in (None, length) for declared, length in zip(node.shape, shape, strict=True))
