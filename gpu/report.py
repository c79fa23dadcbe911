"""Results of all models on all chips: tables in Markdown, and findings."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from gpu.compilation import BEAMS, GRAPHS, PICTURES, CompiledGraph, ExecutedGraph, Result
from gpu.kernels import CACHED_TOKENS, LARGE, Move
from gpu.models import Variant
from gpu.simulation import Chip

BEGIN, END = "<!-- compiled: made by `make gpu-compile` -->\n", "<!-- end of compiled -->\n"
ATTENTION = ("scaled_dot_product_attention", "SoftMax")
PRODUCTS = ("FullyConnected", "Gemm")
FAMILIES = {"attention": ATTENTION, "products": PRODUCTS, "convolutions": ("Convolution",)}
XMX = "GPU_HW_MATMUL"
# Marks in the plugin's names of general, slow kernels, and of kernels that run on the host in the middle of a graph.
REFERENCE, HOST = "_ref", "_cpu_impl"
TIMES = (
    "Seconds of CPU time to compile vision + encoder + decoder, the most memory that the process had, and what the "
    "three then hold on the device; `CPU` is where a graph fell back to:"
)
KERNELS = (
    "Kernels by the plugin's names and the type they compute in, with the models that have them where not all do; "
    "`jit:` and `ocl:` with one colon are oneDNN's. A kernel whose name has `_ref` is the plugin's general one:"
)
STEPS = (
    f"A step of the decoder, {PICTURES} pictures with {BEAMS} beams and {CACHED_TOKENS} tokens: kernels that run, "
    "general ones among them, those that run on the host, and large tensors that are copied or converted without being "
    f"computed with. Large is more than {LARGE} elements a row:"
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(results: Sequence[Result], chips: Sequence[Chip], variants: Sequence[Variant], made_with: str) -> str:
    """Return all tables of the results, with their captions."""
    models = [variant.name for variant in variants]
    return "\n".join(
        (
            f"{made_with}\n",
            chip_table(results, chips),
            f"{TIMES}\n",
            time_table(results, chips, models),
            *([refusal_list(results)] if refusals(results) else []),
            f"{KERNELS}\n",
            kernel_table(results, chips),
            f"{STEPS}\n",
            step_table(results, chips),
        )
    )


def chip_table(results: Sequence[Result], chips: Sequence[Chip]) -> str:
    """Return a table with a row for each chip and OpenVINO's description of it."""
    rows = []
    for chip in chips:
        device = next((result.device for result in results if result.chip == chip.name and result.device), None)
        architecture = str(device["architecture"]).rpartition("=")[2] if device else "not asked"
        xmx = ("yes" if XMX in device["capabilities"] else "no") if device else "not asked"
        rows.append((f"`{chip.name}`", chip.product, chip.configuration, architecture, xmx))
    return table(("chip", "sold as", "slices x sub-slices x execution units", "architecture", "XMX"), rows)


def time_table(results: Sequence[Result], chips: Sequence[Chip], models: Sequence[str]) -> str:
    """Return a table of the costs of compilation, with a row for each model and a column for each chip."""
    by_model_and_chip = {(result.model, result.chip): result for result in results}
    cells = [(model, *(cost(by_model_and_chip.get((model, chip.name))) for chip in chips)) for model in models]
    return table(("model", *(f"`{chip.name}`" for chip in chips)), cells)


def cost(result: Result | None) -> str:
    """Return the time and memory that compilation took."""
    if result is None:
        return "not compiled"
    if result.failure:
        return f"**{result.failure}**"
    seconds = " + ".join(duration(result.compiled, graph) for graph in GRAPHS)
    peak, device = (
        max(values) for values in zip(*((graph.peak_mb, graph.device_mb) for graph in result.compiled), strict=True)
    )
    return f"{seconds} s, {peak / 1000:.1f} GB, {device:.0f} MB"


def duration(compiled: Sequence[CompiledGraph], name: str) -> str:
    """Return the seconds that a graph took to compile, or the device that it fell back to."""
    last = [graph for graph in compiled if graph.graph == name][-1]
    return f"{last.seconds:.0f}" if last.device.startswith("GPU") else last.device


