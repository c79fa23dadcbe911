"""A Florence-2 checkpoint folder in either format: settings checked before anything is computed, weights strictly.

Native is the format of transformers' own `Florence2ForConditionalGeneration` (florence-community on the hub), original
that of Microsoft's repositories. Whatever the format, the model is the native class. No code of a checkpoint ever runs.
"""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import Florence2Config, Florence2ForConditionalGeneration, GenerationConfig

from convert import original
from convert.conversion_error import VERBOSE, ConversionError
from convert.disagreements import disagreements
from convert.settings import (
    IMAGE_PROCESSOR,
    PROCESSOR,
    Preprocessing,
    early_stopping,
    generation_settings,
    read_json,
    read_preprocessing,
    refuse_pointer,
)
from convert.vision import image_tokens
from convert.weights import State, find_weights, fingerprint, read_weights, stored_types
from florence_tagger.errors import ModelError
from florence_tagger.florence.decoding import GenerationSettings
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.wording import system_words

Format = Literal["native", "original"]

# What the text model is called; florence2_language is the original code's name of it.
TEXT_MODELS = (None, "", "bart", "florence2_language")

LICENCE_NAMES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")

# What transformers and torch raise on configurations with values of other types, lengths or sizes than they expect.
ODD_CONFIGURATION = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    StrictDataclassError,
)

# What torch puts into the names of tensors: for a model on several devices, and for a compiled one.
WRAPPERS = ("module", "_orig_mod")

