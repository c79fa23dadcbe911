"""The settings beside a checkpoint's weights: JSON files, image processor, generation."""

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
MAX_NEW_TOKENS = 1024  # where a checkpoint names no limit
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
PROCESSOR, IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"

# Generation settings that the decoder of `florence_tagger` does not have, with the values that mean "off".
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


def refuse_pointer(path: Path) -> None:
    """ConversionError where a file is what git-LFS leaves in its place until it is fetched."""
    if is_pointer(path):
        raise ConversionError(
            f"{path} is a git-LFS pointer, not the file itself: run `git lfs pull` in its folder, or get the "
            "checkpoint by `hf download`."
        )


def is_pointer(path: Path) -> bool:
    """Whether a file is a git-LFS pointer (its specification, spec.md, has the first line)."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:  # whoever reads it says what is wrong
        return False


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ConversionError where it is missing or not one."""
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
    """The image processor's settings; only what Florence-2 does is supported."""
    values = image_processor(path)
    size = values.get("size")
    expected = {"do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True}
    unfit = [name for name, value in expected.items() if values.get(name, value) is not value]
    if values.get("resample", BICUBIC) != BICUBIC:
        unfit.append("resample")
    if not is_number(factor := values.get("rescale_factor", 1 / 255)) or not math.isclose(
        factor, 1 / 255, rel_tol=1e-6
    ):
        unfit.append("rescale_factor")
    if not isinstance(size, dict) or not all(is_size(size.get(side)) for side in ("height", "width")):
        unfit.append("size")
    unfit += [name for name in ("image_mean", "image_std") if not is_per_channel(values.get(name))]
    if "image_std" not in unfit and min(values["image_std"]) <= 0:
        unfit.append("image_std")
    if unfit:
        raise ConversionError(
            f"{path}: the image processor's {', '.join(unfit)} is not Florence-2's: a bicubic resize to a height and a "
            "width, division by 255 and normalisation are supported."
        )
    return Preprocessing((values["size"]["height"], values["size"]["width"]), values["image_mean"], values["image_std"])


def image_processor(path: Path) -> dict[str, Any]:
    """The settings of the image processor as they are stored, by transformers' rule which file goes first.

    Since version 5 that is `image_processor` in processor_config.json; preprocessor_config.json may be older.
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
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 4096


def is_per_channel(value: Any) -> bool:
    return isinstance(value, list) and len(value) == CHANNELS and all(map(is_number, value))


def generation_settings(values: GenerationConfig, text_config: Any) -> GenerationSettings:
    """A checkpoint's generation settings; ConversionError names what is not supported or of another type."""
    for name, off in UNSUPPORTED_GENERATION.items():
        if (value := getattr(values, name, None)) not in off:
            raise ConversionError(f"The checkpoint generates with {name} = {value!r}, which is not supported.")
    size = text_config.vocab_size
    return GenerationSettings(
        # The start of an answer is the first token where no other is named, as in transformers.
        decoder_start_token_id=token_id(
            size, values.decoder_start_token_id, values.bos_token_id, text_config.bos_token_id
        ),
        eos_token_id=token_id(size, values.eos_token_id, text_config.eos_token_id),
        max_new_tokens=most_new_tokens(values, text_config.max_position_embeddings),
        num_beams=number_of_beams(values.num_beams),
        no_repeat_ngram_size=whole_number("no_repeat_ngram_size", values.no_repeat_ngram_size, 0),
        forced_bos_token_id=None if values.forced_bos_token_id is None else token_id(size, values.forced_bos_token_id),
        forced_eos_token_id=None if values.forced_eos_token_id is None else token_id(size, values.forced_eos_token_id),
        min_new_tokens=whole_number("min_new_tokens", values.min_new_tokens, 0),
        early_stopping=early_stopping(values.early_stopping),
        length_penalty=length_penalty(values.length_penalty),
    )


def number_of_beams(value: Any) -> int:
    """How many beams are searched, as many as the decoder graph has candidates for at most."""
    beams = whole_number("num_beams", value, 1)
    if not 1 <= beams <= CANDIDATES // 2:
        raise ConversionError(f"The generation setting num_beams is {beams}; 1 to {CANDIDATES // 2} can be searched.")
    return beams


def token_id(size: int, *values: Any) -> int:
    """The first token id that is set, which settings may also give as a list of one; `size` is the vocabulary's."""
    chosen = next((value for value in values if value is not None), None)
    if isinstance(chosen, list) and len(chosen) == 1:
        chosen = chosen[0]
    if not isinstance(chosen, int) or isinstance(chosen, bool):
        raise ConversionError(f"The generation settings need one start token and one end token, not {chosen!r}.")
    if not 0 <= chosen < size:
        raise ConversionError(f"The generation settings name token {chosen}; the vocabulary has {size}.")
    return chosen


def early_stopping(value: Any) -> bool | Literal["never"]:
    """When beam search ends."""
    if value not in (None, True, False, "never"):
        raise ConversionError(f"The generation setting early_stopping is {value!r}, not true, false or 'never'.")
    return value or False


def length_penalty(value: Any) -> float:
    """The exponent of an answer's length."""
    if value is not None and not is_number(value):
        raise ConversionError(f"The generation setting length_penalty is {value!r}, not a finite number.")
    return 1.0 if value is None else float(value)


def whole_number(name: str, value: Any, default: int) -> int:
    """A setting's value, or what it is where it is not set."""
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConversionError(f"The generation setting {name} is {value!r}, not a whole number.")
    return value


def most_new_tokens(values: GenerationConfig, max_positions: int) -> int:
    """The checkpoint's limit of new tokens, at most as many as the decoder has positions."""
    wanted = whole_number("max_new_tokens", values.max_new_tokens, 0)
    if not wanted and values.max_length:
        wanted = whole_number("max_length", values.max_length, 0) - 1  # the start token counts there
    return min(wanted if wanted > 0 else MAX_NEW_TOKENS, max_positions)
