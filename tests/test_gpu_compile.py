"""`make gpu-compile`: what it reads of real processes, what it makes of it, and, as a long test, the driver itself."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.florence.devices import CORE
from gpu import compile as compiling
from gpu import simulation
from gpu.compilation import GRAPHS, CompiledGraph, ExecutedGraph, Result, read_result
from gpu.compile import compile_for, run
from gpu.kernels import CACHED_TOKENS, LARGE, Move, Node, large_moves
from gpu.loading import OUTLINED_BYTES, outline_of, shapes_in
from gpu.models import VARIANTS, Variant, make_folder
from gpu.report import BEGIN, END, findings, only, tables
from gpu.simulation import CHIPS, Chip, Driver, SetupError, check_libc, set_up_driver
from tests.conftest import ROOT

CHIP = {chip.name: chip for chip in CHIPS}
BUNDLED, CALIBRATED = Variant("bundled", "fp16"), Variant("bundled", "int8-calibrated")
Simulate = Callable[[str, Variant], Result]  # by the name of a chip
# A step of the decoder as the plugin of 2026.4 runs it for Tiger Lake and Lunar Lake: cross-attention is converted, and
# transposed or the cache is.
GIVEN, ROWS = {"keys": (8, 12, 64, 590), "ids": (24,)}, 24


def node(name: str, kind: str, shape: tuple[int | None, ...], *inputs: str, executed: bool = True) -> Node:
    return Node(name, kind, f"{kind.lower()}_ref__f16", executed, shape, "f16", inputs)


KEYS = node("keys", "Input", (None, 12, 64, None))
IDS = node("ids", "Input", (None,))


def test_large_inputs_that_are_converted_are_found_with_their_exact_size() -> None:
    nodes = [KEYS, IDS, node("convert", "Reorder", (None, 12, 64, None), "keys")]
    assert large_moves(nodes, GIVEN, ROWS) == [Move("Reorder", "Input", 1, 8 * 12 * 64 * 590 * 2)]


def test_a_move_behind_a_move_has_the_same_source() -> None:
    convert = node("convert", "Reorder", (None, 12, 64, None), "keys", executed=False)
    nodes = [KEYS, IDS, convert, node("transpose", "Permute", (None, 12, None, 64), "convert")]
    assert large_moves(nodes, GIVEN, ROWS) == [Move("Permute", "Input", 1, 8 * 12 * 64 * 590 * 2)]


def test_a_cache_that_is_moved_counts_as_one_in_the_middle_of_an_answer() -> None:
    cache = node("cache", "kv_cache", (None, 12, None, 64))
    nodes = [KEYS, IDS, cache, *(node(f"permute{n}", "Permute", (None, 12, 64, None), "cache") for n in range(2))]
    assert large_moves(nodes, GIVEN, ROWS) == [Move("Permute", "kv_cache", 2, 2 * 24 * 12 * CACHED_TOKENS * 64 * 2)]


@pytest.mark.parametrize(("width", "moves"), [(LARGE, 0), (LARGE + 1, 1)])
def test_what_is_large_is_measured_by_the_row(width: int, moves: int) -> None:
    nodes = [KEYS, IDS, node("product", "FullyConnected", (None, width)), node("copy", "Concat", (None, width))]
    assert len(large_moves(nodes, GIVEN, ROWS)) == moves


def test_keys_that_are_joined_with_new_ones_are_needless_and_joined_scores_are_not() -> None:
    new = node("new", "FullyConnected", (None, 12, 64, 1))
    scores = [node(name, "Gemm", (None, 12, 24, None), "keys") for name in ("main", "recent")]
    joined = node("joined", "Concat", (None, 12, 64, None), "keys", "new")
    softmax = node("softmax", "Concat", (None, 12, 24, None), "main", "recent")
    shapes = GIVEN | {"joined": (8, 12, 64, 591), "softmax": (8, 12, 24, 1180)}
    found = large_moves([KEYS, IDS, new, *scores, joined, softmax], shapes, ROWS)
    assert [(one.kind, one.source, one.is_needless) for one in found] == [
        ("Concat", "Input", True),
        ("Concat", "Gemm", False),
    ]


def test_a_shape_that_is_known_counts_and_one_of_another_node_does_not() -> None:
    nodes = [KEYS, IDS, node("copy", "Concat", (None, 12, None, 64)), node("other", "Concat", (None, 12, None, 64))]
    known = GIVEN | {"copy": (24, 12, 100, 64), "other": (24, 3, 64)}
    (both,) = large_moves(nodes, known, ROWS)
    assert both == Move("Concat", "Concat", 2, 24 * 12 * 100 * 64 * 2 + 24 * 12 * 590 * 64 * 2)


def test_the_outline_of_a_graph_tells_the_shapes_of_a_step_without_its_weights() -> None:
    decoder = CORE.read_model(DEFAULT_MODEL / "decoder.xml")
    outline = outline_of(decoder)
    weights = [op for op in outline.get_ops() if op.get_type_name() == "Constant"]
    assert max(op.get_byte_size() for op in weights) <= OUTLINED_BYTES
    sizes = {"input_ids": (24,), "position_ids": (24,), "beam_idx": (24,), "attention_mask": (24, 1, 1, 100)}
    keys = [port.any_name for port in decoder.inputs if port.any_name.endswith("key")]
    values = [port.any_name for port in decoder.inputs if port.any_name.endswith("value")]
    sizes |= {"banned_ids": (24, 257), "encoder_mask": (8, 1, 1, 209)}
    sizes |= dict.fromkeys(keys, (8, 8, 24, 209)) | dict.fromkeys(values, (8, 8, 209, 24))
    shapes = shapes_in(outline, [sizes[port.any_name] for port in decoder.inputs])
    logits = decoder.get_results()[0].get_friendly_name()
    assert shapes[logits][0] == 24
    # Queries, keys and values of a layer are one product.
    assert [shape for shape in shapes.values() if shape == (24, 3 * 192)]


def test_products_and_what_was_optimised_away_are_no_moves() -> None:
    away = node("transpose", "Permute", (None, 12, 64, None), "keys", executed=False)
    nodes = [KEYS, IDS, away, node("scores", "Gemm", (None, 12, 24, None), "keys")]
    assert large_moves(nodes, GIVEN, ROWS) == []


@pytest.fixture(scope="module")
def on_the_cpu() -> Result:
    """The bundled model, loaded as for a chip, but on this machine's CPU, in a process of its own."""
    command = [sys.executable, "-m", "gpu.loading", str(DEFAULT_MODEL), "--device", "CPU"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return read_result("cpu", BUNDLED.name, process.stdout.splitlines(), "")


def test_every_graph_of_the_service_is_reported(on_the_cpu: Result) -> None:
    found = {one.graph: one for one in on_the_cpu.compiled}
    assert set(found) >= set(GRAPHS)
    for graph in GRAPHS:
        one = found[graph]
        assert (one.device, one.precision, one.unsupported, one.error) == ("CPU", "f32", (), "")
        assert one.seconds > 0
        assert 50 < one.peak_mb < 5000
    assert findings(replace(on_the_cpu, executed=())) == []


def test_what_ran_is_reported_with_its_kernels(on_the_cpu: Result) -> None:
    executed = {one.graph: one for one in on_the_cpu.executed}
    assert set(executed) >= set(GRAPHS)
    for graph in GRAPHS:
        assert sum(count for kind, _, count in executed[graph].kernels if kind == "FullyConnected") >= 18
    # Six products a layer (queries, keys and values of the answer are one), and the output.
    assert sum(count for kind, _, count in executed["decoder"].kernels if kind == "FullyConnected") == 3 * 6 + 1


class FakeDriver(Driver):
    """A driver on which a program of the test's own runs."""

    program = ""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", self.program, *arguments]


LINE = '{"compiled": {"graph": "vision", "device": "GPU", "seconds": 1, "peak_mb": 2, "unsupported": []}}'


def driver(program: str) -> Driver:
    made = FakeDriver(Path("nowhere"), {simulation.OPENCL: "1"})
    made.program = program
    return made


def test_a_process_that_hangs_is_ended_and_what_it_said_is_kept() -> None:
    outcome = run(driver(f"import time; print('''{LINE}''', flush=True); time.sleep(60)"), CHIPS[0], DEFAULT_MODEL, 3)
    assert outcome == {"lines": [f"{LINE}\n"], "failure": "hangs: nothing in 3 s"}
    result = read_result("tgllp", "bundled fp16", outcome["lines"], outcome["failure"])
    assert result.compiled == (CompiledGraph("vision", "GPU", 1, 2),)
    assert findings(result) == ["the process hangs: nothing in 3 s"]


def test_a_process_that_fails_is_reported_with_its_last_word() -> None:
    program = f"import sys; print('''{LINE}'''); print('{{\"compil', end=''); sys.exit('first\\nno device\\n')"
    outcome = run(driver(program), CHIPS[0], DEFAULT_MODEL, 60)
    assert outcome == {"lines": [f"{LINE}\n"], "failure": "ended with 1: no device"}


def test_the_chip_and_the_simulation_are_in_the_environment_of_the_process() -> None:
    names = ("ProductFamilyOverride", "HardwareInfoOverride", "SetCommandStreamReceiver", "NEO_CACHE_PERSISTENT")
    program = f"import os; print({{name: os.environ[name] for name in {names}}})"
    outcome = run(driver(program), Chip("lnl", "", "2x4x8"), DEFAULT_MODEL, 60)
    assert outcome["lines"] == [f"{dict(zip(names, ('lnl', '2x4x8', '1', '0'), strict=True))}\n"]


def test_what_is_unchanged_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BUILD", tmp_path)
    first = compile_for(driver(f"print('''{LINE}''')"), CHIPS[0], BUNDLED, 60)
    assert compile_for(driver("raise SystemExit('it ran')"), CHIPS[0], BUNDLED, 60) == first
    newer = FakeDriver(Path("nowhere"), {simulation.OPENCL: "2"})
    newer.program = "raise SystemExit('it ran')"
    assert compile_for(newer, CHIPS[0], BUNDLED, 60).failure == "ended with 1: it ran"
    newer.program = f"print('''{LINE}''')"
    assert compile_for(newer, CHIPS[0], BUNDLED, 60) == first, "a failure was kept"


def test_tables_are_of_all_that_is_kept_and_name_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = driver("".join(f"print('''{LINE.replace('vision', graph)}''')\n" for graph in GRAPHS))
    one.versions["libigc2"] = "3"
    monkeypatch.setattr(compiling, "BUILD", tmp_path)
    monkeypatch.setattr(compiling, "set_up_driver", lambda: one)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process keeps its own handler
    compile_for(one, CHIP["ptl"], BUNDLED, 60)
    (page := tmp_path / "page.md").write_text(BEGIN + END)
    command = ("--chip", "lnl", "--geometry", "bundled", "--precision", "fp16", "--update", str(page))
    for options, compiled in ((("--kept",), ["ptl"]), ((), ["lnl", "ptl"])):
        assert CliRunner().invoke(compiling.main, (*options, *command)).exit_code == 0
        seen = [chip.name in compiled for chip in CHIPS]
        row = ("1 + 1 + 1 s, 0.0 GB, 0 MB" if here else "not compiled" for here in seen)
        assert cells(page.read_text()) >= {("bundled fp16", *row), ("large int4", *["not compiled"] * len(CHIPS))}


def test_a_machine_without_apt_is_told_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(simulation, "KEYRING", tmp_path / "keyring")
    with pytest.raises(SetupError, match="takes the packages apt, dpkg, debian-archive-keyring here"):
        set_up_driver(tmp_path / "driver")


def test_a_mirror_that_does_not_answer_is_reported_by_apts_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in simulation.TOOLS:
        (tmp_path / tool).write_text("#!/bin/sh\necho 'E: Failed to fetch' >&2\nexit 100\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(simulation, "KEYRING", tmp_path)
    with pytest.raises(SetupError, match=r"apt-get update from .* failed: E: Failed to fetch"):
        set_up_driver(tmp_path / "driver")
    assert not (tmp_path / "driver" / simulation.RECORD).exists()


def test_a_libc_that_is_newer_than_the_drivers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.43"))
    check_libc("2.43-7")
    with pytest.raises(SetupError, match=r"libc 2\.43 is newer than the 2\.41-12"):
        check_libc("2.41-12")


TOLD = {"name": "a GPU", "architecture": "GPU: vendor=0x8086 arch=v20.4.4", "capabilities": ["FP16", "GPU_HW_MATMUL"]}
DECODER = ExecutedGraph(
    "decoder",
    (("scaled_dot_product_attention", "ocl::sdpa::opt__f16", 6), ("shape_of", "shape_of_cpu_impl__i32", 2)),
    (Move("Reorder", "Input", 12, 87_000_000),),
)


def result(chip: str, precision: str, product: str, *vision: CompiledGraph) -> Result:
    """A model of base geometry that compiled, but perhaps for its vision tower."""
    graphs = (*vision, *(CompiledGraph(graph, "GPU", 2, 800, 300, "f16") for graph in GRAPHS[1:]))
    products = ("FullyConnected", product, 37)
    return Result(chip, f"base {precision}", TOLD, graphs, (replace(DECODER, kernels=(*DECODER.kernels, products)),))


COMPILED = CompiledGraph("vision", "GPU", 7.4, 900, 200, "f16")
REFUSED = (CompiledGraph("vision", "GPU", 1, 900, error="types are inconsistent"), CompiledGraph("vision", "CPU", 0, 0))
RESULTS = (
    result("lnl", "fp16", "jit:gemm:any__f16", COMPILED),
    result("lnl", "int8-calibrated", "jit:gemm:any__i8", *REFUSED),
    result("ptl", "fp16", "jit:gemm:any__f16", COMPILED),
    Result("ptl", "base int8-calibrated", TOLD, (), (), "hangs: nothing in 3 s"),
)


def cells(text: str) -> set[tuple[str, ...]]:
    """The rows of all tables."""
    return {tuple(line.strip("| ").split(" | ")) for line in text.splitlines() if line.startswith("|")}


def test_tables_of_results() -> None:
    text = tables(RESULTS, [CHIP["lnl"], CHIP["ptl"]], VARIANTS, "made with this")
    assert text.startswith("made with this\n\n|")
    assert cells(text) >= {
        ("`lnl`", "Lunar Lake (Xe2-LPG)", "2x4x8", "v20.4.4", "yes"),
        ("base fp16", "7 + 2 + 2 s, 0.9 GB, 300 MB", "7 + 2 + 2 s, 0.9 GB, 300 MB"),
        ("base int8-calibrated", "CPU + 2 + 2 s, 0.9 GB, 300 MB", "**hangs: nothing in 3 s**"),
        (
            *("decoder", "`lnl`", "`ocl::sdpa::opt f16`"),
            *("`jit:gemm:any f16` (fp16), `jit:gemm:any i8` (int8-calibrated)", "none", "none", "`shape_of_cpu_impl`"),
        ),
        ("base fp16", "`lnl`, `ptl`", "45", "0", "2", "12 `Reorder` of `Input`, 87.0 MB"),
    }
    refused = "- The vision of base int8-calibrated does not compile for `lnl`: `types are inconsistent`\n"
    assert refused in text


@pytest.mark.parametrize(
    ("some", "words"),
    [
        (["base fp16", "base int8", "large fp16", "large int8"], ""),
        (["base int8", "large int8"], " (int8)"),
        (["base fp16", "base int8"], " (base)"),
        (["base fp16", "large int8"], " (base fp16, large int8)"),
    ],
)
def test_kernels_of_some_models_are_named_by_what_these_have_in_common(some: list[str], words: str) -> None:
    assert only(some, ["base fp16", "base int8", "large fp16", "large int8"]) == words


def test_findings_are_all_that_is_not_as_it_should_be() -> None:
    moved = "a step of the decoder moves 12 `Reorder` of `Input`, 87.0 MB"
    assert findings(RESULTS[0]) == [moved]
    assert findings(RESULTS[1]) == ["the vision does not compile: types are inconsistent", moved]
    unknown = replace(RESULTS[0], compiled=(replace(COMPILED, unsupported=("NMS_1", "NMS_2")),), executed=())
    assert findings(unknown) == ["the vision has unsupported operations: NMS_1, NMS_2"]


SIMULATED = ("tgllp", "lnl")  # a chip without XMX, and one with it


@pytest.fixture(scope="module")
def simulate(tmp_path_factory: pytest.TempPathFactory) -> Simulate:
    """Compiles a model for a chip now, once; the driver and the model's folder set themselves up."""

    @cache
    def compiled(chip: str, variant: Variant) -> Result:
        make_folder(variant, print)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiling, "BUILD", tmp_path_factory.mktemp("results"))
            return compile_for(set_up_driver(), CHIP[chip], variant, 900)

    return compiled


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("chip", "attention", "product"),
    [("tgllp", "softmax_gpu", "fully_connected_gpu_bf_tiled"), ("lnl", "ocl::sdpa::opt", "jit:gemm:any")],
)
def test_the_bundled_model_compiles_for_a_chip(chip: str, attention: str, product: str, simulate: Simulate) -> None:
    result = simulate(chip, BUNDLED)
    assert result.failure == ""
    found = {one.graph: one for one in result.compiled}
    for graph in GRAPHS:
        one = found[graph]
        assert (one.device, one.precision, one.unsupported, one.error) == ("GPU", "f16", (), "")
        assert one.device_mb > 1
    decoder = {ran.graph: {kernel for _, kernel, _ in ran.kernels} for ran in result.executed}["decoder"]
    assert any(kernel.startswith(attention) for kernel in decoder)
    assert any(kernel.startswith(product) for kernel in decoder)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("chip", SIMULATED)
def test_a_step_moves_nothing_large_that_it_was_given(chip: str, simulate: Simulate) -> None:
    assert findings(simulate(chip, BUNDLED)) == []


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("chip", SIMULATED)
def test_the_calibrated_vision_tower_compiles_for_a_chip(chip: str, simulate: Simulate) -> None:
    vision = [one for one in simulate(chip, CALIBRATED).compiled if one.graph == "vision"]
    assert [(one.device, one.error) for one in vision] == [("GPU", "")]
