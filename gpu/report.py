"""What came of all models on all chips, as tables in Markdown and as findings."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from gpu.compilation import BEAMS, GRAPHS, PICTURES, Compiled, Ran, Result
from gpu.kernels import CACHED_TOKENS, LARGE, Move
from gpu.models import Variant
from gpu.simulation import Chip

BEGIN, END = "<!-- compiled: made by `make gpu-compile` -->\n", "<!-- end of compiled -->\n"
ATTENTION = ("scaled_dot_product_attention", "SoftMax")
PRODUCTS = ("FullyConnected", "Gemm")
FAMILIES = {"attention": ATTENTION, "products": PRODUCTS, "convolutions": ("Convolution",)}
XMX = "GPU_HW_MATMUL"
# What the plugin calls the kernels that do anything, slowly, and those that run on the host in the midst of a graph.
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
    """Return a table in Markdown."""
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(results: Sequence[Result], chips: Sequence[Chip], variants: Sequence[Variant], made_with: str) -> str:
    """Return all that the page says of the results."""
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
    """Return a row for each chip, and what OpenVINO says of it."""
    rows = []
    for chip in chips:
        told = next((result.device for result in results if result.chip == chip.name and result.device), None)
        architecture = str(told["architecture"]).rpartition("=")[2] if told else "not asked"
        xmx = ("yes" if XMX in told["capabilities"] else "no") if told else "not asked"
        rows.append((f"`{chip.name}`", chip.product, chip.configuration, architecture, xmx))
    return table(("chip", "sold as", "slices x sub-slices x execution units", "architecture", "XMX"), rows)


def time_table(results: Sequence[Result], chips: Sequence[Chip], models: Sequence[str]) -> str:
    """Return a row for each model, a column for each chip."""
    found = {(result.model, result.chip): result for result in results}
    cells = [(model, *(cost(found.get((model, chip.name))) for chip in chips)) for model in models]
    return table(("model", *(f"`{chip.name}`" for chip in chips)), cells)


def cost(result: Result | None) -> str:
    """Return what compiling took."""
    if result is None:
        return "not compiled"
    if result.failure:
        return f"**{result.failure}**"
    seconds = " + ".join(duration(result.compiled, graph) for graph in GRAPHS)
    peak, device = (
        max(values) for values in zip(*((one.peak_mb, one.device_mb) for one in result.compiled), strict=True)
    )
    return f"{seconds} s, {peak / 1000:.1f} GB, {device:.0f} MB"


def duration(compiled: Sequence[Compiled], graph: str) -> str:
    """Return the seconds of a graph, or where it fell back to."""
    last = [one for one in compiled if one.graph == graph][-1]
    return f"{last.seconds:.0f}" if last.device.startswith("GPU") else last.device


def refusals(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Return the graphs that did not compile, by graph and reason, with where that was."""
    found: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        for one in result.compiled:
            if one.error:
                found[one.graph, one.error].append(result)
    return found


def refusal_list(results: Sequence[Result]) -> str:
    """Return a line for each reason why a graph did not compile."""
    lines = []
    for (graph, reason), where in refusals(results).items():
        chips = ", ".join(f"`{name}`" for name in unique(result.chip for result in where))
        models = ", ".join(unique(result.model for result in where))
        lines.append(f"- The {graph} of {models} does not compile for {chips}: `{reason}`\n")
    return "".join(lines)


def kernel_table(results: Sequence[Result], chips: Sequence[Chip]) -> str:
    """Return a row for each graph and the chips that run it with the same kernels, of all models."""
    rows = []
    for graph in GRAPHS:
        alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for chip in chips:
            runs = [(one, ran) for one in results if one.chip == chip.name for ran in one.ran if ran.graph == graph]
            if runs:
                alike[kernels(runs)].append(f"`{chip.name}`")
        rows += [(graph, ", ".join(names), *cells) for cells, names in alike.items()]
    return table(("graph", "chips", *FAMILIES, "general", "on the host"), rows)


