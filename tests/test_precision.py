"""int8: smaller folders that still count right, and pictures that calibration can't use."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convert.conversion import ConversionOptions, convert
from convert.conversion_error import ConversionError
from florence_tagger.config import DEFAULT_MODEL, load_settings
from florence_tagger.florence.manifest import check_hashes, load_manifest
from florence_tagger.florence.model import load_model
from florence_tagger.media.images import open_picture
from tests.conftest import CHECKPOINT, ROOT, SCENES, TRUTH, Told
from training.scenes import World, draw_scene

KINDS = {"weights alone": ("int8", False), "calibrated": ("int8", True), "int4": ("int4", True)}


def draw(folder: Path, number: int, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(number):
        Image.fromarray(draw_scene(rng, World(side=224, most=8)).pixels).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundled checkpoint with smaller weights, made once of each kind that is asked for."""
    base = tmp_path_factory.mktemp("int8")
    pictures = draw(base / "pictures", 60, seed=5)

    @cache
    def made(kind: str) -> Path:
        precision, calibrated = KINDS[kind]
        output = base / kind.replace(" ", "-")
        convert(ConversionOptions(str(CHECKPOINT), output, precision, pictures if calibrated else None), Told())
        return output

    return made


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.bin"))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_quantised_folders_are_small_and_counts_right(folders: Callable[[str], Path], kind: str) -> None:
    assert weight_bytes(folders(kind)) < 0.57 * weight_bytes(DEFAULT_MODEL)
    folder = load_manifest(folders(kind))
    check_hashes(folder)
    assert folder.precision == KINDS[kind][0]
    florence2 = load_model(folder, load_settings())
    right = 0
    for name, counts in TRUTH.items():
        frame = open_picture((SCENES / name).read_bytes(), folder.image_size, 10**8)
        labels = [detection.label for detection in florence2.detect(frame).detections]
        right += {label: labels.count(label) for label in set(labels)} == counts
    assert right >= len(TRUTH) - 1
    manifest = json.loads((folders(kind) / "manifest.json").read_text())
    assert (manifest["precision"], manifest["calibrated"]) == KINDS[kind]
    record = json.loads((folders(kind) / "openvino_config.json").read_text())
    assert record["quantization_config"]["bits"] == int(KINDS[kind][0].removeprefix("int"))


def test_pictures_that_calibration_can_not_use(tmp_path: Path) -> None:
    few = draw(tmp_path / "few", 3, seed=1)
    with pytest.raises(ConversionError, match=r"3 pictures .* 10 or more are needed"):
        convert(ConversionOptions(str(CHECKPOINT), tmp_path / "out", "int8", few), Told())
    for index in range(10):
        (few / f"broken{index}.png").write_bytes(b"no picture")
    with pytest.raises(ConversionError, match="not a picture"):
        convert(ConversionOptions(str(CHECKPOINT), tmp_path / "out", "int8", few), Told())
    assert not list(tmp_path.glob("*out*"))


def figures(ir: Path, images: Path, report: Path) -> list[dict[str, Any]]:
    """What the comparison prints for a folder at the service's own precision."""
    command = [sys.executable, "-m", "convert.verify", "--checkpoint", str(CHECKPOINT), "--ir", str(ir)]
    command += ["--images", str(images), "--inference-precision", "default", "--json", str(report)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    agreements: list[dict[str, Any]] = json.loads(report.read_text())
    return agreements


@pytest.mark.long
@pytest.mark.parametrize("kind", [*KINDS, "fp16"])
def test_counts_of_300_scenes_are_those_of_the_checkpoint(
    folders: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    scenes = draw(tmp_path / "scenes", 300, seed=300)
    least_iou = 0.94 if kind == "int4" else 0.97  # int4 is coarser
    for one in figures(folders(kind) if kind in KINDS else DEFAULT_MODEL, scenes, tmp_path / "report.json"):
        print(
            f"{kind}, {one['mode']}: counts equal on {one['counts_equal']}"
        )  # the table of docs/conversion.md; pytest -rP shows it
        assert one["pictures"] == 300
        assert one["counts_equal"] >= 0.98 * 300
        assert one["box_iou"] > least_iou
        assert one["features_cosine"] > 0.99
