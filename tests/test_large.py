"""Florence-2-base's own size, with random weights: conversion and exact agreement with transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.random_checkpoint import write_checkpoint
from tests.conftest import ROOT, SCENES

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    write_checkpoint(folder, "base")
    return folder


def run(*command: str) -> str:
    result = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_base_geometry_says_what_transformers_says(checkpoint: Path, tmp_path: Path) -> None:
    ir = checkpoint.parent / "florence-2-base"
    run("convert", "--model", str(checkpoint), "--output", str(ir))
    weights = sum(path.stat().st_size for path in ir.glob("*.bin"))
    assert weights < 1.01 * (checkpoint / "model.safetensors").stat().st_size
    folders = ("--checkpoint", str(checkpoint), "--ir", str(ir), "--images", str(SCENES))
    report = tmp_path / "report.json"
    run(
        "convert.verify",
        *folders,
        "--limit",
        "4",
        "--max-new-tokens",
        "64",
        "--json",
        str(report),
        "--min-agreement",
        "0.75",
    )
    greedy, beams = json.loads(report.read_text())
    assert (greedy["mode"], beams["mode"]) == ("greedy", "3 beams")
    for figures in (greedy, beams):
        assert (figures["pictures"], figures["tokens"]) == (4, 4 * 64)
        # After 50 tokens the beams of such a model add up to log-probabilities of about -200, where float32 has steps
        # of 1.5e-5: now and then two beams are nearer than that, and which is first is a matter of rounding.
        assert figures["ids_equal"] >= 3
