"""Conversion: what a model folder holds, that it says the same, and what is said of checkpoints that do not fit."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import Florence2ForConditionalGeneration

from convert.__main__ import main
from convert.checkpoint import read_checkpoint
from convert.conversion import ConversionOptions, convert, sha256_of, stages_of
from convert.conversion_error import ConversionError
from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.florence.manifest import check_hashes, load_manifest
from tests.conftest import CHECKPOINT, QUOTED, ROOT, Told


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "new" / "tiny"
    told = Told()
    convert(ConversionOptions(str(CHECKPOINT), output), told)
    assert len(told.stages) == stages_of("fp16")
    assert "exporting the vision" in told.stages
    assert re.search(r"Needs about \d+ MB of disk .* memory", told.notes[0])
    return output


def test_the_folder_describes_itself(converted: Path) -> None:
    manifest = json.loads((converted / "manifest.json").read_text())
    names = {path.name for path in converted.iterdir()} - {"manifest.json"}
    assert names == set(manifest["files"])
    assert names >= {"LICENSE", "tokenizer.json", "generation_config.json", "preprocessor_config.json"}
    assert all(sha256_of(converted / name) == facts["sha256"] for name, facts in manifest["files"].items())
    assert manifest["source"]["files"]["model.safetensors"]["sha256"] == sha256_of(CHECKPOINT / "model.safetensors")
    assert (manifest["source"]["format"], manifest["source"]["dtypes"]) == ("native", ["float16"])
    assert manifest["verification"] == {"mode": "3 beams", "pictures": 3, "ids_equal": 3, "counts_equal": 3}
    assert manifest["precision"] == "fp16"
    assert manifest["geometry"]["image_size"] == [224, 224]
    folder = load_manifest(converted)
    assert folder.name == "tiny"
    assert (folder.generation.num_beams, folder.generation.no_repeat_ngram_size) == (3, 3)
    assert folder.generation.early_stopping is True
    assert folder.generation.max_new_tokens == 255


def test_nothing_is_stored_twice_or_wider_than_the_checkpoint(converted: Path) -> None:
    weights = sum(path.stat().st_size for path in converted.glob("*.bin"))
    assert weights < 1.03 * (CHECKPOINT / "model.safetensors").stat().st_size


def test_the_committed_model_is_made_from_the_committed_checkpoint(converted: Path) -> None:
    committed = json.loads((DEFAULT_MODEL / "manifest.json").read_text())
    fresh = json.loads((converted / "manifest.json").read_text())
    assert committed["source"] == fresh["source"]
    assert committed["files"] == fresh["files"]
    check_hashes(load_manifest(DEFAULT_MODEL))


def test_an_old_model_is_replaced_and_other_folders_are_not(converted: Path, tmp_path: Path) -> None:
    """Through a link to it, which stays one."""
    output = tmp_path / "model"
    shutil.copytree(converted, output)
    (output / "vision.bin").write_bytes(b"old")
    (tmp_path / "current").symlink_to("model")
    convert(ConversionOptions(str(CHECKPOINT), tmp_path / "current"), Told())
    assert (tmp_path / "current").is_symlink()
    assert not output.is_symlink()
    assert sha256_of(output / "vision.bin") == sha256_of(converted / "vision.bin")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "current"}
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    foreign = tmp_path / "web-app"  # a progressive web application has a manifest.json, too
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"name": "application"}')
    (output / "notes.txt").touch()  # somebody's own file in a model folder
    for kept in (precious, foreign, output):
        with pytest.raises(ConversionError, match="not a converted model"):
            convert(ConversionOptions(str(CHECKPOINT), kept), Told())
        assert list(kept.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_conversion_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convert", "--model", str(CHECKPOINT), "--output", str(tmp_path / "out")]
    obey = partial(signal.signal, number, signal.SIG_DFL)  # whoever runs the tests may ignore it, as nohup does
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=obey) as process:
        assert process.stderr is not None
        assert any("exporting the vision" in line for line in process.stderr)
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(60) == 130, rest
    assert "Interrupted; nothing was written." in rest
    assert not list(tmp_path.iterdir())


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    """Changes values of a JSON file of a checkpoint; None removes."""

    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return edit


def written(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


def removed(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def reweighted(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return rewrite


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def without_locations(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    for token in values["added_tokens"]:
        token["content"] = token["content"].replace("<loc_7>", "<lock_7>")
    (folder / "tokenizer.json").write_text(json.dumps(values))


def in_place_of(name: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return replace


def vision_edited(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        vision = json.loads((folder / "config.json").read_text())["vision_config"]
        edited("config.json", vision_config=vision | changes)(folder)

    return edit


def processor_edited(**changes: Any) -> Callable[[Path], None]:
    """Changes values of the image processor in the file that goes first; None removes."""

    def edit(folder: Path) -> None:
        values = json.loads((folder / "processor_config.json").read_text())["image_processor"] | changes
        values = {key: value for key, value in values.items() if value is not None}
        edited("processor_config.json", image_processor=values)(folder)

    return edit


def several_variants(folder: Path) -> None:
    for variant in ("fp16", "bf16"):
        shutil.copyfile(folder / "model.safetensors", folder / f"model.{variant}.safetensors")
    (folder / "model.safetensors").unlink()


def of_a_trainer(folder: Path) -> None:
    """What a Trainer without the processor leaves, in a folder of whose name the model has its own."""
    removed("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")(folder)
    (folder / "trainer_state.json").write_text("{}")
    edited("config.json", _name_or_path="microsoft/Florence-2-base-ft")(folder)


def text_edited(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = json.loads((folder / "config.json").read_text())["text_config"]
        edited("config.json", text_config=text | changes)(folder)

    return edit


def processor_list(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    edited("processor_config.json", image_processor=[])(folder)


def pickled(state: Any) -> Callable[[Path], None]:
    """Puts a PyTorch file in place of the weights; None is an empty file."""

    def save(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").touch()
        if state is not None:
            torch.save(state, folder / "pytorch_model.bin")

    return save


def indexed(weight_map: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
EMBEDDING = "model.language_model.shared.weight"
NORM = "model.language_model.encoder.layernorm_embedding.weight"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (removed("config.json"), "no config.json"),
    "config no JSON": (written("config.json", b"{"), "config.json is not JSON"),
    "config no object": (written("config.json", b"[]"), "not a JSON object"),
    "another model": (edited("config.json", model_type="bert"), "model_type 'bert'"),
    "half original": (edited("config.json", vision_config={"dim_embed": [1]}), "not the same number of stages"),
    "config a folder": (in_place_of("config.json"), "config.json can't be read"),
    "heads that do not divide": (vision_edited(num_heads=[5, 2, 4, 8]), "can't be divided by num_heads"),
    "stages that differ": (vision_edited(patch_stride=[4, 2, 2, 2, 2]), "not the same number of stages"),
    "no stride": (vision_edited(patch_stride=[4, 2, 0, 2]), "patch_stride must be positive"),
    "no window": (vision_edited(window_size=0), "the window must be positive"),
    "no parts": (edited("config.json", vision_config=5), "no vision_config and text_config"),
    "odd parts": (edited("config.json", vision_config={"embed_dim": "x", "depths": 3}), "config.json"),
    "odd width": (edited("config.json", text_config={"model_type": "bart", "d_model": 7}), "describes no model"),
    "large picture": (processor_edited(size={"height": 960, "width": 960}), "3601 tokens"),
    "many tokens": (processor_edited(size={"height": 288, "width": 288}), "325 tokens"),
    "no weights": (removed("model.safetensors"), "no weights: model.safetensors or pytorch_model.bin"),
    "no safetensors": (written("model.safetensors", b"\x80\x04pickle"), "can't be read"),
    "not finite": (reweighted(lambda state: state[NORM].fill_(float("nan"))), f"{NORM} has values that are not finite"),
    "too large for fp16": (reweighted(lambda state: state.update({NORM: torch.full((192,), 1e5)})), "--precision fp32"),
    "whole numbers": (reweighted(lambda state: state.update({NORM: torch.ones(192, dtype=torch.int8)})), "torch.int8"),
    "untied": (
        reweighted(lambda state: state.update({"lm_head.weight": state[EMBEDDING] + 1})),
        "untied output layer",
    ),
    "truncated weights": (truncated, "can't be read"),
    "missing tensor": (reweighted(lambda state: state.pop(NORM)), f"{NORM} is missing"),
    "surplus tensor": (
        reweighted(lambda state: state.update({"model.extra": torch.zeros(1)})),
        "model.extra is not part of the model",
    ),
    "misshapen tensor": (reweighted(lambda state: state.update({NORM: torch.zeros(5)})), rf"{NORM} has shape \[5\]"),
    "no embedding": (reweighted(lambda state: state.pop(EMBEDDING)), "is missing"),
    "no tokenizer": (removed("tokenizer.json"), "no tokenizer.json"),
    "odd tokenizer": (written("tokenizer.json", b"{}"), "is not a tokenizer"),
    "no locations": (without_locations, "no token <loc_7>"),
    "no preprocessing": (removed("preprocessor_config.json", "processor_config.json"), "no processor_config.json"),
    "crop": (processor_edited(do_center_crop=True), "do_center_crop"),
    "bilinear": (processor_edited(resample=2), "resample"),
    "shortest edge": (processor_edited(size={"shortest_edge": 192}), "size"),
    "no mean": (processor_edited(image_mean=None), "image_mean"),
    "old size": (processor_edited(size=192), "size"),
    "sampling": (edited("generation_config.json", do_sample=True), "do_sample = True"),
    "odd beams": (edited("generation_config.json", num_beams="3"), "num_beams is '3'"),
    "odd forced token": (edited("generation_config.json", forced_bos_token_id="x"), "not 'x'"),  # noqa: S106
    "odd early stopping": (edited("generation_config.json", early_stopping="maybe"), "early_stopping"),
    "odd length penalty": (edited("generation_config.json", length_penalty="x"), "length_penalty"),
    "penalty": (edited("generation_config.json", repetition_penalty=1.2), "repetition_penalty"),
    "no beams": (edited("generation_config.json", num_beams=0), "num_beams is 0; 1 to 16"),
    "too many beams": (edited("generation_config.json", num_beams=17), "num_beams is 17; 1 to 16"),
    "a start beyond the vocabulary": (
        edited("generation_config.json", decoder_start_token_id=99999),
        "name token 99999",
    ),
    "an end below it": (edited("generation_config.json", eos_token_id=-1), "name token -1"),
    "endless penalty": (edited("generation_config.json", length_penalty=float("nan")), "length_penalty"),
    "no deviation": (processor_edited(image_std=[0, 0, 0]), "image_std"),
    "endless mean": (processor_edited(image_mean=[float("nan")] * 3), "image_mean"),
    "adapter": (written("adapter_config.json", b"{}"), "merge_and_unload"),
    "odd processor": (processor_list, "no image_processor"),
    "sparse tensor": (pickled({NORM: torch.zeros(192).to_sparse()}), "no dictionary of plain tensors"),
    "tensor without values": (pickled({NORM: torch.zeros(192, device="meta")}), "no dictionary of plain tensors"),
    "empty pickle": (pickled(None), "pytorch_model.bin can't be read"),
    "index of numbers": (indexed({"a": 1}), "no index of shards"),
    "index of nothing": (indexed(None), "no index of shards"),
    "index to the outside": (indexed({"a": "../b"}), "outside the folder"),
    **{
        f"pointer in place of {name}": (written(name, LFS_POINTER), rf"{name} is a git-LFS pointer.*git lfs pull")
        for name in ("config.json", "tokenizer.json", "model.safetensors", "processor_config.json")
    },
    "pointer in place of generation_config.json": (
        written("generation_config.json", LFS_POINTER),
        "generation_config.json is a git-LFS pointer",
    ),
    "what is added to logits": (
        reweighted(lambda state: state.update({"model.language_model.final_logits_bias": torch.ones(1, 1424)})),
        "final_logits_bias is not zero",
    ),
    "several variants": (
        several_variants,
        "model.bf16.safetensors, model.fp16.safetensors: leave one",
    ),
    "a Trainer's checkpoint": (
        of_a_trainer,
        "no tokenizer.json and no processor_config.json, as a Trainer's checkpoint.*microsoft/Florence-2-base-ft",
    ),
    "another text model": (text_edited(model_type="t5"), "text_config.model_type is 't5'; it must be 'bart'"),
    "a tensor stored twice": (
        reweighted(lambda state: state.update({f"_orig_mod.{NORM}": state[NORM] + 0})),
        f"{NORM} is stored twice",
    ),
    "two ends": (edited("generation_config.json", eos_token_id=[1, 2]), "one end token"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_has_a_reason_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    damage, reason = BROKEN[kind]
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    damage(folder)
    result = CliRunner().invoke(main, ["--model", str(folder), "--output", str(tmp_path / "models" / "tiny")])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    assert re.search(reason, error)
    assert not QUOTED.search(error.replace(str(folder), ""))
    assert not list(tmp_path.glob("models/*"))


def test_there_are_many_kinds() -> None:
    assert len(BROKEN) >= 30


def test_settings_that_are_not_there_are_transformers_own(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    removed("generation_config.json", "preprocessor_config.json")(folder)
    config = json.loads((folder / "config.json").read_text())
    old = {"num_beams": 3, "no_repeat_ngram_size": 3, "forced_bos_token_id": 0, "early_stopping": True}
    edited("config.json", text_config=config["text_config"] | old)(folder)
    theirs = Florence2ForConditionalGeneration.from_pretrained(folder).generation_config
    ours = read_checkpoint(folder).generation
    names = ("num_beams", "no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id", "early_stopping")
    assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]
    assert ours.num_beams == 3
    assert read_checkpoint(folder).preprocessing == read_checkpoint(CHECKPOINT).preprocessing


def test_the_command_line_shows_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convert", "--model", str(tmp_path), "--output", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == f"Error: {tmp_path} has no config.json."
    assert "Traceback" not in result.stderr