def refusals(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Return the results with graphs that did not compile, by graph and reason."""
    refused: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        for graph in result.compiled:
            if graph.error:
                refused[graph.graph, graph.error].append(result)
    return refused


def refusal_list(results: Sequence[Result]) -> str:
    """Return a list of the graphs that did not compile, with a line for each reason."""
    lines = []
    for (graph, reason), refused in refusals(results).items():
        chips = ", ".join(f"`{name}`" for name in unique(result.chip for result in refused))
        models = ", ".join(unique(result.model for result in refused))
        lines.append(f"- The {graph} of {models} does not compile for {chips}: `{reason}`\n")
    return "".join(lines)


def kernel_table(results: Sequence[Result], chips: Sequence[Chip]) -> str:
    """Return a table of kernels, with a row for each graph and the chips that run it with the same kernels."""
    rows = []
    for graph in GRAPHS:
        chips_by_kernels: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for chip in chips:
            runs = [
                (result, executed)
                for result in results
                if result.chip == chip.name
                for executed in result.executed
                if executed.graph == graph
            ]
            if runs:
                chips_by_kernels[kernels(runs)].append(f"`{chip.name}`")
        rows += [(graph, ", ".join(names), *cells) for cells, names in chips_by_kernels.items()]
    return table(("graph", "chips", *FAMILIES, "general", "on the host"), rows)


def kernels(runs: Sequence[tuple[Result, ExecutedGraph]]) -> tuple[str, ...]:
    """Return the kernels of a graph on a chip, grouped by purpose."""
    selectors = (*(by_layer_type(kinds) for kinds in FAMILIES.values()), by_mark(REFERENCE), by_mark(HOST))
    return tuple(list_kernels(runs, select) for select in selectors)


def by_layer_type(kinds: Sequence[str]) -> Callable[[ExecutedGraph], set[str]]:
    """Return a function that selects a graph's kernels of some layer types."""
    return lambda executed: {kernel.replace("__", " ") for kind, kernel, _ in executed.kernels if kind in kinds}


def by_mark(mark: str) -> Callable[[ExecutedGraph], set[str]]:
    """Return a function that selects a graph's kernels with `mark` in their names, without the type they compute in."""
    return lambda executed: {kernel.partition("__")[0] for _, kernel, _ in executed.kernels if mark in kernel}


def list_kernels(runs: Sequence[tuple[Result, ExecutedGraph]], select: Callable[[ExecutedGraph], set[str]]) -> str:
    """Return the selected kernels of all models, followed by those of some models only, with the models' names."""
    models_by_kernel: dict[str, list[str]] = defaultdict(list)
    for result, executed in runs:
        for kernel in sorted(select(executed)):
            models_by_kernel[kernel].append(result.model)
    all_models = unique(result.model for result, _ in runs)
    ordered = sorted(models_by_kernel.items(), key=lambda item: (-len(item[1]), item[0]))
    return ", ".join(f"`{kernel}`{only(models, all_models)}" for kernel, models in ordered) or "none"


def only(some: Sequence[str], models: Sequence[str]) -> str:
    """Return a parenthesized list of some of the models, by geometry or precision alone if that is unambiguous."""
    if set(some) == set(models):
        return ""
    for part in (0, 2):
        names = unique(model.partition(" ")[part] for model in some)
        if set(some) == {model for model in models if model.partition(" ")[part] in names}:
            return f" ({', '.join(names)})"
    return f" ({', '.join(some)})"


def step_table(results: Sequence[Result], chips: Sequence[Chip]) -> str:
    """Return a table of decode steps, with a row for each distinct step and its models and chips."""
    order = {chip.name: index for index, chip in enumerate(chips)}
    chips_by_step: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)  # by model and step
    for result in sorted(results, key=lambda result: order[result.chip]):
        for executed in (executed for executed in result.executed if executed.graph == GRAPHS[-1]):
            chips_by_step[result.model, step_cells(executed)].append(f"`{result.chip}`")
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)  # models, by chips and step
    for (model, cells), names in chips_by_step.items():
        rows[", ".join(names), cells].append(model)
    head = ("models", "chips", "kernels", "general", "on the host", "large tensors moved")
    return table(head, ((", ".join(models), names, *cells) for (names, cells), models in rows.items()))


def step_cells(executed: ExecutedGraph) -> tuple[str, ...]:
    """Return the table cells of a step: numbers of kernels, and large moves."""
    counts = (count_marked(executed, mark) for mark in ("", REFERENCE, HOST))
    return (*map(str, counts), "; ".join(map(describe_move, executed.moves)) or "none")


def count_marked(executed: ExecutedGraph, mark: str) -> int:
    """Return the number of runs of kernels with `mark` in their names."""
    return sum(count for _, kernel, count in executed.kernels if mark in kernel)


def describe_move(move: Move) -> str:
    """Return a description of a move."""
    return f"{move.count} `{move.kind}` of `{move.source}`, {move.size / 1e6:.1f} MB"


def unique(values: Iterable[str]) -> list[str]:
    """Return the values without duplicates, in order of first occurrence."""
    return list(dict.fromkeys(values))


def findings(result: Result) -> list[str]:
    """Return the defects of a model on a chip: failures, unsupported operations and needless moves."""
    failed = [f"the process {result.failure}"] if result.failure else []
    refused = [f"the {graph.graph} does not compile: {graph.error}" for graph in result.compiled if graph.error]
    unsupported = [
        f"the {graph.graph} has unsupported operations: {', '.join(graph.unsupported)}"
        for graph in result.compiled
        if graph.unsupported
    ]
    moved = [
        f"a step of the decoder moves {describe_move(move)}"
        for executed in result.executed
        if executed.graph == GRAPHS[-1]
        for move in executed.moves
        if move.is_needless
    ]
    return failed + refused + unsupported + moved
