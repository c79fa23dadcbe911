"""`devices` and `doctor`: what they say of a healthy machine, of a GPU that is not there, and of damaged models."""

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from florence_tagger import doctor
from florence_tagger.cli import main
from florence_tagger.config import DEFAULT_MODEL, load_settings
from florence_tagger.doctor import check_installation, gpu_obstacles
from tests.devices import FakeCore


def test_doctor_finds_this_machine_well() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    for said in (
        "openvino 2026",
        "in use: CPU",
        "model files",
        "street.png has {'backpack': 5, 'car': 4, 'person': 3}",
        "vision on CPU",
    ):
        assert said in result.stdout


def test_devices_are_listed_with_the_one_in_use() -> None:
    result = CliRunner().invoke(main, ["devices"])
    assert result.exit_code == 0
    assert "CPU: " in result.stdout
    assert "FP32" in result.stdout
    assert "no GPU: /dev/dri has no render node" in result.stdout or Path("/dev/dri").exists()


def test_a_device_that_is_not_there_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLORENCE_DEVICE", "GPU.5")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "FAULT  in use: Device GPU.5 is not there" in result.stdout


def test_damaged_models_are_a_fault(tmp_path: Path) -> None:
    shutil.copytree(DEFAULT_MODEL, tmp_path / "model")
    content = bytearray((tmp_path / "model" / "decoder.bin").read_bytes())
    content[1000] ^= 1
    (tmp_path / "model" / "decoder.bin").write_bytes(content)
    findings = list(check_installation(load_settings({"model_dir": tmp_path / "model"})))
    assert [finding.subject for finding in findings if finding.ok is False] == ["model"]
    assert "decoder.bin is not the file" in findings[-1].text


def test_a_machine_with_a_gpu() -> None:
    findings = {finding.subject: finding for finding in check_installation(load_settings(), FakeCore(["CPU", "GPU"]))}
    assert findings["in use"].text.startswith("GPU, and CPU for what does not compile there")
    assert "vision on GPU, decoder on GPU, encoder on GPU" in findings["test picture"].text
    assert "no GPU" not in findings
    assert "the CPU says the same" in findings["test picture"].text


def test_a_device_that_fails_while_it_works_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("Exception from somewhere:1:\nCL_OUT_OF_RESOURCES\n")

    monkeypatch.setattr(doctor, "load_model", fail)
    last = list(check_installation(load_settings()))[-1]
    assert (last.ok, last.subject) == (False, "model")
    assert last.text == "it can't be tried: OpenVINO or a driver reports an error, and the log has it"
    assert "CL_OUT_OF_RESOURCES" in caplog.text


def test_what_stands_in_the_way_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, vendors = tmp_path / "dri", tmp_path / "vendors"
    (reason,) = gpu_obstacles(nodes, vendors)
    assert "no render node" in reason
    nodes.mkdir()
    (nodes / "renderD128").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    first, second = gpu_obstacles(nodes, vendors)
    assert "renderD128 may not be opened" in first
    assert "names no Intel driver" in second
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    vendors.mkdir()
    (vendors / "intel.icd").touch()
    (reason,) = gpu_obstacles(nodes, vendors)
    assert "new enough" in reason


def test_settings_that_are_wrong_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLORENCE_PORT", "x")
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 2
