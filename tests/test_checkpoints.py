"""Checkpoints as people have them: original format, shards, pickles, adapters, repositories on a hub."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor

from convert import original
from convert.checkpoint import load_model, read_checkpoint
from convert.conversion import ConversionOptions, convert
from convert.conversion_error import ConversionError
from convert.hub import find_source
from florence_tagger.config import SAMPLES
from florence_tagger.tagger import Tagger
from tests.conftest import CHECKPOINT, ROOT, Told
from tests.formats import as_original


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    return folder


@pytest.fixture
def in_original_format(tmp_path: Path) -> Path:
    return as_original(CHECKPOINT, tmp_path / "original")


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_model(read_checkpoint(folder), torch.float32).state_dict()
    return state


def assert_same_weights(folder: Path) -> None:
    expected, found = state_of(CHECKPOINT), state_of(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("native", "stored"),
    [
        ("model.vision_tower.convs.0.conv.weight", "vision_tower.convs.0.proj.weight"),
        ("model.vision_tower.convs.1.norm.bias", "vision_tower.convs.1.norm.bias"),
        (
            "model.vision_tower.blocks.2.0.spatial_block.conv1.weight",
            "vision_tower.blocks.2.0.spatial_block.conv1.fn.dw.weight",
        ),
        (
            "model.vision_tower.blocks.2.0.channel_block.norm1.weight",
            "vision_tower.blocks.2.0.channel_block.channel_attn.norm.weight",
        ),
        (
            "model.vision_tower.blocks.0.0.spatial_block.window_attn.qkv.bias",
            "vision_tower.blocks.0.0.spatial_block.window_attn.fn.qkv.bias",
        ),
        (
            "model.vision_tower.blocks.0.0.channel_block.norm2.bias",
            "vision_tower.blocks.0.0.channel_block.ffn.norm.bias",
        ),
        (
            "model.vision_tower.blocks.0.0.spatial_block.ffn.fc2.weight",
            "vision_tower.blocks.0.0.spatial_block.ffn.fn.net.fc2.weight",
        ),
        ("model.multi_modal_projector.image_projection.weight", "image_projection"),
        ("model.multi_modal_projector.image_proj_norm.weight", "image_proj_norm.weight"),
        (
            "model.multi_modal_projector.image_position_embed.row_embeddings.weight",
            "image_pos_embed.row_embeddings.weight",
        ),
        (
            "model.multi_modal_projector.visual_temporal_embed.pos_idx_to_embed",
            "visual_temporal_embed.pos_idx_to_embed",
        ),
        ("model.language_model.shared.weight", "language_model.model.shared.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
    ],
)
def test_names_of_the_original_format(native: str, stored: str) -> None:
    assert original.stored_name(native) == stored


def test_both_formats_are_the_same_model(in_original_format: Path) -> None:
    checkpoint = read_checkpoint(in_original_format)
    assert checkpoint.format == "original"
    assert_same_weights(in_original_format)
    native = read_checkpoint(CHECKPOINT)
    names = ("num_beams", "no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id", "early_stopping")
    assert [getattr(checkpoint.generation, name) for name in names] == [
        getattr(native.generation, name) for name in names
    ]
    assert checkpoint.preprocessing == native.preprocessing


def test_both_formats_give_the_same_graphs(in_original_format: Path, tmp_path: Path) -> None:
    for folder, name in ((CHECKPOINT, "native"), (in_original_format, "from-original")):
        convert(ConversionOptions(str(folder), tmp_path / name), Told())
    for graph in ("vision", "encoder", "decoder"):
        for suffix in (".bin", ".xml"):
            paths = [tmp_path / name / f"{graph}{suffix}" for name in ("native", "from-original")]
            assert paths[0].read_bytes() == paths[1].read_bytes()
    manifest = json.loads((tmp_path / "from-original" / "manifest.json").read_text())
    assert manifest["source"]["format"] == "original"
    assert manifest["verification"]["ids_equal"] == 3


def test_an_original_tokenizer_is_completed(in_original_format: Path) -> None:
    """Without its task tokens the tokenizer ends where they begin, and gets them in the published order."""
    path = in_original_format / "tokenizer.json"
    values = json.loads(path.read_text())
    first = next(token["id"] for token in values["added_tokens"] if token["content"] == "<od>")
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < first]
    completed = original.complete_tokenizer(json.dumps(values))
    tokens = json.loads(completed)["added_tokens"]
    added = [(token["content"], token["id"]) for token in tokens if token["id"] >= first]
    assert added == [(token, first + index) for index, token in enumerate(original.EXTRA_TOKENS)]
    assert original.complete_tokenizer(completed) == completed
    assert len(original.EXTRA_TOKENS) == 1024


@pytest.mark.parametrize("name", ["language_model.lm_head.weight", "language_model.model.encoder.embed_tokens.weight"])
def test_any_copy_of_the_tied_embedding_will_do(in_original_format: Path, name: str) -> None:
    path = in_original_format / "model.safetensors"
    state = load_file(path)
    state[name] = state.pop("language_model.model.shared.weight")
    save_file(state, path)
    assert_same_weights(in_original_format)


def test_shards(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    weight_map = {}
    for index in range(3):
        part = dict(list(state.items())[index::3])
        save_file(part, copy / f"model-{index}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{index}.safetensors")
    index_file = copy / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": weight_map}))
    assert_same_weights(copy)
    (copy / "model-1.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"lacks model-1.safetensors"):
        read_checkpoint(copy)
    index_file.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(ConversionError, match="outside the folder"):
        read_checkpoint(copy)
    index_file.write_text("[]")
    with pytest.raises(ConversionError, match="not a JSON object"):
        read_checkpoint(copy)


def test_a_tensor_in_two_shards(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    name = next(iter(state))
    (copy / "model.safetensors").rename(copy / "a.safetensors")
    save_file({name: state[name] + 1}, copy / "b.safetensors")
    weight_map = dict.fromkeys(state, "a.safetensors") | {"x": "b.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConversionError, match=f"b.safetensors has {name}, which another"):
        state_of(copy)


def test_what_an_original_configuration_leaves_to_its_code(in_original_format: Path) -> None:
    path = in_original_format / "config.json"
    values = json.loads(path.read_text())
    for name in ("decoder_start_token_id", "forced_eos_token_id", "bos_token_id", "eos_token_id"):
        values["text_config"].pop(name, None)
    values["text_config"]["max_length"] = 20  # as older versions of transformers write it in each re-saved checkpoint
    path.write_text(json.dumps(values))
    generation = read_checkpoint(in_original_format).generation
    assert (generation.decoder_start_token_id, generation.eos_token_id, generation.forced_eos_token_id) == (2, 2, 2)
    assert generation.max_new_tokens == read_checkpoint(in_original_format).max_positions


def test_pytorch_files(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(state, copy / "pytorch_model.bin")
    assert_same_weights(copy)
    torch.save([1, 2], copy / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="no dictionary of plain tensors"):
        state_of(copy)
    (copy / "pytorch_model.bin").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ConversionError, match="can't be read"):
        state_of(copy)


def renamed(folder: Path, rename: Callable[[str], str], name: str = "model.safetensors") -> None:
    """Stores the tensors by other names, in a file of another name."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({rename(one): tensor for one, tensor in state.items()}, folder / name)


