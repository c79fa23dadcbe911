"""The kernels that OpenVINO's GPU plugin ran for a graph: its runtime model and profile -> counts and moves."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Of the plugin's layer types, those that keep all elements of their first input, and others that compute next to
# nothing: a scatter writes few elements, but to a copy.
KEEPING = ("Reorder", "Permute", "Reshape", "Result")
CHOOSING = (
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
SCATTERING = ("scatter_elements_update", "scatter_nd_update", "scatter_update")
MOVING = (*KEEPING, *CHOOSING, *SCATTERING)
CACHES = ("kv_cache", "read_value")
GIVEN = ("Input", *CACHES)  # what a step does not compute
CACHED_TOKENS = 100  # in the step that is looked at: the middle of a long answer
# More elements in a row than the widest activation that Florence-2-large has in a step, of its feed-forward layers.
LARGE = 4096
BYTES = {"f32": 4, "i32": 4, "i64": 8, "f16": 2, "u8": 1, "i8": 1, "boolean": 1}

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Node:
    """A node of a graph as the plugin runs it.

    Attributes:
        kind: the plugin's layer type.
        kernel: with the type it computes in.
        executed: it ran, and was not optimised away.
        shape: of its output, None for what is known in a step only.
        precision: of its output.
        inputs: the nodes before it, constants left out.
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
        kind: of the nodes that do it.
        source: the kind of node that their elements come from.
        count: how many.
        size: of all, bytes.
    """

    kind: str
    source: str
    count: int
    size: int

    @property
    def is_needless(self) -> bool:
        """Whether a better graph goes without: a change of layout, or a copy of what the step was given.

        The scores of the cache's parts are joined for one softmax and parted again: these are computed in the step.
        """
        return self.kind in KEEPING or self.source in GIVEN


def read_nodes(runtime_model: Any, profile: Sequence[Any]) -> list[Node]:
    """Return the nodes of a graph that was run with its profile on."""
    ran = {one.node_name: one for one in profile}
    return [read_node(op, ran.get(op.get_friendly_name())) for op in runtime_model.get_ordered_ops()]


def read_node(op: Any, ran: Any) -> Node:
    """Return a node of a runtime model, and of the profile, where it is there."""
    facts = op.get_rt_info()
    executed = ran is not None and ran.status.name == "EXECUTED"
    kernel = ran.exec_type if executed else str(facts["primitiveType"].value)
    sizes = op.output(0).get_partial_shape() if op.get_output_size() else ()
    shape = tuple(None if one.is_dynamic else one.get_length() for one in sizes)
    inputs = tuple(port.get_source_output().get_node().get_friendly_name() for port in op.inputs())
    kind, precision = str(facts["layerType"].value), str(facts["outputPrecisions"].value)
    return Node(op.get_friendly_name(), kind, kernel, executed, shape, precision, inputs)


def count_kernels(nodes: Sequence[Node]) -> Counter[tuple[str, str]]:
    """Return how often each kernel ran, by layer type and kernel; inputs, which the host writes, are none."""
    return Counter((node.kind, node.kernel) for node in nodes if node.executed and node.kind != "Input")


def large_moves(nodes: Sequence[Node], given: Mapping[str, Sequence[int]], rows: int) -> list[Move]:
    """Return the large tensors that a step moves, those of one kind together.

    Args:
        given: the shapes of inputs and of other nodes in that step, by their names.
        rows: of the step, which are those of all beams of all pictures.
    """
    sizes = Sizes({node.name: node for node in nodes}, given, rows)
    counts: Counter[tuple[str, str]] = Counter()
    total: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        if node.executed and node.kind in MOVING and sizes.elements(node) > LARGE * rows:
            what = (node.kind, sizes.origin(node).kind)
            counts[what] += 1
            total[what] += sizes.elements(node) * BYTES[node.precision]
    return [Move(*what, count, total[what]) for what, count in counts.items()]


class Sizes:
    """How many elements the nodes of a step have, at most where the plugin does not tell a dimension.

    Args:
        nodes: of the step, by their names.
        given: the shapes of its inputs, and of other nodes where they are known.
        rows: which an unknown first dimension is at most.
    """

    def __init__(self, nodes: Mapping[str, Node], given: Mapping[str, Sequence[int]], rows: int) -> None:
        self._nodes = nodes
        self._given = {name: given[name] for name, node in nodes.items() if name in given and fits(given[name], node)}
        self._rows = rows
        unknown = [(self._given[name], nodes[name].shape) for name in self._given if nodes[name].kind == "Input"]
        self._tokens = max(
            (own for sizes, shape in unknown for own, one in zip(sizes, shape, strict=False) if one is None),
            default=1,
        )

    def source(self, node: Node) -> Node:
        """Return the node whose elements this one has."""
        while node.kind in KEEPING and node.inputs:
            node = self._nodes[node.inputs[0]]
        return node

    def origin(self, node: Node) -> Node:
        """Return the node that computed most elements of this one, or was given them."""
        while node.kind in MOVING and node.inputs:
            node = max((self._nodes[name] for name in node.inputs), key=self.elements)
        return node

    def elements(self, node: Node) -> int:
        """Return how many elements a node's output has."""
        source = self.source(node)
        for known in (node, source):
            if known.name in self._given:
                return math.prod(self._given[known.name])
        inner = CACHED_TOKENS if source.kind in CACHES else self._tokens
        first, *others = source.shape or (1,)
        return math.prod((first or self._rows, *(inner if one is None else one for one in others)))


def fits(shape: Sequence[int], node: Node) -> bool:
    """Return whether a shape may be that of a node's output; the plugin gives some nodes the name of another one."""
    if node.kind == "Input":
        return True
    return len(shape) == len(node.shape) and all(own in (None, one) for own, one in zip(node.shape, shape, strict=True))
