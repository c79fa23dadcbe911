"""Devices, precisions and damaged folders: what can't be provoked here is played by a fake of OpenVINO's core."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13
import pytest

from florence_tagger.config import DEFAULT_MODEL, load_settings
from florence_tagger.errors import DocumentError, ModelError
from florence_tagger.florence import graphs
from florence_tagger.florence.devices import CORE, DRIVER_ERROR, RuntimeOptions, choose_device, find_devices
from florence_tagger.florence.manifest import FORMAT, check_hashes, load_manifest
from florence_tagger.florence.model import Florence2, load_model
from florence_tagger.florence.self_test import COSINE
from florence_tagger.florence.tasks import prompt_text
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.media.images import open_picture
from florence_tagger.schemas import OBJECT_DETECTION, Prompt, Task
from tests.conftest import ROOT, SCENES, TRUTH, assert_alike
from tests.devices import FakeCore

FOLDER = load_manifest(DEFAULT_MODEL)


@pytest.mark.parametrize(
    ("wanted", "available", "expected"),
    [
        ("AUTO", ["CPU"], ("CPU",)),
        ("AUTO", ["CPU", "GPU"], ("GPU", "CPU")),
        ("AUTO", ["CPU", "GPU.0", "GPU.1"], ("GPU", "CPU")),
        ("CPU", ["CPU", "GPU"], ("CPU",)),
        ("GPU", ["CPU", "GPU.0"], ("GPU",)),
        ("GPU.1", ["CPU", "GPU.0", "GPU.1"], ("GPU.1",)),
        ("GPU.0", ["CPU", "GPU"], ("GPU.0",)),
    ],
)
def test_choice_of_device(wanted: str, available: list[str], expected: tuple[str, ...]) -> None:
    assert choose_device(wanted, available) == expected


@pytest.mark.parametrize("wanted", ["GPU", "GPU.1", "NPU", "AUTO:GPU,CPU"])
def test_a_device_that_is_not_there(wanted: str) -> None:
    with pytest.raises(ModelError, match=rf"Device {wanted} is not there; OpenVINO finds CPU"):
        choose_device(wanted, ["CPU"])


def load(core: FakeCore, device: str = "AUTO", precision: str = "") -> Florence2:
    return Florence2(FOLDER, RuntimeOptions(device, precision), FOLDER.generation, core)


def count(florence2: Florence2, name: str = "scene00.png") -> dict[str, int]:
    frame = open_picture((SCENES / name).read_bytes(), FOLDER.image_size, 10**8)
    labels = [detection.label for detection in florence2.detect(frame).detections]
    return {label: labels.count(label) for label in sorted(set(labels))}


def test_auto_takes_the_gpu_and_each_graph_falls_back_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    florence2 = load(FakeCore(["CPU", "GPU"], refused=("vision",)))
    assert count(florence2) == TRUTH["scene00.png"]
    assert florence2.devices == {"vision": "CPU", "encoder": "GPU", "decoder": "GPU"}
    assert "vision does not compile on GPU: no kernel for this" in caplog.text


def test_a_named_device_never_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ModelError, match=r"decoder compiles on no device that was tried \(GPU\); the log says why\."):
        load(FakeCore(["CPU", "GPU"], refused=("decoder",)), "GPU")
    assert "decoder does not compile on GPU: no kernel for this" in caplog.text


def hints(core: FakeCore) -> dict[str, Any]:
    return {name: properties.get("INFERENCE_PRECISION_HINT") for name, properties in core.compiled}


def test_precision_on_the_cpu_is_exact_but_for_a_large_vision_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    core = FakeCore(["CPU"])
    count(load(core))
    assert hints(core) == {"vision on CPU": "f32", "encoder on CPU": "f32", "decoder on CPU": "f32"}
    assert dict(core.compiled)["decoder on CPU"]["KV_CACHE_PRECISION"] == "f32"
    monkeypatch.setattr(graphs, "SMALL_VISION_BYTES", 1)
    core = FakeCore(["CPU"])
    count(load(core))
    assert hints(core) == {"vision on CPU": None, "encoder on CPU": "f32", "decoder on CPU": "f32"}


def test_precision_on_a_gpu_is_its_own_and_a_named_one_goes_for_all() -> None:
    core = FakeCore(["CPU", "GPU"])
    count(load(core))
    assert set(hints(core).values()) == {None}
    assert "KV_CACHE_PRECISION" not in dict(core.compiled)["decoder on GPU"]  # it has no cache of the plugin's
    core = FakeCore(["CPU"])
    count(load(core, precision="bf16"))
    assert set(hints(core).values()) == {"bf16"}


def test_prompt_embeddings_are_rows_of_the_table(florence2: Florence2) -> None:
    prompt_ids = Tokenizer(FOLDER.read_text("tokenizer.json")).encode(prompt_text(OBJECT_DETECTION))
    rows = florence2._runtime._embed(prompt_ids)
    decoder = CORE.read_model(DEFAULT_MODEL / "decoder.xml")
    tables = [op.data for op in decoder.get_ops() if op.get_type_name() == "Constant" and 1424 in list(op.shape)]
    (table,) = tables
    np.testing.assert_array_equal(rows[0], table[list(prompt_ids)].astype(np.float32))


def test_prompts_of_other_lengths(florence2: Florence2) -> None:
    frame = open_picture((SCENES / "scene00.png").read_bytes(), FOLDER.image_size, 10**8)
    tokenizer = Tokenizer(FOLDER.read_text("tokenizer.json"))
    for prompt in ("dog", "Locate dog in the image.", prompt_text(OBJECT_DETECTION)):
        prompt_ids = tokenizer.encode(prompt)
        shapes = {
            name: list(tensor.shape) for name, tensor in florence2._runtime.encode(frame.pixels, prompt_ids).items()
        }
        assert shapes["cross_attention.0.value"] == [1, 8, 197 + len(prompt_ids), 24]
    assert count(florence2) == TRUTH["scene00.png"]


def test_what_breaks_in_one_picture_does_not_reach_the_next(florence2: Florence2) -> None:
    """A newcomer begins with a copy of some row's cache, hidden by a mask, through which NaN would pass."""
    frame = open_picture((SCENES / "scene00.png").read_bytes(), FOLDER.image_size, 10**8)
    sound = florence2.encode(frame)
    broken = replace(sound, cross_attention={name: values * np.nan for name, values in sound.cross_attention.items()})
    ended: dict[Any, Any] = {}
    florence2.start("broken", broken)
    florence2.start("first", sound)
    ended |= florence2.step()
    florence2.start("second", sound)
    while len(ended) < 3:
        ended |= florence2.step()
    assert isinstance(ended["broken"], ModelError)
    assert_alike([ended["first"], ended["second"]], [florence2.detect(frame)] * 2)


