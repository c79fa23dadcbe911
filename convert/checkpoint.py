"""A native Florence-2 checkpoint folder: its settings checked before anything is computed, its weights loaded strictly.

Native means transformers' own `Florence2ForConditionalGeneration`, the format of florence-community on the hub. No code
of a checkpoint is ever run.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Florence2Config, Florence2ForConditionalGeneration, GenerationConfig

from convert.errors import ConversionError
from florence_tagger.errors import ModelError
from florence_tagger.florence.decoding import GenerationSettings
from florence_tagger.florence.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
LICENCE_NAMES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
BICUBIC = 3
CHANNELS = 3
MOST_NEW_TOKENS = 1024  # where a checkpoint names no limit

# What transformers and torch raise on configurations with values of other types, lengths or sizes than they expect.
ODD_CONFIGURATION = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    StrictDataclassError,
)

# One tensor under four names, of which a checkpoint may store any.
TIED_WEIGHTS = (
    "model.language_model.shared.weight",
    "model.language_model.encoder.embed_tokens.weight",
    "model.language_model.decoder.embed_tokens.weight",
    "lm_head.weight",
)

# Generation settings that the decoder of `florence_tagger` does not have, with the values that mean "off".
UNSUPPORTED_GENERATION: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "constraints": (None,),
    "do_sample": (None, False),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1.0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "num_beam_groups": (None, 1),
    "repetition_penalty": (None, 1.0),
    "sequence_bias": (None,),
    "suppress_tokens": (None,),
}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the model's input: bicubic resize to `image_size` (height, width), then normalisation.

    Attributes:
        image_mean, image_std: per channel, of pixel values scaled to 0..1.
    """

    image_size: tuple[int, int]
    image_mean: list[float]
    image_std: list[float]

    def as_published(self) -> dict[str, Any]:
        """The settings as a `preprocessor_config.json` has them."""
        height, width = self.image_size
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": height, "width": width},
            "resample": BICUBIC,
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
        }


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose settings were read and found fit to be converted."""

    path: Path
    config: Florence2Config
    generation: GenerationSettings
    preprocessing: Preprocessing

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def licences(self) -> list[Path]:
        """The licence files that came with the checkpoint."""
        return sorted({path for pattern in LICENCE_NAMES for path in self.path.glob(pattern) if path.is_file()})

    @property
    def max_positions(self) -> int:
        return int(self.config.text_config.max_position_embeddings)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads every setting of the checkpoint folder `path`; ConversionError names what is missing or unfit."""
    if not path.is_dir():
        raise ConversionError(f"There is no checkpoint folder {path}.")
    config = read_config(path)
    generation = read_generation(path, config)
    tokenizer = read_tokenizer(path)
    rows = config.text_config.vocab_size
    if tokenizer.size > rows:
        raise ConversionError(f"The tokenizer has {tokenizer.size} tokens, the model's embedding only {rows} rows.")
    return Checkpoint(path, config, generation, read_preprocessing(path))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ConversionError where it is missing or not one."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConversionError(f"{path.parent} has no {path.name}.") from None
    except ValueError as exc:
        raise ConversionError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ConversionError(f"{path} is not a JSON object.")
    return value


def read_config(path: Path) -> Florence2Config:
    """The model's configuration."""
    values = read_json(path / "config.json")
    if values.get("model_type") != "florence2":
        raise ConversionError(f"{path / 'config.json'} has model_type {values.get('model_type')!r}, not 'florence2'.")
    if not all(isinstance(values.get(part), dict) for part in ("vision_config", "text_config")):
        raise ConversionError(f"{path / 'config.json'} has no vision_config and text_config.")
    if "dim_embed" in values["vision_config"]:
        raise ConversionError(
            f"{path} is in the original format of Microsoft's repositories, which can't be converted yet. "
            "Take the same model in the native format, florence-community/Florence-2-*."
        )
    try:
        return Florence2Config.from_dict(values)
    except ODD_CONFIGURATION as exc:
        raise ConversionError(f"{path / 'config.json'} is no Florence-2 configuration: {exc}") from exc


def read_generation(path: Path, config: Florence2Config) -> GenerationSettings:
    """The generation settings, as transformers would use them for this checkpoint."""
    if (path / "generation_config.json").is_file():
        values = GenerationConfig.from_dict(read_json(path / "generation_config.json"))
    else:
        values = GenerationConfig.from_model_config(config)
    for name, off in UNSUPPORTED_GENERATION.items():
        if (value := getattr(values, name, None)) not in off:
            raise ConversionError(f"The checkpoint generates with {name} = {value!r}, which is not supported.")
    return GenerationSettings(
        decoder_start_token_id=token_id(values.decoder_start_token_id, config.text_config.decoder_start_token_id),
        eos_token_id=token_id(values.eos_token_id, config.text_config.eos_token_id),
        max_new_tokens=most_new_tokens(values, config.text_config.max_position_embeddings),
        num_beams=values.num_beams or 1,
        no_repeat_ngram_size=values.no_repeat_ngram_size or 0,
        forced_bos_token_id=values.forced_bos_token_id,
        forced_eos_token_id=values.forced_eos_token_id,
        early_stopping=values.early_stopping or False,
        length_penalty=1.0 if values.length_penalty is None else float(values.length_penalty),
    )


