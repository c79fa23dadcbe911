"""A native checkpoint of Florence-2's real geometry with seeded random weights, so that no download is necessary.

`python -m benchmarks.random_checkpoint --output DIR` writes it. Speed, memory and agreement of tokens do not depend on
the values of the weights. They are rounded to fp16, as the published ones are. The model's answers are meaningless.
"""

from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    GenerationConfig,
)
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from convert.progress_bars import megabytes

# Sizes of microsoft/Florence-2-base and -large; all other values are defaults of the configuration classes.
GEOMETRIES: dict[str, dict[str, Any]] = {
    "base": {
        "vision": {"embed_dim": [128, 256, 512, 1024], "num_heads": [4, 8, 16, 32], "num_groups": [4, 8, 16, 32]},
        "width": 768,
        "layers": 6,
        "heads": 12,
        "positions": 1024,
    },
    "large": {
        "vision": {"embed_dim": [256, 512, 1024, 2048], "num_heads": [8, 16, 32, 64], "num_groups": [8, 16, 32, 64]},
        "width": 1024,
        "layers": 12,
        "heads": 16,
        "positions": 4096,
    },
}
IMAGE_SIDE = 768
NUM_BART_TOKENS = 50265  # of BART's vocabulary
TASK_TOKENS = (
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *(f"<loc_{index}>" for index in range(1000)),
    *("<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>"),
    *("<sep>", "<region_cap>", "</region_cap>", "<region_to_desciption>", "</region_to_desciption>"),
    *("<proposal>", "</proposal>", "<poly>", "</poly>", "<and>", "<image>"),
)
VOCAB_SIZE = 51328  # of the native format, padded to a multiple of 64


def tokenizer() -> Tokenizer:
    """Return a tokenizer with the ids of Florence-2's special tokens; its words are single bytes and unused fillers."""
    special_tokens = ["<s>", "<pad>", "</s>", "<unk>"]
    words = special_tokens + sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [f"filler{index}" for index in range(NUM_BART_TOKENS - len(words))]
    result = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(token, normalized=False) for token in special_tokens])
    result.add_tokens([AddedToken(token, normalized=False) for token in TASK_TOKENS])
    return result


def configuration(geometry: dict[str, Any]) -> Florence2Config:
    """Return the configuration of a geometry."""
    width, layers, heads = geometry["width"], geometry["layers"], geometry["heads"]
    vision = Florence2VisionConfig(**geometry["vision"], projection_dim=width)
    text = BartConfig(
        vocab_size=VOCAB_SIZE,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=geometry["positions"],
        dropout=0.0,
    )
    return Florence2Config(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=NUM_BART_TOKENS + len(TASK_TOKENS) - 1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def write_checkpoint(output: Path, geometry: str = "base", seed: int = 0) -> None:
    """Write a checkpoint folder in the native format."""
    torch.manual_seed(seed)
    model = Florence2ForConditionalGeneration(configuration(GEOMETRIES[geometry]))
    model.generation_config = GenerationConfig(
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        num_beams=3,
        no_repeat_ngram_size=3,
        early_stopping=True,
    )
    model.half().save_pretrained(output)
    tokenizer().save(str(output / "tokenizer.json"))
    CLIPImageProcessor(
        size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(output)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--geometry", type=click.Choice(list(GEOMETRIES)), default="base", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(output: Path, geometry: str, seed: int) -> None:
    """Write a Florence-2 checkpoint with random weights."""
    write_checkpoint(output, geometry, seed)
    click.echo(f"Wrote {output}, {megabytes(output):.0f} MB.")


if __name__ == "__main__":
    main()
