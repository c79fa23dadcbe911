"""Notes on settings that two files of a checkpoint give different values, and on which file takes precedence."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from convert.conversion_error import ConversionError
from convert.settings import IMAGE_PROCESSOR, PROCESSOR, image_processor, read_json
from florence_tagger.florence.tokenizer import Tokenizer

PREPROCESSING = (
    *("do_center_crop", "do_normalize", "do_rescale", "do_resize", "image_mean", "image_std", "resample"),
    *("rescale_factor", "size"),
)
GENERATION_FILE = "generation_config.json"
GENERATION = (
    *("bos_token_id", "decoder_start_token_id", "early_stopping", "eos_token_id", "forced_bos_token_id"),
    *("forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_new_tokens"),
    *("no_repeat_ngram_size", "num_beams"),
)


def find_disagreements(
    path: Path, config: dict[str, Any], checkpoint_format: Literal["native", "original"], tokenizer: Tokenizer
) -> Iterator[str]:
    """Yield a sentence for each pair of files in the checkpoint folder that disagree.

    Args:
        path: the checkpoint folder.
        config: the content of its config.json.
        checkpoint_format: the folder's format.
        tokenizer: the tokenizer of its tokenizer.json.
    """
    yield from compare_files(
        (PROCESSOR, image_processor(path)), (IMAGE_PROCESSOR, read_optional(path / IMAGE_PROCESSOR)), PREPROCESSING
    )
    configured = "config.json", config | config["text_config"]
    generation = GENERATION_FILE, read_optional(path / GENERATION_FILE)
    used, unused = (configured, generation) if checkpoint_format == "original" else (generation, configured)
    yield from compare_files(used, unused, GENERATION)
    for name, token_ids in read_token_ids(path).items():
        used_ids = {token: tokenizer.id_of(token) for token in token_ids}
        yield from compare_files(("tokenizer.json", used_ids), (name, token_ids), sorted(token_ids))


def compare_files(
    used: tuple[str, dict[str, Any]], unused: tuple[str, dict[str, Any]], keys: Sequence[str]
) -> Iterator[str]:
    """Yield a sentence if two files, each a name and its values, set one of the keys differently."""
    (used_name, used_values), (unused_name, unused_values) = used, unused
    differing = [
        f"{key} ({used_values[key]!r}, {unused_values[key]!r})"
        for key in keys
        if None not in (used_values.get(key), unused_values.get(key)) and used_values[key] != unused_values[key]
    ]
    if differing:
        shown, num_hidden = ", ".join(differing[:5]), len(differing) - 5
        rest = f" and {num_hidden} more" if num_hidden > 0 else ""
        yield f"{used_name} and {unused_name} disagree on {shown}{rest}; {used_name} is used."


def read_token_ids(path: Path) -> dict[str, dict[str, Any]]:
    """Return the token ids in each file beside tokenizer.json that may define some."""
    decoder = read_optional(path / "tokenizer_config.json").get("added_tokens_decoder")
    added = {
        fields["content"]: int(token_id)
        for token_id, fields in (decoder.items() if isinstance(decoder, dict) else ())
        if isinstance(fields, dict) and isinstance(fields.get("content"), str) and token_id.isdecimal()
    }
    return {
        "tokenizer_config.json": added,
        "added_tokens.json": read_optional(path / "added_tokens.json"),
        "vocab.json": read_optional(path / "vocab.json"),
    }


def read_optional(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if it can't be read, because another file is used."""
    with suppress(ConversionError):
        return read_json(path)
    return {}
