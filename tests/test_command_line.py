"""Settings and the command line: what is accepted, what is said of the rest, and how the service starts and stops."""

import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from florence_tagger import __version__
from florence_tagger.bench.processes import free_port
from florence_tagger.cli import main
from florence_tagger.config import DEFAULT_MODEL, Settings, load_settings, unknown_variables
from florence_tagger.errors import SettingsError
from tests.conftest import ROOT, SCENES, RunningServer, document, start_server, stop_server, variants

SCENE = (SCENES / "scene00.png").read_bytes()


def test_settings_come_from_the_environment_and_options_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLORENCE_PORT", "6000")
    monkeypatch.setenv("FLORENCE_NUM_BEAMS", "1")
    monkeypatch.setenv("FLORENCE_CACHE_DIR", "")
    monkeypatch.setenv("FLORENCE_DEVICE", "gpu.1")
    settings = load_settings({"port": "7000"})
    assert (settings.port, settings.num_beams, settings.cache_dir, settings.device) == (7000, 1, None, "GPU.1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "x"),
        ("PORT", "70000"),
        ("NUM_BEAMS", "0"),
        ("PRECISION", "f64"),
        ("QUEUE_SIZE", "-1"),
        ("MAX_BODY_MB", "0"),
    ],
)
def test_odd_values_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FLORENCE_{name}", value)
    with pytest.raises(SettingsError, match=f"FLORENCE_{name}={value}: "):
        load_settings()


def test_a_refusal_says_what_is_accepted_and_keeps_the_key_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        SettingsError, match="FLORENCE_PORT=70000: accepted is an integer from 1 to 65535; FLORENCE_NUM"
    ):
        load_settings({"port": "70000", "num_beams": "0"})
    with pytest.raises(SettingsError) as caught:
        load_settings({"api_key": 17})
    assert str(caught.value) == "FLORENCE_API_KEY=…: accepted is a text"
    with pytest.raises(SettingsError, match="FLORENCE_POT=1: there is no such setting"):
        load_settings({"pot": 1})


@pytest.mark.parametrize("name", [name for name, kind in Settings.model_fields.items() if kind.metadata])
def test_every_bounded_setting_refuses_what_is_none(name: str) -> None:
    for value in ("x", "-1", "1e400", "nan"):
        with pytest.raises(SettingsError, match=f"FLORENCE_{name.upper()}={value}: accepted is a.* (from|above) "):
            load_settings({name: value})


def test_unknown_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unknown_variables() == []
    monkeypatch.setenv("FLORENCE_NUM_BEAM", "1")
    monkeypatch.setenv("FLORENCE_XYZ", "1")
    assert unknown_variables() == [
        "FLORENCE_NUM_BEAM is no setting; is FLORENCE_NUM_BEAMS meant?",
        "FLORENCE_XYZ is no setting.",
    ]
    shown = CliRunner().invoke(main, ["settings"])
    assert shown.stderr.splitlines()[1] == "Warning: FLORENCE_XYZ is no setting."
    assert "Warning" not in shown.stdout


def test_every_setting_is_an_option() -> None:
    text = CliRunner().invoke(main, ["serve", "--help"]).output
    options = set(re.findall(r"--([a-z-]+)", text)) - {"help"}
    assert options == {name.replace("_", "-") for name in Settings.model_fields}


def test_the_documents_have_the_table_of_settings(tmp_path: Path) -> None:
    document = (ROOT / "docs" / "configuration.md").read_text()
    table = CliRunner().invoke(main, ["settings"]).output
    assert table in document, "run make configuration"
    assert table.count("\n") == 2 + len(Settings.model_fields)
    page = tmp_path / "page.md"
    page.write_text(document.replace("| `FLORENCE_PORT` | 5011 |", "| `FLORENCE_PORT` | 5012 |"))
    assert CliRunner().invoke(main, ["settings", "--update", str(page)]).exit_code == 0
    assert page.read_text() == document
    page.write_text("no marks")
    assert CliRunner().invoke(main, ["settings", "--update", str(page)]).exit_code == 1