def test_prompts_of_different_lengths_are_decoded_together(florence2: Florence2) -> None:
    """They come one after the other, the longest in the middle, and leave when they are finished."""
    frame = open_picture((SCENES / "scene00.png").read_bytes(), FOLDER.image_size, 10**8)
    vocabulary = Prompt(Task.OPEN_VOCABULARY_DETECTION, "dog"), Prompt(Task.OPEN_VOCABULARY_DETECTION, "a red car " * 9)
    prompts = [Prompt(Task.REGION_PROPOSAL), OBJECT_DETECTION, *vocabulary, Prompt(Task.DENSE_REGION_CAPTION)]
    ended: dict[Any, Any] = {}
    for prompt in prompts:
        florence2.start(prompt, florence2.encode(frame, prompt))
        ended |= florence2.step()
    while len(ended) < len(prompts):
        ended |= florence2.step()
    for prompt in prompts:
        assert_alike([ended[prompt]], [florence2.detect(frame, prompt)])
    assert count(florence2) == TRUTH["scene00.png"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("word " * 2000, "too long"), ("dog<loc_5>", "mark of the model's own"), ("</s>", "mark of the model's own")],
)
def test_texts_that_can_not_be_asked(florence2: Florence2, text: str, reason: str) -> None:
    frame = open_picture((SCENES / "scene00.png").read_bytes(), FOLDER.image_size, 10**8)
    with pytest.raises(DocumentError, match=reason):
        florence2.encode(frame, Prompt(Task.OPEN_VOCABULARY_DETECTION, text))


def test_settings_go_before_the_checkpoints_own() -> None:
    settings = load_settings({"num_beams": 1, "no_repeat_ngram": 0, "max_new_tokens": 9999, "inference_threads": 1})
    generation = load_model(FOLDER, settings).generation
    assert (generation.num_beams, generation.no_repeat_ngram_size) == (1, 0)
    assert generation.max_new_tokens == FOLDER.max_positions


