"""Where two files of a checkpoint say different things of what is used: which of them goes first, in words."""

from collections.abc import Iterator
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


def disagreements(
    path: Path, config: dict[str, Any], form: Literal["native", "original"], tokenizer: Tokenizer
) -> Iterator[str]:
    """A sentence for each pair of files of the checkpoint folder `path` that disagree; `config` is its config.json."""
    yield from compared(
        (PROCESSOR, image_processor(path)), (IMAGE_PROCESSOR, optional(path / IMAGE_PROCESSOR)), PREPROCESSING
    )
    configured = "config.json", config | config["text_config"]
    generation = GENERATION_FILE, optional(path / GENERATION_FILE)
    used, other = (configured, generation) if form == "original" else (generation, configured)
    yield from compared(used, other, GENERATION)
    for name, tokens in tokens_of(path).items():
        ids = {token: tokenizer.id_of(token) for token in tokens}
        yield from compared(("tokenizer.json", ids), (name, tokens), sorted(tokens))


def compared(used: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]], names: Any) -> Iterator[str]:
    """What two files, each its name and values, say differently of what both of them say anything of."""
    differing = [
        f"{name} ({used[1][name]!r}, {other[1][name]!r})"
        for name in names
        if None not in (used[1].get(name), other[1].get(name)) and used[1][name] != other[1][name]
    ]
    if differing:
        shown, more = ", ".join(differing[:5]), len(differing) - 5
        rest = f" and {more} more" if more > 0 else ""
        yield f"{used[0]} and {other[0]} disagree on {shown}{rest}; {used[0]} is used."


def tokens_of(path: Path) -> dict[str, dict[str, Any]]:
    """The ids of tokens by the files beside tokenizer.json that name some."""
    named = optional(path / "tokenizer_config.json").get("added_tokens_decoder")
    added = {
        fields["content"]: int(identity)
        for identity, fields in (named.items() if isinstance(named, dict) else ())
        if isinstance(fields, dict) and isinstance(fields.get("content"), str) and identity.isdecimal()
    }
    return {
        "tokenizer_config.json": added,
        "added_tokens.json": optional(path / "added_tokens.json"),
        "vocab.json": optional(path / "vocab.json"),
    }


def optional(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where it can't be read, since it is not what is used."""
    with suppress(ConversionError):
        return read_json(path)
    return {}
