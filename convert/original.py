"""The original format of Microsoft's repositories, which needs remote code to run: its settings and names in ours.

What the native class calls each tensor, and what the published configuration leaves to the code beside it.
"""

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import GenerationConfig

from convert.conversion_error import ConversionError
from convert.settings import early_stopping, read_json

# Native name to original name, each rule on what the rules before it left.
NAME_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^model\.vision_tower\.(convs\.\d+)\.conv\.", r"vision_tower.\1.proj."),
        (r"^model\.vision_tower\.", "vision_tower."),
        (r"_block\.(conv[12])\.", r"_block.\1.fn.dw."),
        (r"\.spatial_block\.norm1\.", ".spatial_block.window_attn.norm."),
        (r"\.channel_block\.norm1\.", ".channel_block.channel_attn.norm."),
        (r"\.(window_attn|channel_attn)\.(qkv|proj)\.", r".\1.fn.\2."),
        (r"_block\.norm2\.", "_block.ffn.norm."),
        (r"_block\.ffn\.(fc[12])\.", r"_block.ffn.fn.net.\1."),
        (r"^model\.multi_modal_projector\.image_projection\.weight$", "image_projection"),
        (r"^model\.multi_modal_projector\.image_position_embed\.", "image_pos_embed."),
        (r"^model\.multi_modal_projector\.", ""),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
    )
)
TRANSPOSED = "image_projection"  # a bare parameter there, used as x @ W

# What the original processor adds to the published tokenizer when it is loaded, in this order.
EXTRA_TOKENS = (
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *(f"<loc_{index}>" for index in range(1000)),
    *("<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>"),
    *("<sep>", "<region_cap>", "</region_cap>", "<region_to_desciption>", "</region_to_desciption>"),
    *("<proposal>", "</proposal>", "<poly>", "</poly>", "<and>"),
)

# What the code beside the published checkpoints offers and this project's graphs have in one form only.
EXPECTED_VISION: dict[str, Any] = {
    "visual_temporal_embedding.type": "COSINE",
    "image_pos_embed.type": "learned_abs_2d",
    "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
}
EXPECTED_TEXT: dict[str, Any] = {"normalize_before": False, "add_final_layer_norm": False, "add_bias_logits": False}

SAME_IN_VISION = (
    *("depths", "drop_path_rate", "num_groups", "num_heads", "patch_padding", "patch_prenorm", "patch_size"),
    *("patch_stride", "projection_dim", "window_size"),
)


# What the configuration class beside the published checkpoints assumes where text_config is silent.
TOKEN_DEFAULTS = {"bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2}
UNSET_LENGTH = 20  # what older versions of transformers write as max_length where nobody has set it


def is_original(config: dict[str, Any]) -> bool:
    """Whether a configuration is in the original format."""
    return "dim_embed" in config["vision_config"]


def stored_name(native: str) -> str:
    """What the original format calls a tensor of the native model."""
    for pattern, replacement in NAME_RULES:
        native = pattern.sub(replacement, native)
    return native


def native_tensor(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """An original tensor as the native model wants it."""
    return tensor.T.contiguous() if name == TRANSPOSED and tensor.ndim == 2 else tensor


def native_config(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An original configuration in the native form; ConversionError names what the native model can't be."""
    vision, text = dict(config["vision_config"]), dict(config["text_config"])
    check_expected(vision, EXPECTED_VISION, folder)
    check_expected(text, EXPECTED_TEXT, folder)
    text |= {"model_type": "bart", "tie_word_embeddings": True}
    return {
        "model_type": "florence2",
        "text_config": text,
        "vision_config": {name: vision[name] for name in SAME_IN_VISION if name in vision}
        | {
            "model_type": "florence_vision",
            "embed_dim": vision["dim_embed"],
            "max_temporal_embeddings": nested(vision, "visual_temporal_embedding.max_temporal_embeddings", 100),
            "max_position_embeddings": nested(vision, "image_pos_embed.max_pos_embeddings", 50),
        },
        # The original has no image token: features are put before the prompt. The native class wants one in its table;
        # the last token, <and>, does not occur in the one prompt that it is asked here, that of object detection.
        "image_token_id": text.get("vocab_size", 1) - 1,
        **{name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config},
        "tie_word_embeddings": True,
    }


def check_expected(values: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    """ConversionError where a setting is there and has another value than the expected one."""
    for path, wanted in expected.items():
        if (value := nested(values, path, wanted)) != wanted:
            raise ConversionError(f"{folder / 'config.json'}: {path} is {value!r}; only {wanted!r} is supported.")


def nested(values: dict[str, Any], path: str, default: Any) -> Any:
    """A value by a dotted path, or the default where a part of the path is missing."""
    found: Any = values
    for name in path.split("."):
        if not isinstance(found, dict) or name not in found:
            return default
        found = found[name]
    return found


def generation_config(folder: Path) -> GenerationConfig:
    """The effective generation settings: those in text_config.

    The outer model of the original code calls the inner one's `generate`, whose settings come from text_config;
    generation_config.json is never looked at.
    """
    text = TOKEN_DEFAULTS | read_json(folder / "config.json")["text_config"]
    if text.get("max_length") == UNSET_LENGTH:
        del text["max_length"]
    early_stopping(text.get("early_stopping"))  # which transformers refuses without naming it as we do
    known = GenerationConfig().to_dict().keys()
    return GenerationConfig(**{name: value for name, value in text.items() if name in known})


def complete_tokenizer(tokenizer_json: str) -> str:
    """The tokenizer with the tokens that the original processor adds when it is loaded, unless it has them."""
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as exc:  # the library raises nothing more exact
        raise ConversionError("tokenizer.json is not a tokenizer that the library tokenizers reads.") from exc
    if tokenizer.token_to_id(EXTRA_TOKENS[-1]) is None:
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in EXTRA_TOKENS])
    return str(tokenizer.to_str())
