"""Florence-2 checkpoint folders in either format: all settings are checked first, weights are loaded strictly.

Native is the format of transformers' own `Florence2ForConditionalGeneration` (florence-community on the hub), original
that of Microsoft's repositories. Both are loaded into the native class. No code of a checkpoint ever runs.
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
from convert.disagreements import find_disagreements
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
from convert.vision import num_image_tokens
from convert.weights import State, find_weights, fingerprint, read_weights, stored_types
from florence_tagger.errors import ModelError
from florence_tagger.florence.decoding import GenerationSettings
from florence_tagger.florence.tokenizer import Tokenizer
from florence_tagger.wording import system_words

Format = Literal["native", "original"]

# Accepted types of the text model; florence2_language is the original code's name.
TEXT_MODEL_TYPES = (None, "", "bart", "florence2_language")

LICENSE_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")

# Errors that transformers and torch raise on configuration values of unexpected types, lengths or sizes.
CONFIGURATION_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    StrictDataclassError,
)

# Prefixes of tensor names that torch adds: for a model on several devices, and for a compiled one.
WRAPPERS = ("module", "_orig_mod")

# Four names of one tensor; a checkpoint may store any of them.
TIED_WEIGHTS = (
    "model.language_model.shared.weight",
    "model.language_model.encoder.embed_tokens.weight",
    "model.language_model.decoder.embed_tokens.weight",
    "lm_head.weight",
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with valid settings, which can be converted.

    Attributes:
        weights: the files of the tensors.
        tokenizer_json: content of the tokenizer's file, including the tokens of the tasks.
        notes: remarks for the user, such as files that disagree.
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
    def license_files(self) -> list[Path]:
        """The checkpoint's license files."""
        return sorted({path for pattern in LICENSE_PATTERNS for path in self.path.glob(pattern) if path.is_file()})

    @property
    def max_positions(self) -> int:
        """Number of positions of the encoder and of the decoder."""
        return int(self.config.text_config.max_position_embeddings)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of `tokenizer_json`."""
        return Tokenizer(self.tokenizer_json)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read all settings of the checkpoint folder `path`; ConversionError if one is missing or unsupported."""
    if not path.is_dir():
        raise ConversionError(f"There is no checkpoint folder {path}.")
    refuse_adapter(path)
    values = read_json(path / "config.json")
    weights = find_weights(path)
    checkpoint_format = detect_format(values, path)
    config = read_config(values, checkpoint_format, path)
    refuse_without_processor(path, values)
    tokenizer_json = read_tokenizer(path, checkpoint_format)
    check_vision(config, path)
    preprocessing = read_preprocessing(path)
    num_tokens = num_image_tokens(config.vision_config, preprocessing.image_size)
    max_positions = config.text_config.max_position_embeddings
    if not 1 < num_tokens < max_positions:
        raise ConversionError(f"A picture becomes {num_tokens} tokens; the encoder has {max_positions} positions.")
    rows = config.text_config.vocab_size
    if (size := Tokenizer(tokenizer_json).size) > rows:
        raise ConversionError(f"The tokenizer has {size} tokens, the model's embedding only {rows} rows.")
    return Checkpoint(
        path,
        checkpoint_format,
        config,
        read_generation(path, checkpoint_format, config),
        preprocessing,
        tuple(weights),
        tokenizer_json,
        tuple(find_disagreements(path, values, checkpoint_format, Tokenizer(tokenizer_json))),
    )


def refuse_adapter(path: Path) -> None:
    """Raise ConversionError if a folder has an adapter, with or without the model that it modifies."""
    if (path / "adapter_config.json").is_file():
        raise ConversionError(
            f"{path} holds an adapter (LoRA). Merge it into its model first, with peft: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)."
        )


def refuse_without_processor(path: Path, config: dict[str, Any]) -> None:
    """Raise ConversionError if a folder lacks the tokenizer or the image processor; the text says how to get them."""
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
    """Raise ConversionError if the vision tower's settings are inconsistent."""
    vision = config.vision_config
    names = ("embed_dim", "num_heads", "num_groups", "depths", "patch_size", "patch_stride", "patch_padding")
    values = {name: list(getattr(vision, name)) for name in (*names, "patch_prenorm")}
    if len({len(value) for value in values.values()}) > 1:
        raise ConversionError(f"{path / 'config.json'}: {', '.join(values)} have not the same number of stages.")
    too_small = [name for name in names if name != "patch_padding" and min(values[name]) < 1]
    if too_small or min(values["patch_padding"]) < 0 or vision.window_size < 1:
        raise ConversionError(f"{path / 'config.json'}: {', '.join(too_small) or 'the window'} must be positive.")
    for name in ("num_heads", "num_groups"):
        if any(width % parts for width, parts in zip(values["embed_dim"], values[name], strict=True)):
            raise ConversionError(f"{path / 'config.json'}: embed_dim can't be divided by {name}.")


def detect_format(values: dict[str, Any], path: Path) -> Format:
    """Return the format of a configuration, by its content."""
    if values.get("model_type") != "florence2":
        raise ConversionError(f"{path / 'config.json'} has model_type {values.get('model_type')!r}, not 'florence2'.")
    if not all(isinstance(values.get(part), dict) for part in ("vision_config", "text_config")):
        raise ConversionError(f"{path / 'config.json'} has no vision_config and text_config.")
    return "original" if original.is_original(values) else "native"


def read_config(values: dict[str, Any], checkpoint_format: Format, path: Path) -> Florence2Config:
    """Return the model's configuration."""
    try:
        return Florence2Config.from_dict(
            original.native_config(values, path) if checkpoint_format == "original" else with_bart(values, path)
        )
    except CONFIGURATION_ERRORS as exc:
        raise ConversionError(f"{path / 'config.json'} is no Florence-2 configuration; {VERBOSE}.") from exc