WRAPPED: dict[str, Callable[[str], str]] = {
    "several devices": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "both, the other way": lambda name: f"_orig_mod.module.{name}",
    "compiled within": lambda name: name.replace("language_model.", "language_model._orig_mod."),
    "an attribute": lambda name: f"model.{name}",
    "a wrapped attribute": lambda name: f"module.florence.{name}",
}


@pytest.mark.parametrize("form", ["native", "original"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_what_was_around_a_model_is_taken_off_its_names(
    copy: Path, in_original_format: Path, kind: str, form: str
) -> None:
    folder = copy if form == "native" else in_original_format
    renamed(folder, WRAPPED[kind])
    assert_same_weights(folder)


@pytest.mark.parametrize("form", ["native", "original"])
def test_a_bias_of_zeros_is_left_out_and_no_other(copy: Path, in_original_format: Path, form: str) -> None:
    folder = copy if form == "native" else in_original_format
    state = load_file(folder / "model.safetensors")
    for name in ("language_model.final_logits_bias", "module.final_logits_bias"):
        save_file(state | {name: torch.zeros(1, 1424)}, folder / "model.safetensors")
        assert_same_weights(folder)
        save_file(state | {name: torch.full((1, 1424), 1e-4)}, folder / "model.safetensors")
        with pytest.raises(ConversionError, match="final_logits_bias is not zero"):
            state_of(folder)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "model.bf16.safetensors", "florence2.safetensors"])
