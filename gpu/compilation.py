"""What came of compiling a model for a chip, as the process that did it reports it in lines of JSON."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpu.kernels import Move

GRAPHS = ("vision", "encoder", "decoder")
PICTURES, BEAMS = 8, 3  # of the decoder's step that is looked at


@dataclass(frozen=True)
class Compiled:
    """A graph, compiled or refused.

    Attributes:
        seconds: of all threads on their processors, which other programs have no part in.
        peak_mb: most memory the process had meanwhile.
        device_mb: memory that the device holds then for all graphs; 0 where it does not say.
        precision: that it computes in.
        unsupported: operations that the device does not take.
        error: why it does not compile, "" where it does.
    """

    graph: str
    device: str
    seconds: float
    peak_mb: float
    device_mb: float = 0
    precision: str = ""
    unsupported: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Ran:
    """A graph that was run: its kernels, (layer type, kernel, how often), and the large tensors that it moved."""

    graph: str
    kernels: tuple[tuple[str, str, int], ...]
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Result:
    """What came of a model on a chip.

    Attributes:
        chip: its name.
        model: the name of the variant.
        device: what OpenVINO says of the chip: name, architecture, capabilities; empty where it was not asked.
        compiled: the graphs in the order in which they were compiled, the ones that were refused as well.
        ran: the graphs that were run on the chip.
        failure: why the process did not come to its end, "" where it did.
    """

    chip: str
    model: str
    device: dict[str, Any]
    compiled: tuple[Compiled, ...]
    ran: tuple[Ran, ...]
    failure: str = ""


def read_result(chip: str, model: str, lines: Iterable[str], failure: str) -> Result:
    """Return what the lines say that a process printed until its end."""
    told: dict[str, list[Any]] = defaultdict(list)
    for line in lines:
        ((kind, facts),) = json.loads(line).items()
        told[kind].append(facts)
    compiled = tuple(Compiled(**one | {"unsupported": tuple(one["unsupported"])}) for one in told["compiled"])
    return Result(chip, model, next(iter(told["device"]), {}), compiled, tuple(map(read_ran, told["ran"])), failure)


def read_ran(facts: dict[str, Any]) -> Ran:
    """Return a graph that was run."""
    kernels = tuple((kind, kernel, count) for kind, kernel, count in facts["kernels"])
    return Ran(facts["graph"], kernels, tuple(Move(**move) for move in facts["moves"]))
