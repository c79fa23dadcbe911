"""Settings beside a checkpoint's weights: JSON files, image processor, generation."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import GenerationConfig

from convert.conversion_error import ConversionError
from convert.text import CANDIDATES
from florence_tagger.florence.decoding import GenerationSettings
from florence_tagger.wording import json_words, system_words

BICUBIC = 3
CHANNELS = 3
MAX_NEW_TOKENS = 1024  # for checkpoints without a limit
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
PROCESSOR, IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"

# Generation settings that the decoder of `florence_tagger` does not support, with the values that turn them off.
UNSUPPORTED_GENERATION: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "constraints": (None,),
    "do_sample": (None, False),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1.0),
    "min_length": (None, 0),
    "num_beam_groups": (None, 1),
    "renormalize_logits": (None, False),
    "repetition_penalty": (None, 1.0),
    "sequence_bias": (None,),
    "suppress_tokens": (None, []),
}


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of pictures: bicubic resize to `image_size` (height, width), then normalization.

    Attributes:
        image_size: height and width in pixels.
        image_mean: per channel, for pixel values scaled to 0..1.
        image_std: per channel, for pixel values scaled to 0..1.
    """

    image_size: tuple[int, int]
    image_mean: list[float]
    image_std: list[float]

    def as_published(self) -> dict[str, Any]:
        """Return the settings in the form of `preprocessor_config.json`."""
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


def refuse_pointer(path: Path) -> None:
    """Raise ConversionError if a file is a git-LFS pointer, not yet replaced with its content."""
    if is_pointer(path):
        raise ConversionError(
            f"{path} is a git-LFS pointer, not the file itself: run `git lfs pull` in its folder, or get the "
            "checkpoint by `hf download`."
        )


def is_pointer(path: Path) -> bool:
    """Return whether a file is a git-LFS pointer, by its first line (see git-LFS' docs/spec.md)."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:  # reading the file reports the error
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; ConversionError if the file is missing or holds something else."""
    refuse_pointer(path)
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConversionError(f"{path.parent} has no {path.name}.") from None
    except OSError as exc:
        raise ConversionError(f"{path} can't be read: {system_words(exc)}.") from exc
    except (ValueError, RecursionError) as exc:
        raise ConversionError(f"{path} is not JSON: {json_words(exc)}.") from exc
    if not isinstance(value, dict):
        raise ConversionError(f"{path} is not a JSON object.")
    return value