def test_weights_of_a_variant_or_by_another_name(copy: Path, name: str) -> None:
    renamed(copy, str, name)
    assert_same_weights(copy)
    shutil.copyfile(CHECKPOINT / "model.safetensors", copy / "model.safetensors")
    (copy / name).write_bytes(b"not looked at")
    assert_same_weights(copy)


def test_variants_in_shards_and_pickled(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(state, copy / "pytorch_model.fp16.bin")
    assert_same_weights(copy)
    (copy / "pytorch_model.fp16.bin").unlink()
    save_file(state, copy / "model.fp16-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(state, "model.fp16-00001-of-00001.safetensors")}
    (copy / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    assert_same_weights(copy)


def test_weights_that_are_there_go_before_pointers_to_others(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert_same_weights(copy)
    shutil.copyfile(copy / "model.safetensors", copy / "pytorch_model.bin")
    with pytest.raises(ConversionError, match=r"model\.safetensors is a git-LFS pointer"):
        read_checkpoint(copy)


@pytest.mark.parametrize("named", ["florence2_language", "", None])
def test_the_text_model_by_its_original_name(copy: Path, named: str | None) -> None:
    values = json.loads((copy / "config.json").read_text())
    values["text_config"]["model_type"] = named
    if named is None:
        del values["text_config"]["model_type"]
    values["vision_config"]["model_type"] = "davit"
    (copy / "config.json").write_text(json.dumps(values))
    assert_same_weights(copy)


# As a fine-tune that was saved again leaves it: mean and deviation of another model in the older file.
STALE = {"image_mean": [0.9, 0.9, 0.9], "image_std": [0.05, 0.05, 0.05]}


def write_values(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def test_the_processors_file_goes_first_as_in_transformers(copy: Path) -> None:
    write_values(copy / "preprocessor_config.json", **STALE)
    checkpoint = read_checkpoint(copy)
    theirs = AutoImageProcessor.from_pretrained(copy, backend="pil")
    assert checkpoint.preprocessing.image_mean == list(theirs.image_mean) == [0.485, 0.456, 0.406]
    assert checkpoint.notes == (
        "processor_config.json and preprocessor_config.json disagree on image_mean ([0.485, 0.456, 0.406], "
        "[0.9, 0.9, 0.9]), image_std ([0.229, 0.224, 0.225], [0.05, 0.05, 0.05]); processor_config.json is used.",
    )
    write_values(copy / "processor_config.json", image_processor=None)
    assert read_checkpoint(copy).preprocessing.image_mean == [0.9, 0.9, 0.9]
    assert read_checkpoint(copy).notes == ()
    (copy / "processor_config.json").unlink()
    assert read_checkpoint(copy).preprocessing.image_mean == [0.9, 0.9, 0.9]


def test_a_stale_processor_file_does_not_reach_the_counts(copy: Path, tmp_path: Path) -> None:
    write_values(copy / "preprocessor_config.json", **STALE)
    told = Told()
    convert(ConversionOptions(str(copy), tmp_path / "converted"), told)
    assert [note for note in told.notes if "disagree on image_mean" in note and note.startswith("Note: ")]
    with Tagger.load(tmp_path / "converted", decoder_processes=1) as tagger:
        counts = tagger.count(SAMPLES / "picnic.jpg")
    assert (counts["apple"], counts["cup"]) == (3, 4)


@pytest.mark.parametrize("unread", [b"{", b"version https://git-lfs.github.com/spec/v1\n", b"[]"])
def test_a_file_that_is_not_used_may_be_anything(copy: Path, unread: bytes) -> None:
    for name in ("preprocessor_config.json", "added_tokens.json", "vocab.json", "tokenizer_config.json"):
        (copy / name).write_bytes(unread)
    assert read_checkpoint(copy).notes == ()


def test_no_files_of_the_bundled_models_checkpoint_disagree(in_original_format: Path) -> None:
    assert read_checkpoint(CHECKPOINT).notes == ()
    assert read_checkpoint(in_original_format).notes == (
        "config.json and generation_config.json disagree on early_stopping (True, False); config.json is used.",
    )


@pytest.mark.parametrize(
    ("name", "values", "note"),
    [
        ("config.json", {"num_beams": 5}, "generation_config.json and config.json disagree on num_beams (3, 5); gen"),
        ("added_tokens.json", {"<loc_0>": 7}, "tokenizer.json and added_tokens.json disagree on <loc_0> (422, 7)"),
        ("vocab.json", {"<s>": 5, "</s>": 2}, "tokenizer.json and vocab.json disagree on <s> (0, 5); tokenizer.json"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9": {"content": "<pad>"}}},
            "tokenizer.json and tokenizer_config.json disagree on <pad> (1, 9)",
        ),
    ],
)
def test_files_that_disagree_are_told(copy: Path, name: str, values: dict[str, Any], note: str) -> None:
    write_values(copy / name, **values)
    (said,) = read_checkpoint(copy).notes
    assert said.startswith(note)


def test_a_trainers_checkpoint_is_told_where_its_processor_is(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint-500"
    shutil.copytree(CHECKPOINT, folder)
    for name in ("tokenizer.json", "processor_config.json"):
        (folder / name).rename(tmp_path / "run" / name)
    (folder / "preprocessor_config.json").unlink()
    (folder / "trainer_state.json").write_text("{}")
    reason = (
        r"The folder above has tokenizer\.json and processor_config\.json\. Put the processor of the checkpoint that"
    )
    with pytest.raises(ConversionError, match=reason):
        read_checkpoint(folder)
    for name in ("tokenizer.json", "processor_config.json"):
        shutil.copyfile(tmp_path / "run" / name, folder / name)
    assert_same_weights(folder)


class Payload:
    """What a hostile pickle would do."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/florence_tagger_was_here"),)  # noqa: S108


def test_a_pickle_with_code_is_not_run(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"weights": Payload()}, copy / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="something else than tensors"):
        state_of(copy)
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ConversionError, match=r"tensors|can't be read"):
        state_of(copy)
    assert not Path("/tmp/florence_tagger_was_here").exists()  # noqa: S108


def test_an_adapter_is_refused_with_the_way_to_merge(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ConversionError, match="merge_and_unload"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("vision_config", {"image_feature_source": ["last_frame"]}, "image_feature_source is"),
        ("vision_config", {"image_pos_embed": {"type": "sine"}}, "image_pos_embed.type is 'sine'"),
        ("text_config", {"normalize_before": True}, "normalize_before is True"),
        ("vision_config", {"dim_embed": [32, 64, 128, 384]}, "has shape"),
    ],
)
def test_originals_that_are_something_else(
    in_original_format: Path, part: str, change: dict[str, Any], reason: str
) -> None:
    values = json.loads((in_original_format / "config.json").read_text())
    values[part] |= change
    (in_original_format / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConversionError, match=reason):
        state_of(in_original_format)


def test_a_missing_tensor_is_named_as_it_is_stored(in_original_format: Path) -> None:
    path = in_original_format / "model.safetensors"
    state = load_file(path)
    del state["vision_tower.convs.0.proj.weight"]
    save_file(state, path)
    with pytest.raises(ConversionError, match=r"vision_tower.convs.0.proj.weight is missing"):
        state_of(in_original_format)


UNWANTED = ("modeling.py", "pytorch_model.bin", "optimizer.bin")  # code, a second copy of the weights, rubbish
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHubServer(ThreadingHTTPServer):
    """Where `FakeHub` answers.

    Attributes:
        served: what was asked for, by path, with the header that authorises.
        breaks_off: the next file of weights ends in its middle.
    """

    breaks_off = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.served: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download needs, serving the committed checkpoint as `owner/tiny`."""

    server: FakeHubServer

    def log_message(self, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.served.append((path, self.headers["Authorization"]))
        if path.startswith("/api/models/owner/tiny/revision/") and path.endswith(("main", "v1", COMMIT)):
            names = [{"rfilename": file.name} for file in [*CHECKPOINT.iterdir(), *map(Path, UNWANTED)]]
            self.answer(200, json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": names}).encode())
        elif path.startswith("/api/models/owner/tiny/revision/"):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/owner/tiny/resolve/{COMMIT}/"):
            content = (CHECKPOINT / path.rpartition("/")[2]).read_bytes()
            tag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}  # noqa: S324
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.answer(206 if start else 200, content[start:], tag)
        elif "gated" in path:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            if self.server.breaks_off and self.path.endswith(".safetensors"):
                self.server.breaks_off = False
                content = content[: len(content) // 2]
            self.wfile.write(content)


def go_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does before huggingface_hub is imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHubServer]:
    server = FakeHubServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    go_to(server.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_repository_on_the_hub(fake_hub: FakeHubServer, revision: str | None) -> None:
    source = find_source("owner/tiny", revision)
    assert (source.name, source.revision) == ("owner/tiny", COMMIT)
    assert not any((source.path / name).exists() for name in UNWANTED)
    assert_same_weights(source.path)


def test_what_the_hub_does_not_have(fake_hub: FakeHubServer) -> None:
    with pytest.raises(ConversionError, match="no revision v9"):
        find_source("owner/tiny", "v9")
    with pytest.raises(ConversionError, match="no repository owner/nothing"):
        find_source("owner/nothing", None)
    with pytest.raises(ConversionError, match="accept its terms"):
        find_source("owner/gated", None)


def test_a_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for nowhere in ("http://127.0.0.1:9", "no address"):
        go_to(nowhere, monkeypatch)
        with pytest.raises(ConversionError, match=r"can't be downloaded.*hf download owner/tiny --local-dir"):
            find_source("owner/tiny", None)


def test_a_download_that_breaks_off_goes_on(fake_hub: FakeHubServer) -> None:
    fake_hub.breaks_off = True
    assert_same_weights(find_source("owner/tiny", None).path)
    assert not fake_hub.breaks_off


def test_what_is_in_the_cache_needs_no_hub(fake_hub: FakeHubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    find_source("owner/tiny", None)
    go_to("http://127.0.0.1:9", monkeypatch)
    assert find_source("owner/tiny", None).revision == COMMIT


def test_the_hubs_environment_is_obeyed(fake_hub: FakeHubServer, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": fake_hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}
    code = "from convert.hub import find_source; print(find_source('owner/tiny', None).path)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=True)
    assert Path(result.stdout.strip()).is_relative_to(tmp_path / "home")
    assert "Bearer hf_secret" in {token for _, token in fake_hub.served}


def test_what_is_neither_folder_nor_repository(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no folder"):
        find_source(str(tmp_path / "nothing" / "there"), None)
    with pytest.raises(ConversionError, match="no folder"):
        find_source("x" * 5000, None)
    with pytest.raises(ConversionError, match="can't be downloaded"):
        find_source("owner/bad..name", None)
    with pytest.raises(ConversionError, match="a revision only goes with"):
        find_source(str(tmp_path), "main")