def kernels(runs: Sequence[tuple[Result, Ran]]) -> tuple[str, ...]:
    """Return the kernels of a graph on a chip, by their purpose."""
    finders = (*(family(kinds) for kinds in FAMILIES.values()), having(REFERENCE), having(HOST))
    return tuple(by_model(runs, find) for find in finders)


def family(kinds: Sequence[str]) -> Callable[[Ran], set[str]]:
    """Return what finds the kernels of some layer types."""
    return lambda ran: {kernel.replace("__", " ") for kind, kernel, _ in ran.kernels if kind in kinds}


def having(mark: str) -> Callable[[Ran], set[str]]:
    """Return what finds the kernels with a mark in their names, the type they compute in left out."""
    return lambda ran: {kernel.partition("__")[0] for _, kernel, _ in ran.kernels if mark in kernel}


def by_model(runs: Sequence[tuple[Result, Ran]], find: Callable[[Ran], set[str]]) -> str:
    """Return the kernels that are found for all models, and behind them those that only some have, with which."""
    where: dict[str, list[str]] = defaultdict(list)
    for result, ran in runs:
        for kernel in sorted(find(ran)):
            where[kernel].append(result.model)
    models = unique(result.model for result, _ in runs)
    ordered = sorted(where.items(), key=lambda item: (-len(item[1]), item[0]))
    return ", ".join(f"`{kernel}`{only(having_it, models)}" for kernel, having_it in ordered) or "none"


def only(some: Sequence[str], models: Sequence[str]) -> str:
    """Return which of the models some are, in brackets: by geometry or by precision where that is enough."""
    if set(some) == set(models):
        return ""
    for part in (0, 2):
        names = unique(model.partition(" ")[part] for model in some)
        if set(some) == {model for model in models if model.partition(" ")[part] in names}:
            return f" ({', '.join(names)})"
    return f" ({', '.join(some)})"


def step_table(results: Sequence[Result], chips: Sequence[Chip]) -> str:
    """Return a row for each way in which steps differ, with its models and chips."""
    order = {chip.name: place for place, chip in enumerate(chips)}
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)  # chips, by model and step
    for result in sorted(results, key=lambda one: order[one.chip]):
        for ran in (ran for ran in result.ran if ran.graph == GRAPHS[-1]):
            alike[result.model, step(ran)].append(f"`{result.chip}`")
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)  # models, by chips and step
    for (model, cells), names in alike.items():
        rows[", ".join(names), cells].append(model)
    head = ("models", "chips", "kernels", "general", "on the host", "large tensors moved")
    return table(head, ((", ".join(models), names, *cells) for (names, cells), models in rows.items()))


def step(ran: Ran) -> tuple[str, ...]:
    """Return what there is to say of a step."""
    numbers = (count_of(ran, mark) for mark in ("", REFERENCE, HOST))
    return (*(str(number) for number in numbers), "; ".join(map(describe_move, ran.moves)) or "none")


def count_of(ran: Ran, mark: str) -> int:
    """Return how many kernels run that have a mark in their names."""
    return sum(count for _, kernel, count in ran.kernels if mark in kernel)


def describe_move(move: Move) -> str:
    """Return the large tensors of a kind in words."""
    return f"{move.count} `{move.kind}` of `{move.source}`, {move.size / 1e6:.1f} MB"


def unique(values: Iterable[str]) -> list[str]:
    """Return values without their repetitions, in their order."""
    return list(dict.fromkeys(values))


def findings(result: Result) -> list[str]:
    """Return what is not as it should be of a model on a chip."""
    failed = [f"the process {result.failure}"] if result.failure else []
    refused = [f"the {one.graph} does not compile: {one.error}" for one in result.compiled if one.error]
    unsupported = [
        f"the {one.graph} has unsupported operations: {', '.join(one.unsupported)}"
        for one in result.compiled
        if one.unsupported
    ]
    moved = [
        f"a step of the decoder moves {describe_move(move)}"
        for ran in result.ran
        if ran.graph == GRAPHS[-1]
        for move in ran.moves
        if move.is_needless
    ]
    return failed + refused + unsupported + moved
