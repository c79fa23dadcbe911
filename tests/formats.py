"""Native checkpoints rewritten in the original format, as in Microsoft's repositories."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from convert.original import TRANSPOSED, stored_name

SAME_IN_VISION = ("depths", "num_groups", "num_heads", "patch_padding", "patch_prenorm", "patch_size", "patch_stride")


def as_original(native: Path, output: Path) -> Path:
    """Write the native checkpoint folder `native` in the original format to the new folder `output`; return it."""
    output.mkdir(parents=True)
    for name in ("tokenizer.json", "preprocessor_config.json"):
        shutil.copyfile(native / name, output / name)
    config = json.loads((native / "config.json").read_text())
    generation = json.loads((native / "generation_config.json").read_text())
    (output / "config.json").write_text(json.dumps(original_config(config, generation), indent=2))
    # As published: only text_config is in effect.
    (output / "generation_config.json").write_text(json.dumps({"num_beams": 3, "early_stopping": False}))
    state = {}
    for name, tensor in load_file(native / "model.safetensors").items():
        stored = stored_name(name)
        state[stored] = tensor.T.contiguous() if stored == TRANSPOSED else tensor
    save_file(state, output / "model.safetensors")
    return output


def original_config(config: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration in the original format, with the generation settings in its text_config."""
    vision, text = config["vision_config"], config["text_config"]
    effective = ("num_beams", "no_repeat_ngram_size", "early_stopping", "forced_bos_token_id", "forced_eos_token_id")
    return {
        "model_type": "florence2",
        "auto_map": {"AutoConfig": "configuration_florence2.Florence2Config"},
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "vocab_size": text["vocab_size"],
        "text_config": {name: value for name, value in text.items() if name != "model_type"}
        | {"model_type": "florence2_language", "add_bias_logits": False, "normalize_before": False}
        | {name: generation[name] for name in effective},
        "vision_config": {name: vision[name] for name in SAME_IN_VISION}
        | {
            "model_type": "davit",
            "dim_embed": vision["embed_dim"],
            "projection_dim": vision["projection_dim"],
            "window_size": vision["window_size"],
            "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
            "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
            "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
        },
    }
