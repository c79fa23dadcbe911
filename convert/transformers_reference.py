"""The reference: transformers' own model, processor and `generate` in f32, which the serving side must agree with."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import GenerationConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from convert.calibration_pictures import read_rgb
from convert.checkpoint import Checkpoint, load_model, read_checkpoint
from convert.quiet import quiet_libraries
from florence_tagger.errors import TaggerError
from florence_tagger.florence.decoding import FloatArray, GenerationSettings, exactly
from florence_tagger.florence.tasks import prompt_text
from florence_tagger.schemas import OBJECT_DETECTION


class Reference:
    """A checkpoint in PyTorch.

    Its pictures are resized by the processor's Pillow backend, as the published preprocessing was; the torchvision
    backend, which transformers 5 prefers, rounds some pixels differently. They come to it in RGB as the service
    makes it: by itself it would drop transparency and clip 16 bits.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model: Any = load_model(checkpoint, torch.float32)
        self._processor = CLIPImageProcessorPil(**checkpoint.preprocessing.as_published())
        self._prompt_ids = checkpoint.tokenizer.encode(prompt_text(OBJECT_DETECTION))
        height, width = checkpoint.preprocessing.image_size
        self._image_tokens = self._image_features(torch.zeros(1, 3, height, width)).shape[1]

    @torch.inference_mode()
    def generate(self, path: Path, settings: GenerationSettings) -> tuple[int, ...]:
        """The token ids after the start token for the picture in a file."""
        pixel_values = self._pixel_values(path)
        input_ids = [self._model.config.image_token_id] * self._image_tokens + list(self._prompt_ids)
        return generate(self._model, settings, input_ids=torch.tensor([input_ids]), pixel_values=pixel_values)

    @torch.inference_mode()
    def image_features(self, path: Path) -> FloatArray:
        """The features (1, tokens, d_model) of the picture in a file."""
        return np.asarray(self._image_features(self._pixel_values(path)))

    def _pixel_values(self, path: Path) -> torch.Tensor:
        pixel_values: torch.Tensor = self._processor(read_rgb(path), return_tensors="pt").pixel_values
        return pixel_values

    @torch.inference_mode()
    def _image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._model.get_image_features(pixel_values).pooler_output
        return features


def generate(model: Any, settings: GenerationSettings, **inputs: torch.Tensor) -> tuple[int, ...]:
    """The token ids after the start token that transformers' `generate` gives for one row of inputs.

    The settings replace the model's own, from which `generate` would fill in what they leave out; padding never occurs.
    """
    model.generation_config = GenerationConfig(
        decoder_start_token_id=settings.decoder_start_token_id,
        eos_token_id=settings.eos_token_id,
        pad_token_id=settings.eos_token_id,
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens or None,
        num_beams=settings.num_beams,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        forced_bos_token_id=settings.forced_bos_token_id,
        forced_eos_token_id=settings.forced_eos_token_id,
        early_stopping=settings.early_stopping if settings.num_beams > 1 else False,
        length_penalty=settings.length_penalty if settings.num_beams > 1 else 1.0,
        do_sample=False,
    )
    attention_mask = torch.ones_like(inputs["input_ids"])
    return tuple(model.generate(**inputs, attention_mask=attention_mask)[0, 1:].tolist())


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="Checkpoint folder.")
@click.option("--beams", type=click.IntRange(1, 16), help="Beams of the search; the checkpoint's.")
@click.option("--tokens", type=click.IntRange(min=2), help="Exactly so many tokens; the answer's own number.")
def main(checkpoint: Path, beams: int | None, tokens: int | None) -> None:
    """Answers for pictures whose paths come on standard input, each with a line of JSON: seconds and token ids."""
    quiet_libraries()
    try:
        read = read_checkpoint(checkpoint)
        wanted = exactly(read.generation, beams, tokens)
        reference = Reference(read)
        for line in sys.stdin:
            started = time.perf_counter()
            token_ids = reference.generate(Path(line.rstrip("\n")), wanted)
            click.echo(json.dumps({"seconds": time.perf_counter() - started, "token_ids": token_ids}))
            sys.stdout.flush()
    except TaggerError as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