def read_preprocessing(path: Path) -> Preprocessing:
    """Return the image processor's settings; ConversionError if they differ from what Florence-2 supports."""
    values = image_processor(path)
    size = values.get("size")
    expected = {"do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True}
    unsupported = [name for name, value in expected.items() if values.get(name, value) is not value]
    if values.get("resample", BICUBIC) != BICUBIC:
        unsupported.append("resample")
    if not is_number(factor := values.get("rescale_factor", 1 / 255)) or not math.isclose(
        factor, 1 / 255, rel_tol=1e-6
    ):
        unsupported.append("rescale_factor")
    if not isinstance(size, dict) or not all(is_size(size.get(side)) for side in ("height", "width")):
        unsupported.append("size")
    unsupported += [name for name in ("image_mean", "image_std") if not is_per_channel(values.get(name))]
    if "image_std" not in unsupported and min(values["image_std"]) <= 0:
        unsupported.append("image_std")
    if unsupported:
        raise ConversionError(
            f"{path}: the image processor's {', '.join(unsupported)} is not Florence-2's: a bicubic resize to a "
            "height and a width, division by 255 and normalisation are supported."
        )
    return Preprocessing((values["size"]["height"], values["size"]["width"]), values["image_mean"], values["image_std"])


def image_processor(path: Path) -> dict[str, Any]:
    """Return the stored settings of the image processor, with transformers' precedence of files.

    Since version 5, `image_processor` in processor_config.json comes first; preprocessor_config.json may be older.
    """
    values: Any = None
    if (path / PROCESSOR).is_file():
        values = read_json(path / PROCESSOR).get("image_processor")
    if values is None and (path / IMAGE_PROCESSOR).is_file():
        values = read_json(path / IMAGE_PROCESSOR)
    if not isinstance(values, dict):
        raise ConversionError(f"{path / PROCESSOR} has no image_processor, and {IMAGE_PROCESSOR} has none, either.")
    return values


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_size(value: Any) -> bool:
    """Return whether a value is a side of a picture, 1 to 4,096 pixels."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 4096


def is_per_channel(value: Any) -> bool:
    """Return whether a value is a list of one finite number per channel."""
    return isinstance(value, list) and len(value) == CHANNELS and all(map(is_number, value))


def generation_settings(values: GenerationConfig, text_config: Any) -> GenerationSettings:
    """Return a checkpoint's generation settings; ConversionError if one is not supported or of another type."""
    for name, off in UNSUPPORTED_GENERATION.items():
        if (value := getattr(values, name, None)) not in off:
            raise ConversionError(f"The checkpoint generates with {name} = {value!r}, which is not supported.")
    vocab_size = text_config.vocab_size
    return GenerationSettings(
        # As in transformers, an answer starts with the BOS token if no start token is set.
        decoder_start_token_id=token_id(
            vocab_size, values.decoder_start_token_id, values.bos_token_id, text_config.bos_token_id
        ),
        eos_token_id=token_id(vocab_size, values.eos_token_id, text_config.eos_token_id),
        max_new_tokens=max_new_tokens(values, text_config.max_position_embeddings),
        num_beams=num_beams(values.num_beams),
        no_repeat_ngram_size=non_negative_int("no_repeat_ngram_size", values.no_repeat_ngram_size, 0),
        forced_bos_token_id=optional_token_id(vocab_size, values.forced_bos_token_id),
        forced_eos_token_id=optional_token_id(vocab_size, values.forced_eos_token_id),
        min_new_tokens=non_negative_int("min_new_tokens", values.min_new_tokens, 0),
        early_stopping=early_stopping(values.early_stopping),
        length_penalty=length_penalty(values.length_penalty),
    )


def num_beams(value: Any) -> int:
    """Return the number of beams; ConversionError if it exceeds half of the decoder graph's candidates."""
    beams = non_negative_int("num_beams", value, 1)
    if not 1 <= beams <= CANDIDATES // 2:
        raise ConversionError(f"The generation setting num_beams is {beams}; 1 to {CANDIDATES // 2} can be searched.")
    return beams


def optional_token_id(vocab_size: int, value: Any) -> int | None:
    """Return a token id, or None if it is not set."""
    return None if value is None else token_id(vocab_size, value)


def token_id(vocab_size: int, *values: Any) -> int:
    """Return the first token id that is set; a list of one id is accepted, too."""
    chosen = next((value for value in values if value is not None), None)
    if isinstance(chosen, list) and len(chosen) == 1:
        chosen = chosen[0]
    if not isinstance(chosen, int) or isinstance(chosen, bool):
        raise ConversionError(f"The generation settings need one start token and one end token, not {chosen!r}.")
    if not 0 <= chosen < vocab_size:
        raise ConversionError(f"The generation settings name token {chosen}; the vocabulary has {vocab_size}.")
    return chosen


def early_stopping(value: Any) -> bool | Literal["never"]:
    """Return the condition under which beam search stops early, as in transformers."""
    if value not in (None, True, False, "never"):
        raise ConversionError(f"The generation setting early_stopping is {value!r}, not true, false or 'never'.")
    return value or False


def length_penalty(value: Any) -> float:
    """Return the exponent of the length by which beam search divides scores."""
    if value is not None and not is_number(value):
        raise ConversionError(f"The generation setting length_penalty is {value!r}, not a finite number.")
    return 1.0 if value is None else float(value)


def non_negative_int(name: str, value: Any, default: int) -> int:
    """Return a setting's value, or the default if it is not set; ConversionError if it is no non-negative integer."""
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConversionError(f"The generation setting {name} is {value!r}, not a whole number.")
    return value


def max_new_tokens(values: GenerationConfig, max_positions: int) -> int:
    """Return the checkpoint's limit of new tokens, at most the decoder's number of positions."""
    limit = non_negative_int("max_new_tokens", values.max_new_tokens, 0)
    if not limit and values.max_length:
        limit = non_negative_int("max_length", values.max_length, 0) - 1  # max_length includes the start token
    return min(limit if limit > 0 else MAX_NEW_TOKENS, max_positions)
