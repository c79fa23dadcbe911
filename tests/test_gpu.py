"""OpenVINO's real GPU plugin, on an emulated GPU: the product counts there as on the CPU, and its faults are known."""

import subprocess
import sys

import pytest

from florence_tagger.florence.devices import WORKAROUNDS, Workaround
from gpu.reproduce import FAULTS, THERE
from tests.conftest import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module of this repository; what it prints goes to the test's output."""
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, text=True, capture_output=True)


def test_every_work_around_has_a_graph_that_shows_its_fault() -> None:
    assert [one.name for one in WORKAROUNDS] == list(FAULTS)


@pytest.mark.parametrize("workaround", WORKAROUNDS, ids=lambda one: one.name)
def test_a_work_around_is_still_needed(workaround: Workaround) -> None:
    """Where this fails, the installed plugin no longer errs: what the work-around does instead can go."""
    run = run_module("gpu.plugin_faults", workaround.name)
    assert run.returncode, (
        f"{workaround.fault}: gone since {workaround.seen_in}. {workaround.instead}: no longer needed."
    )
    assert run.returncode == THERE or run.returncode < 0, run.stderr  # the fault, or a signal


def test_the_product_counts_on_the_gpu_plugin_as_on_the_cpu() -> None:
    run = run_module("gpu.check", "--quick")
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "All holds." in run.stdout
    assert "NOT HELD" not in run.stdout


def test_nothing_large_crosses_to_the_device_between_steps() -> None:
    run = run_module("benchmarks.gpu", "--tokens", "60")
    print(run.stdout)
    assert run.returncode == 0, run.stderr
    (row,) = (line for line in run.stdout.splitlines() if "rows: median" in line)
    _, _, kernels, waits, copies, to_device, back, _, _ = (cell.strip().replace(",", "") for cell in row.split("|"))
    assert int(to_device) <= 64_000
    assert int(waits) <= 2
    assert int(copies) == int(back) == 0
    assert int(kernels) < 200
