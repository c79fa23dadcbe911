"""The service against its own description: schemathesis makes requests from /openapi.json and checks every answer."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunningServer, start_server, stop_server

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
KEY = "a key"


@pytest.fixture(scope="module")
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A service that is fast at what is sent here: few documents, one beam."""
    key = ("--api-key", request.param) if request.param else ()
    running = start_server(
        tmp_path_factory.mktemp("server") / "log.txt", "--max-documents", "20", "--num-beams", "1", *key
    )
    yield running
    assert stop_server(running) == 0


def cases_without_finding(server: RunningServer, examples: int, folder: Path) -> int:
    """How many requests schemathesis made, all checks on; `folder` is for what it keeps of a finding."""
    command = [
        *(SCHEMATHESIS, "--config-file", ROOT / "tests" / "schemathesis.toml", "run", f"{server.url}/openapi.json"),
        *(
            "--checks",
            "all",
            "--exclude-checks",
            "positive_data_acceptance",
        ),  # schema_hooks has it, with two rules more
        *("--generation-deterministic", "--max-examples", str(examples), "--request-timeout", "60"),
        *("--header", f"X-API-Key: {KEY}", "--no-color"),
    ]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.schema_hooks", "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stdout[-10_000:] + result.stderr
    (number,) = re.findall(r"(\d+) generated", result.stdout)
    return int(number)


@pytest.mark.parametrize("target", [KEY], indirect=True, ids=["with a key"])
def test_answers_are_as_described(target: RunningServer, tmp_path: Path) -> None:
    number = cases_without_finding(target, 60, tmp_path)
    print(f"{number} requests, no finding")
    assert number >= 300


@pytest.mark.long
@pytest.mark.parametrize("target", ["", KEY], indirect=True, ids=["open", "with a key"])
def test_answers_are_as_described_at_length(target: RunningServer, tmp_path: Path) -> None:
    number = cases_without_finding(target, 2500, tmp_path)
    print(f"{number} requests, no finding")
    assert number >= 2500