def test_check_reads_every_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["check", str(DEFAULT_MODEL)])
    assert result.output.startswith("florence-2-tiny (fp16, ")
    copy = tmp_path / "model"
    shutil.copytree(DEFAULT_MODEL, copy)
    content = bytearray((copy / "vision.bin").read_bytes())
    content[1000] ^= 1
    (copy / "vision.bin").write_bytes(content)
    result = CliRunner().invoke(main, ["check", str(copy)])
    assert result.exit_code == 1
    assert "vision.bin is not the file" in result.stderr


@pytest.mark.parametrize("command", ["check ov_models/florence-2-tiny", "settings", "devices", "--version"])
def test_commands_end_well_with_closed_streams(command: str) -> None:
    program = f"{sys.executable} -m florence_tagger {command}"
    for closed in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        result = subprocess.run(
            ["bash", "-c", f"{program} {closed}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (0, "")


def test_version() -> None:
    assert __version__ in CliRunner().invoke(main, ["--version"]).output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--port", "x"], "FLORENCE_PORT=x"),
        (["--model-dir", "/nowhere"], "no model folder /nowhere"),
    ],
)
def test_a_start_that_can_not_work_says_why(options: list[str], reason: str) -> None:
    command = [sys.executable, "-m", "florence_tagger", "serve", *options]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: ")
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_that_does_not_load_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLORENCE_NUM_BEAM", "1")
    command = [sys.executable, "-m", "florence_tagger", "serve", "--device", "NPU.7", "--port", str(free_port())]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert result.returncode != 0
    assert "Device NPU.7 is not there" in result.stderr
    assert "FLORENCE_NUM_BEAM is no setting; is FLORENCE_NUM_BEAMS meant?" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_ends_the_service(tmp_path: Path) -> None:
    running = start_server(tmp_path / "log.txt")
    command = [sys.executable, "-m", "florence_tagger", "serve", "--host", "127.0.0.1", "--port", running.url[-5:]]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert result.returncode != 0
    assert "in use" in result.stderr
    assert stop_server(running) == 0


def test_options_reach_the_service(tmp_path: Path) -> None:
    running = start_server(tmp_path / "log.txt", "--max-documents", "1", "--num-beams", "1", "--api-key", "secret")
    assert running.post({"documents": []}).status_code == 401
    headers = {"X-API-Key": "secret"}
    sent = document(SCENE)
    assert running.post({"documents": [sent] * 2}, headers=headers).status_code == 413
    assert running.post({"documents": [sent]}, headers=headers).json()["number_documents_treated"] == 1
    assert stop_server(running) == 0


def test_a_request_is_finished_before_the_service_stops(tmp_path: Path) -> None:
    running = start_server(tmp_path / "log.txt")
    body = {"documents": [document(content) for content in variants(SCENE, 100)]}
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(running.post, body)
        deadline = time.monotonic() + 30
        while not running.get("/work/status").json() and time.monotonic() < deadline:
            time.sleep(0.02)
        running.process.send_signal(signal.SIGTERM)
        assert request.result().json()["number_documents_treated"] == 100
    assert running.process.wait(30) == 0


def test_an_interrupted_service_answers_with_what_is_done(tmp_path: Path) -> None:
    running = start_server(tmp_path / "log.txt", "--num-beams", "8")
    body = {"documents": [document(one, id=str(i)) for i, one in enumerate(variants(SCENE, 500))]}
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(running.post, body)
        deadline = time.monotonic() + 30
        while not done_documents(running) and time.monotonic() < deadline:
            time.sleep(0.02)
        running.process.send_signal(signal.SIGINT)
        answer = request.result().json()
    assert 0 < answer["number_documents_treated"] < 500
    assert answer["number_documents_treated"] + answer["number_documents_non_treated"] == 500
    assert answer["list_id_not_treated"][-1] == {"499": "The service is stopping."}
    assert running.process.wait(10) == 0


def done_documents(server: RunningServer) -> int:
    return sum(job["documents_done"] for job in server.get("/work/status").json().values())