def token_id(value: Any, default: Any) -> int:
    """One token id, which settings may also give as a list of one."""
    chosen = default if value is None else value
    if isinstance(chosen, list) and len(chosen) == 1:
        chosen = chosen[0]
    if not isinstance(chosen, int):
        raise ConversionError(f"The generation settings need one start token and one end token, not {chosen!r}.")
    return chosen


def most_new_tokens(values: GenerationConfig, max_positions: int) -> int:
    """The checkpoint's limit of new tokens, at most as many as the decoder has positions."""
    if values.max_new_tokens:
        wanted = values.max_new_tokens
    elif values.max_length:
        wanted = values.max_length - 1  # the start token counts there
    else:
        wanted = MOST_NEW_TOKENS
    return min(int(wanted), max_positions)


def read_preprocessing(path: Path) -> Preprocessing:
    """The image processor's settings; only what Florence-2 does is supported."""
    if (path / "preprocessor_config.json").is_file():
        values = read_json(path / "preprocessor_config.json")
    else:
        values = read_json(path / "processor_config.json").get("image_processor", {})
    size = values.get("size")
    expected = {"do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True}
    unfit = [name for name, value in expected.items() if values.get(name, value) is not value]
    if values.get("resample", BICUBIC) != BICUBIC:
        unfit.append("resample")
    if not math.isclose(values.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        unfit.append("rescale_factor")
    if not isinstance(size, dict) or not all(isinstance(size.get(side), int) for side in ("height", "width")):
        unfit.append("size")
    unfit += [name for name in ("image_mean", "image_std") if len(values.get(name, ())) != CHANNELS]
    if unfit:
        raise ConversionError(
            f"{path}: the image processor's {', '.join(unfit)} is not Florence-2's: a bicubic resize to a height and a "
            "width, division by 255 and normalisation are supported."
        )
    return Preprocessing((values["size"]["height"], values["size"]["width"]), values["image_mean"], values["image_std"])


def read_tokenizer(path: Path) -> Tokenizer:
    """The checkpoint's tokenizer, which must have Florence-2's marks and locations."""
    if not (path / "tokenizer.json").is_file():
        raise ConversionError(f"{path} has no tokenizer.json.")
    try:
        return Tokenizer(path / "tokenizer.json")
    except ModelError as exc:
        raise ConversionError(str(exc)) from exc


def load_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Florence2ForConditionalGeneration:
    """The model with the checkpoint's weights in `dtype`, in evaluation mode with plain ("eager") attention.

    Raises:
        ConversionError: the weights can't be read, or tensors are missing, surplus or of another shape.
    """
    path = checkpoint.path / WEIGHTS
    if not path.is_file():
        raise ConversionError(f"{checkpoint.path} has no {WEIGHTS}.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as exc:
        raise ConversionError(f"{path} can't be read: {exc}") from exc
    model = empty_model(checkpoint)
    fill_tied(state)
    check_tensors(state, model.state_dict())
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.set_attn_implementation("eager")
    return model.to(dtype).eval().requires_grad_(False)


def empty_model(checkpoint: Checkpoint) -> Florence2ForConditionalGeneration:
    """The model that the configuration describes, without memory for its weights."""
    try:
        with torch.device("meta"):
            return Florence2ForConditionalGeneration(checkpoint.config)
    except ODD_CONFIGURATION as exc:
        raise ConversionError(f"{checkpoint.path / 'config.json'} describes no model: {exc}") from exc


def fill_tied(state: dict[str, torch.Tensor]) -> None:
    """Completes the four names of the tied embedding from whichever is stored."""
    stored = [name for name in TIED_WEIGHTS if name in state]
    if stored:
        state.update(dict.fromkeys(TIED_WEIGHTS, state[stored[0]]))


def check_tensors(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """ConversionError unless `state` has exactly the expected names and shapes."""
    wrong = [f"{name} is missing" for name in expected.keys() - state.keys()]
    wrong += [f"{name} is not part of the model" for name in state.keys() - expected.keys()]
    wrong += [
        f"{name} has shape {list(state[name].shape)}, the configuration wants {list(expected[name].shape)}"
        for name in state.keys() & expected.keys()
        if state[name].shape != expected[name].shape
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:5])
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConversionError(f"The weights do not fit the configuration: {shown}{more}.")
