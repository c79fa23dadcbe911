"""`python -m florence_tagger benchmark` as people run it, on the committed model and its checkpoint."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.step import PICTURE, WEIGHTS, as_table, measure
from florence_tagger.bench.measurements import BenchmarkOptions, adjusted, find_pictures
from florence_tagger.cli import main
from florence_tagger.config import DEFAULT_MODEL, load_settings
from florence_tagger.errors import TaggerError
from florence_tagger.florence.decoding import exactly
from florence_tagger.florence.manifest import load_manifest
from tests.conftest import CHECKPOINT, SCENES

STAGES = {
    "base64",
    "decode_file",
    "preprocess",
    "vision",
    "encoder",
    "decoder",
    "decoder_per_token",
    "postprocess",
    "http",
}


def test_the_service_beside_pytorch(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--compare", str(CHECKPOINT), "--tokens", "12", "--beams", "2", "--concurrency", "3", "--rounds", "2"]
    result = CliRunner().invoke(main, ["benchmark", *options, "--images", str(SCENES), "--json", str(report)])
    assert result.exit_code == 0, result.output
    figures = json.loads(report.read_text())
    assert figures["stages"].keys() == STAGES
    assert figures["generation"]["num_beams"] == 2
    assert figures["speedup"] == pytest.approx(figures["images_per_s"] * figures["reference_seconds"])
    assert figures["tokens_per_s"] == pytest.approx(12 * figures["images_per_s"])
    assert figures["peak_rss_mb"] > 100
    assert {"matmul_f32_gflops", "memory_gb_per_s", "vision_share", "decoder_share"} <= figures["limits"].keys()
    assert "a picture by itself" in result.stdout


def test_without_pytorch_nothing_is_compared(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = CliRunner().invoke(main, ["benchmark", "--images", str(SCENES), "--rounds", "1", "--json", str(report)])
    assert result.exit_code == 0, result.output
    figures = json.loads(report.read_text())
    assert (figures["speedup"], figures["reference_seconds"]) == (None, None)
    assert figures["tokens_per_s"] == pytest.approx(figures["tokens_per_picture"] * figures["images_per_s"])


def test_the_parts_of_a_step() -> None:
    step = measure(DEFAULT_MODEL, load_settings(), rounds=1)
    assert step.parts.keys() > {WEIGHTS, PICTURE} == step.megabytes.keys()
    assert all(ms > 0 for ms in step.parts.values()), "OpenVINO has other names for its operations"
    assert len(as_table(step).splitlines()) == len(step.parts) + 5


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "nowhere"], "no model folder"),
        (["--images", "nowhere"], "has no pictures"),
        (["--device", "GPU.9"], "GPU.9 is not there"),
        (["--compare", "nowhere", "--images", str(SCENES), "--rounds", "1"], "did not answer"),
    ],
)
def test_what_can_not_be_measured(options: list[str], reason: str) -> None:
    result = CliRunner().invoke(main, ["benchmark", *options])
    assert result.exit_code == 1
    assert reason in result.stderr


def test_answers_have_exactly_so_many_tokens(tmp_path: Path) -> None:
    folder = adjusted(
        load_manifest(DEFAULT_MODEL), BenchmarkOptions(DEFAULT_MODEL, beams=1, tokens=9), tmp_path / "model"
    )
    assert (folder.generation.num_beams, folder.generation.min_new_tokens, folder.generation.max_new_tokens) == (
        1,
        9,
        9,
    )
    own = load_manifest(DEFAULT_MODEL).generation
    assert exactly(own, None, None) == own


def test_photos_are_made_of_the_samples(tmp_path: Path) -> None:
    photos = find_pictures(None, 2, tmp_path)
    assert len({path.read_bytes() for path in photos}) == len(photos) >= 2
    with pytest.raises(TaggerError):
        find_pictures(tmp_path / "empty", 1, tmp_path)