# One tensor under four names, of which a checkpoint may store any.
TIED_WEIGHTS = (
    "model.language_model.shared.weight",
    "model.language_model.encoder.embed_tokens.weight",
    "model.language_model.decoder.embed_tokens.weight",
    "lm_head.weight",
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose settings were read and found fit to be converted.

    Attributes:
        weights: the files that hold the tensors.
        tokenizer_json: the tokenizer's file, complete with the tokens of the tasks.
        notes: what the person who converts should know, such as files that disagree.
    """

    path: Path
    format: Format
    config: Florence2Config
    generation: GenerationSettings
    preprocessing: Preprocessing
    weights: tuple[Path, ...]
    tokenizer_json: str
    notes: tuple[str, ...] = ()

    @property
    def licences(self) -> list[Path]:
        """The licence files that came with the checkpoint."""
        return sorted({path for pattern in LICENCE_NAMES for path in self.path.glob(pattern) if path.is_file()})

    @property
    def max_positions(self) -> int:
        return int(self.config.text_config.max_position_embeddings)

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokenizer_json)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads every setting of the checkpoint folder `path`; ConversionError names what is missing or unfit."""
    if not path.is_dir():
        raise ConversionError(f"There is no checkpoint folder {path}.")
    refuse_adapter(path)
    values = read_json(path / "config.json")
    weights = find_weights(path)
    form = format_of(values, path)
    config = read_config(values, form, path)
    refuse_without_processor(path, values)
    tokenizer_json = read_tokenizer(path, form)
    check_vision(config, path)
    preprocessing = read_preprocessing(path)
    tokens, most = (
        image_tokens(config.vision_config, preprocessing.image_size),
        config.text_config.max_position_embeddings,
    )
    if not 1 < tokens < most:
        raise ConversionError(f"A picture becomes {tokens} tokens; the encoder has {most} positions.")
    rows = config.text_config.vocab_size
    if (size := Tokenizer(tokenizer_json).size) > rows:
        raise ConversionError(f"The tokenizer has {size} tokens, the model's embedding only {rows} rows.")
    return Checkpoint(
        path,
        form,
        config,
        read_generation(path, form, config),
        preprocessing,
        tuple(weights),
        tokenizer_json,
        tuple(disagreements(path, values, form, Tokenizer(tokenizer_json))),
    )


def refuse_adapter(path: Path) -> None:
    """ConversionError where a folder has an adapter, by itself or beside the model that it would change."""
    if (path / "adapter_config.json").is_file():
        raise ConversionError(
            f"{path} holds an adapter (LoRA). Merge it into its model first, with peft: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)."
        )


def refuse_without_processor(path: Path, config: dict[str, Any]) -> None:
    """ConversionError where a folder lacks the tokenizer or the image processor, with where these may be had."""
    missing = [] if (path / "tokenizer.json").is_file() else ["tokenizer.json"]
    if not any((path / name).is_file() for name in (PROCESSOR, IMAGE_PROCESSOR)):
        missing.append(PROCESSOR)
    if not missing:
        return
    base = config.get("_name_or_path") or "the checkpoint that it was trained from"
    kind = ", as a Trainer's checkpoint" if (path / "trainer_state.json").is_file() else ""
    beside = [name for name in missing if (path.parent / name).is_file()]
    there = f" The folder above has {' and '.join(beside)}." if beside else ""
    raise ConversionError(
        f"{path} has no {' and no '.join(missing)}{kind}.{there} Put the processor of {base} beside the weights: "
        "AutoProcessor.from_pretrained(that).save_pretrained(folder), or a copy of its files."
    )


def check_vision(config: Florence2Config, path: Path) -> None:
    """ConversionError where the vision tower's settings do not go together."""
    vision = config.vision_config
    lists = ("embed_dim", "num_heads", "num_groups", "depths", "patch_size", "patch_stride", "patch_padding")
    values = {name: list(getattr(vision, name)) for name in (*lists, "patch_prenorm")}
    if len({len(value) for value in values.values()}) > 1:
        raise ConversionError(f"{path / 'config.json'}: {', '.join(values)} have not the same number of stages.")
    positive = [name for name in lists if name != "patch_padding" and min(values[name]) < 1]
    if positive or min(values["patch_padding"]) < 0 or vision.window_size < 1:
        raise ConversionError(f"{path / 'config.json'}: {', '.join(positive) or 'the window'} must be positive.")
    for name in ("num_heads", "num_groups"):
        if any(width % parts for width, parts in zip(values["embed_dim"], values[name], strict=True)):
            raise ConversionError(f"{path / 'config.json'}: embed_dim can't be divided by {name}.")


def format_of(values: dict[str, Any], path: Path) -> Format:
    """The format of a configuration, by what is in it."""
    if values.get("model_type") != "florence2":
        raise ConversionError(f"{path / 'config.json'} has model_type {values.get('model_type')!r}, not 'florence2'.")
    if not all(isinstance(values.get(part), dict) for part in ("vision_config", "text_config")):
        raise ConversionError(f"{path / 'config.json'} has no vision_config and text_config.")
    return "original" if original.is_original(values) else "native"


def read_config(values: dict[str, Any], form: Format, path: Path) -> Florence2Config:
    """The model's configuration."""
    try:
        return Florence2Config.from_dict(
            original.native_config(values, path) if form == "original" else with_bart(values, path)
        )
    except ODD_CONFIGURATION as exc:
        raise ConversionError(f"{path / 'config.json'} is no Florence-2 configuration; {VERBOSE}.") from exc


def with_bart(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """A native configuration whose text model is BART by the name that transformers has for it."""
    named = values["text_config"].get("model_type")
    if named not in TEXT_MODELS:
        raise ConversionError(f"{path / 'config.json'}: text_config.model_type is {named!r}; it must be 'bart'.")
    return values | {"text_config": values["text_config"] | {"model_type": "bart"}}


def read_generation(path: Path, form: Format, config: Florence2Config) -> GenerationSettings:
    """The generation settings that are in effect when the checkpoint is used as published."""
    try:
        if form == "original":
            values = original.generation_config(path)
        elif (path / "generation_config.json").is_file():
            stored = read_json(path / "generation_config.json")
            early_stopping(stored.get("early_stopping"))  # which transformers refuses without naming it as we do
            values = GenerationConfig.from_dict(stored)
        else:
            # as `from_pretrained` of a model does it, which also finds what only old configurations have
            values = GenerationConfig.from_pretrained(path, config_file_name="config.json", _from_model_config=True)
    except ODD_CONFIGURATION as exc:
        raise ConversionError(f"The generation settings of {path} are not transformers'; {VERBOSE}.") from exc
    return generation_settings(values, config.text_config)


def read_tokenizer(path: Path, form: Format) -> str:
    """The checkpoint's tokenizer, which must have Florence-2's marks and locations, as the text of its file."""
    file = path / "tokenizer.json"
    refuse_pointer(file)
    try:
        text = file.read_text(encoding="utf-8")
        text = original.complete_tokenizer(text) if form == "original" else text
        Tokenizer(text)
    except ModelError as exc:
        raise ConversionError(f"{path}: {exc}") from exc
    except OSError as exc:
        raise ConversionError(f"{file} can't be read: {system_words(exc)}.") from exc
    except UnicodeDecodeError as exc:
        raise ConversionError(f"{file} is not UTF-8.") from exc
    return text


def load_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Florence2ForConditionalGeneration:
    """The model with the checkpoint's weights in `dtype`, in evaluation mode with plain ("eager") attention.

    Raises:
        ConversionError: the weights can't be read, are not finite in `dtype`, or tensors are missing, surplus or of
            another shape.
    """
    model = empty_model(checkpoint)
    state = native_state(checkpoint, model)
    for name, tensor in state.items():
        state[name] = tensor.to(dtype)
        if not torch.isfinite(state[name]).all():
            raise ConversionError(f"{name} has values beyond the range of {dtype}; convert with --precision fp32.")
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.set_attn_implementation("eager")
    return model.eval().requires_grad_(False)


def empty_model(checkpoint: Checkpoint) -> Florence2ForConditionalGeneration:
    """The model that the configuration describes, without memory for its weights."""
    try:
        with torch.device("meta"):
            return Florence2ForConditionalGeneration(checkpoint.config)
    except ODD_CONFIGURATION as exc:
        raise ConversionError(f"{checkpoint.path / 'config.json'} describes no model; {VERBOSE}.") from exc


def describe_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """The types in which the weights are stored, and a hash that does not depend on format and files."""
    state = native_state(checkpoint, empty_model(checkpoint))
    unique = {name: tensor for name, tensor in state.items() if name not in TIED_WEIGHTS[1:]}
    return {"dtypes": stored_types(state), "weights_sha256": fingerprint(unique)}


def native_state(checkpoint: Checkpoint, model: Florence2ForConditionalGeneration) -> State:
    """The stored tensors by their native names; ConversionError unless they are exactly those of the empty `model`."""
    expected = model.state_dict()
    is_original = checkpoint.format == "original"
    names = {name: original.stored_name(name) if is_original else name for name in expected}
    tied = [names[name] for name in TIED_WEIGHTS]
    stored = without_bias(without_wrappers(read_weights(checkpoint.weights), set(names.values())))
    stored = fill_tied(stored, tied)
    if is_original:
        stored = {name: original.native_tensor(name, tensor) for name, tensor in stored.items()}
    check_tensors(stored, {names[name]: tensor for name, tensor in expected.items()})
    return {name: stored[names[name]] for name in expected}


def without_wrappers(stored: State, wanted: Set[str]) -> State:
    """The tensors by their names in the model, where they were stored by those in what was around it.

    That is PyTorch's own wrappers, and any one object whose attribute the model was.
    """
    plain: State = {}
    for name, tensor in stored.items():
        own = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if own in plain:
            raise ConversionError(f"{own} is stored twice, once as {name}.")
        plain[own] = tensor
    inner = {name.partition(".")[2]: tensor for name, tensor in plain.items()}
    around = {name.partition(".")[0] for name in plain}
    surplus = {name for name in plain if name not in wanted and not is_bias(name)}
    fits = all(name in wanted or is_bias(name) for name in inner)
    return inner if surplus and len(around) == 1 and fits else plain


def is_bias(name: str) -> bool:
    """Whether a tensor is BART's buffer of what is added to the logits."""
    return name.rpartition(".")[2] == "final_logits_bias"


def without_bias(stored: State) -> State:
    """The tensors without what is added to the logits; ConversionError where that is not nothing."""
    for name in filter(is_bias, stored):
        if torch.count_nonzero(stored[name]):
            raise ConversionError(f"{name} is not zero: what it adds to each token's logit can't be converted.")
    return {name: tensor for name, tensor in stored.items() if not is_bias(name)}


def fill_tied(stored: State, tied: list[str]) -> State:
    """Completes the names of the tied embedding from whichever are stored; ConversionError where they differ."""
    copies = [(name, stored[name]) for name in tied if name in stored]
    if not copies:
        return stored
    first, embedding = copies[0]
    for name, copy in copies[1:]:
        if copy.shape == embedding.shape and not torch.equal(copy, embedding):
            raise ConversionError(f"{first} and {name} differ: models with an untied output layer are not supported.")
    return stored | dict.fromkeys(tied, embedding)


def check_tensors(stored: State, expected: State) -> None:
    """ConversionError unless `stored` has exactly the expected names and shapes."""
    wrong = [f"{name} is missing" for name in expected.keys() - stored.keys()]
    wrong += [f"{name} is not part of the model" for name in stored.keys() - expected.keys()]
    wrong += [
        f"{name} has shape {list(stored[name].shape)}, the configuration wants {list(expected[name].shape)}"
        for name in stored.keys() & expected.keys()
        if stored[name].shape != expected[name].shape
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:5])
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConversionError(f"The weights do not fit the configuration: {shown}{more}.")
