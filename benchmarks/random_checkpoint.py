"""A native checkpoint of Florence-2's real geometry with seeded random weights, so that nothing has to be downloaded.

`python -m benchmarks.random_checkpoint --output DIR`: speed, memory and agreement of tokens do not depend on what the
weights are. The weights are rounded to fp16, as the published ones are. What such a model says means nothing.
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

# Sizes of microsoft/Florence-2-base and -large; the rest is the classes' default.
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
PLAIN_TOKENS = 50265  # of BART's vocabulary
TASK_TOKENS = (
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *(f"<loc_{index}>" for index in range(1000)),
    *("<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>"),
    *("<sep>", "<region_cap>", "</region_cap>", "<region_to_desciption>", "</region_to_desciption>"),
    *("<proposal>", "</proposal>", "<poly>", "</poly>", "<and>", "<image>"),
)
ROWS = 51328  # the native format's vocabulary, padded to a multiple of 64


def tokenizer() -> Tokenizer:
    """A tokenizer with the ids of Florence-2's marks, whose words are single bytes and fillers that never occur."""
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    words = marks + sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [f"filler{index}" for index in range(PLAIN_TOKENS - len(words))]
    made = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    made.add_tokens([AddedToken(token, normalized=False) for token in TASK_TOKENS])
    return made


def configuration(geometry: dict[str, Any]) -> Florence2Config:
    """The configuration of a geometry."""
    width, layers, heads = geometry["width"], geometry["layers"], geometry["heads"]
    vision = Florence2VisionConfig(**geometry["vision"], projection_dim=width)
    text = BartConfig(
        vocab_size=ROWS,
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
        image_token_id=PLAIN_TOKENS + len(TASK_TOKENS) - 1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def write_checkpoint(output: Path, geometry: str = "base", seed: int = 0) -> None:
    """Writes a checkpoint folder in the native format."""
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
    """Writes a Florence-2 checkpoint with random weights."""
    write_checkpoint(output, geometry, seed)
    click.echo(f"Wrote {output}, {megabytes(output):.0f} MB.")


if __name__ == "__main__":
    main()