def with_bart(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a native configuration whose text model has the type `bart`, as transformers requires."""
    model_type = values["text_config"].get("model_type")
    if model_type not in TEXT_MODEL_TYPES:
        raise ConversionError(f"{path / 'config.json'}: text_config.model_type is {model_type!r}; it must be 'bart'.")
    return values | {"text_config": values["text_config"] | {"model_type": "bart"}}


def read_generation(path: Path, checkpoint_format: Format, config: Florence2Config) -> GenerationSettings:
    """Return the generation settings that are in effect when the checkpoint is used as published."""
    try:
        if checkpoint_format == "original":
            values = original.generation_config(path)
        elif (path / "generation_config.json").is_file():
            stored = read_json(path / "generation_config.json")
            early_stopping(stored.get("early_stopping"))  # transformers' own error does not name the setting
            values = GenerationConfig.from_dict(stored)
        else:
            # As a model's `from_pretrained` does: it also reads the settings that only old configurations have.
            values = GenerationConfig.from_pretrained(path, config_file_name="config.json", _from_model_config=True)
    except CONFIGURATION_ERRORS as exc:
        raise ConversionError(f"The generation settings of {path} are not transformers'; {VERBOSE}.") from exc
    return generation_settings(values, config.text_config)


def read_tokenizer(path: Path, checkpoint_format: Format) -> str:
    """Return the text of the tokenizer's file; the tokenizer must have Florence-2's special and location tokens."""
    file = path / "tokenizer.json"
    refuse_pointer(file)
    try:
        text = file.read_text(encoding="utf-8")
        text = original.complete_tokenizer(text) if checkpoint_format == "original" else text
        Tokenizer(text)
    except ModelError as exc:
        raise ConversionError(f"{path}: {exc}") from exc
    except OSError as exc:
        raise ConversionError(f"{file} can't be read: {system_words(exc)}.") from exc
    except UnicodeDecodeError as exc:
        raise ConversionError(f"{file} is not UTF-8.") from exc
    return text


def load_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Florence2ForConditionalGeneration:
    """Return the model with the checkpoint's weights in `dtype`, in evaluation mode with plain ("eager") attention.

    Raises:
        ConversionError: the weights can't be read or are not finite in `dtype`, or a tensor is missing, unexpected or
            of another shape.
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
    """Return the model that the configuration describes, on the meta device: without memory for its weights."""
    try:
        with torch.device("meta"):
            return Florence2ForConditionalGeneration(checkpoint.config)
    except CONFIGURATION_ERRORS as exc:
        raise ConversionError(f"{checkpoint.path / 'config.json'} describes no model; {VERBOSE}.") from exc


def describe_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the dtypes of the stored weights, and a hash that does not depend on the format and the files."""
    state = native_state(checkpoint, empty_model(checkpoint))
    unique = {name: tensor for name, tensor in state.items() if name not in TIED_WEIGHTS[1:]}
    return {"dtypes": stored_types(state), "weights_sha256": fingerprint(unique)}


def native_state(checkpoint: Checkpoint, model: Florence2ForConditionalGeneration) -> State:
    """Return the stored tensors by their native names; ConversionError unless they are exactly those of `model`."""
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


def without_wrappers(stored: State, expected: Set[str]) -> State:
    """Return the tensors by their names in the model, without the prefixes of wrappers around it.

    A wrapper is one of PyTorch's own, or a single object that had the model as an attribute.
    """
    unwrapped: State = {}
    for name, tensor in stored.items():
        unwrapped_name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if unwrapped_name in unwrapped:
            raise ConversionError(f"{unwrapped_name} is stored twice, once as {name}.")
        unwrapped[unwrapped_name] = tensor
    inner = {name.partition(".")[2]: tensor for name, tensor in unwrapped.items()}
    prefixes = {name.partition(".")[0] for name in unwrapped}
    unexpected = {name for name in unwrapped if name not in expected and not is_bias(name)}
    fits = all(name in expected or is_bias(name) for name in inner)
    return inner if unexpected and len(prefixes) == 1 and fits else unwrapped


def is_bias(name: str) -> bool:
    """Return whether a tensor is BART's buffer of biases for the logits."""
    return name.rpartition(".")[2] == "final_logits_bias"


def without_bias(stored: State) -> State:
    """Return the tensors without the logits' biases; ConversionError if these are not zero."""
    for name in filter(is_bias, stored):
        if torch.count_nonzero(stored[name]):
            raise ConversionError(f"{name} is not zero: what it adds to each token's logit can't be converted.")
    return {name: tensor for name, tensor in stored.items() if not is_bias(name)}


def fill_tied(stored: State, tied: list[str]) -> State:
    """Return the tensors with the tied embedding under all its names; ConversionError if stored copies differ."""
    copies = [(name, stored[name]) for name in tied if name in stored]
    if not copies:
        return stored
    first_name, embedding = copies[0]
    for name, copy in copies[1:]:
        if copy.shape == embedding.shape and not torch.equal(copy, embedding):
            raise ConversionError(
                f"{first_name} and {name} differ: models with an untied output layer are not supported."
            )
    return stored | dict.fromkeys(tied, embedding)


def check_tensors(stored: State, expected: State) -> None:
    """Raise ConversionError unless `stored` has exactly the expected names and shapes."""
    problems = [f"{name} is missing" for name in expected.keys() - stored.keys()]
    problems += [f"{name} is not part of the model" for name in stored.keys() - expected.keys()]
    problems += [
        f"{name} has shape {list(stored[name].shape)}, the configuration wants {list(expected[name].shape)}"
        for name in stored.keys() & expected.keys()
        if stored[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ConversionError(f"The weights do not fit the configuration: {shown}{more}.")