def test_few_tokens_are_told_as_truncated() -> None:
    florence2 = load_model(FOLDER, load_settings({"max_new_tokens": 7}))
    frame = open_picture((SCENES / "scene00.png").read_bytes(), FOLDER.image_size, 10**8)
    detection = florence2.detect(frame)
    assert detection.truncated
    assert len(detection.detections) == 1


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(DEFAULT_MODEL, folder)
    return folder


def rewrite(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def test_folders_that_can_not_be_used(copy: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        load_manifest(copy / "nowhere")
    with pytest.raises(ModelError, match=r"no manifest.json.*python -m convert"):
        load_manifest(copy.parent)
    rewrite(copy / "manifest.json", format=0)
    with pytest.raises(ModelError, match=f"format 0; this version reads format {FORMAT}"):
        load_manifest(copy)
    rewrite(copy / "manifest.json", format=FORMAT, geometry=None)
    with pytest.raises(ModelError, match=r"incompletely: manifest.json must have format, name, precision and geometry"):
        load_manifest(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ModelError, match="can't be read as JSON"):
        load_manifest(copy)


def test_odd_settings_in_a_folder(copy: Path) -> None:
    path = copy / "generation_config.json"
    path.write_text(path.read_text().replace("num_beams", "num_bears"))
    with pytest.raises(ModelError, match=r"incompletely: .*generation_config.json the generation settings"):
        load_manifest(copy)


def test_missing_and_damaged_files_are_named(copy: Path) -> None:
    (copy / "decoder.xml").write_bytes(b" " * (copy / "decoder.xml").stat().st_size)
    with pytest.raises(
        ModelError, match=r"decoder.xml can't be read: it is no graph, or none that this OpenVINO knows"
    ):
        load_model(load_manifest(copy), load_settings())
    with pytest.raises(ModelError, match=r"decoder.xml is not the file that its manifest.json names"):
        check_hashes(load_manifest(copy))
    (copy / "vision.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"vision.bin has 5 bytes, not \d+"):
        load_manifest(copy)
    (copy / "encoder.bin").unlink()
    with pytest.raises(ModelError, match=r"lacks encoder.bin"):
        load_manifest(copy)


SIGNALLED = """
import gc
import signal
from concurrent.futures import ThreadPoolExecutor
from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.florence.model import Detector
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.manifest import read_folder

folder = read_folder(DEFAULT_MODEL)
loaded = [Detector(folder, RuntimeOptions("CPU"), folder.generation) for _ in range(2)]


def end():
    loaded.pop(0)
    gc.collect()


{ending}
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""


@pytest.mark.parametrize(
    "ending",
    ["end(), end()", "ThreadPoolExecutor().submit(end).result(), end()"],
    ids=["the first before the second", "in another thread"],
)
def test_signals_are_handled_after_models_have_ended(ending: str) -> None:
    command = [sys.executable, "-c", SIGNALLED.format(ending=ending)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "handled\n", "")


def test_the_cache_of_compiled_models(tmp_path: Path) -> None:
    load_model(FOLDER, load_settings({"cache_dir": tmp_path / "cache"}))
    assert list((tmp_path / "cache").iterdir())
    assert count(load_model(FOLDER, load_settings({"cache_dir": tmp_path / "cache"}))) == TRUTH["scene00.png"]


class ErringCore(FakeCore):
    """A GPU whose decoder is another one than the model's: its bans are left out."""

    def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
        if device.startswith("GPU") and any("banned_ids" in port.names for port in model.inputs):
            unban(model)
        return super().compile_model(model, device, properties)


def unban(decoder: Any) -> None:
    """Let a packed decoder's bans ban nothing."""
    for node in decoder.get_ops():
        banning = node.input_value(2).get_node() if node.get_type_name() == "Select" else None
        if banning is not None and banning.get_type_name() == "Constant" and np.isneginf(banning.get_data()).all():
            banning.output(0).replace(ov.opset13.constant(np.float32(0)).output(0))


def test_a_gpu_that_computes_like_the_cpu_passes_the_test_at_each_load() -> None:
    florence2 = load_model(FOLDER, load_settings({"device": "GPU", "precision": "f32"}), FakeCore(["CPU", "GPU"]))
    assert florence2.device_test is not None
    assert florence2.device_test.passed
    assert florence2.devices["decoder"] == "GPU"


def test_a_gpu_that_errs_is_named_and_not_used_under_auto(caplog: pytest.LogCaptureFixture) -> None:
    florence2 = load_model(FOLDER, load_settings({"device": "AUTO"}), ErringCore(["CPU", "GPU"]))
    assert set(florence2.devices.values()) == {"CPU"}
    assert florence2.device_test is not None
    assert florence2.device_test.difference.banned > 0
    assert "GPU computes otherwise than the CPU" in caplog.text
    assert count(florence2) == TRUTH["scene00.png"]


def test_a_gpu_that_errs_is_an_error_where_it_is_named() -> None:
    with pytest.raises(ModelError, match=r"GPU computes otherwise than the CPU.* FLORENCE_DEVICE=CPU does without it"):
        load_model(FOLDER, load_settings({"device": "GPU"}), ErringCore(["CPU", "GPU"]))


class BlurringCore(FakeCore):
    """A GPU whose image features are off."""

    def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
        if device.startswith("GPU") and model.inputs[0].get_any_name() == "pixels":
            (result,) = model.get_results()
            features = result.input_value(0)
            noise = np.random.default_rng(0).standard_normal(list(features.get_shape())).astype(np.float32)
            result.input(0).replace_source_output(ov.opset13.add(features, ov.opset13.constant(noise)).output(0))
        return super().compile_model(model, device, properties)


def test_a_gpu_whose_image_features_are_off_is_not_used_under_auto(caplog: pytest.LogCaptureFixture) -> None:
    florence2 = load_model(FOLDER, load_settings({"device": "AUTO", "precision": "f32"}), BlurringCore(["CPU", "GPU"]))
    assert set(florence2.devices.values()) == {"CPU"}
    assert florence2.device_test is not None
    assert florence2.device_test.cosine < COSINE
    assert "GPU computes otherwise than the CPU" in caplog.text


class RaisingCore(FakeCore):
    """A GPU that fails where it is not compiled for: at its context, or at a graph that moves the cache."""

    def __init__(self, where: str) -> None:
        super().__init__(["CPU", "GPU"])
        self.where = where

    def get_default_context(self, device: str) -> Any:
        if self.where == "context":
            raise RuntimeError("no context")
        return super().get_default_context(device)

    def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
        if device == "GPU" and model.get_friendly_name() == self.where:
            raise RuntimeError("no kernel to move the cache")
        return super().compile_model(model, device, properties)


@pytest.mark.parametrize(("where", "error"), [("context", "no context"), ("repack", "no kernel to move the cache")])
def test_a_gpu_that_fails_while_it_is_loaded_gives_way_to_the_cpu_under_auto(
    where: str, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    florence2 = load_model(FOLDER, load_settings({"device": "AUTO"}), RaisingCore(where))
    assert set(florence2.devices.values()) == {"CPU"}
    assert f"GPU fails: {error}" in caplog.text
    assert f"GPU fails: {DRIVER_ERROR}. The CPU is used instead." in caplog.text
    with pytest.raises(ModelError, match=f"GPU fails: {DRIVER_ERROR}"):
        load_model(FOLDER, load_settings({"device": "GPU"}), RaisingCore(where))


class SilentCore(FakeCore):
    """A GPU whose driver answers nothing."""

    def get_property(self, device: str, name: str) -> Any:
        raise RuntimeError("Exception from somewhere.cpp:1:\nno answer\n")


def test_a_gpu_whose_driver_fails_is_listed_with_that(caplog: pytest.LogCaptureFixture) -> None:
    (device,) = find_devices(SilentCore(["GPU"]))
    assert (device.name, device.full_name) == ("GPU", f"can't be asked: {DRIVER_ERROR}")
    assert "GPU can't be asked: no answer" in caplog.text


@pytest.mark.parametrize("pictures", [1, 2])
def test_the_test_of_a_gpu_fits_any_number_of_pictures_at_a_time(pictures: int) -> None:
    settings = load_settings({"device": "GPU", "precision": "f32", "batch_size": pictures})
    test = load_model(FOLDER, settings, FakeCore(["CPU", "GPU"])).device_test
    assert test is not None
    assert test.passed
