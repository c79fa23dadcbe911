"""A small untrained Florence-2: the published architecture, processor and prompts, with fewer and narrower layers.

The constants here define all differences from the published models; the rest is `Florence2ForConditionalGeneration`.
"""

import math

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    BartConfig,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from florence_tagger.florence.tasks import PROMPT_TEMPLATES
from training.scenes import LABELS

SIDE = 224  # of the input picture, in pixels
GRID = 14  # image tokens per side: the product of the strides below is 16
IMAGE_TOKENS = GRID * GRID + 1  # the first is the mean of all others
WIDTH = 192  # of the text model
STAGE_WIDTHS, STAGE_DEPTHS, STAGE_HEADS, STAGE_STRIDES = (32, 64, 128, 192), (1, 1, 2, 1), (1, 2, 4, 6), (4, 2, 2, 1)
WINDOW = 7
ENCODER_LAYERS, DECODER_LAYERS, HEADS, HIDDEN = 2, 3, 8, 512
POSITIONS = 256
LOCATIONS = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as published
START, PAD, END = 0, 1, 2
EMBEDDING_SCALE = 0.04

# The published task tokens in their published order; detection uses none of them.
TASK_TOKENS = [
    "<od>",
    "</od>",
    "<ocr>",
    "</ocr>",
    "<cap>",
    "</cap>",
    "<ncap>",
    "</ncap>",
    "<dcap>",
    "</dcap>",
    "<grounding>",
    "</grounding>",
    "<seg>",
    "</seg>",
    "<sep>",
    "<region_cap>",
    "</region_cap>",
    "<proposal>",
    "</proposal>",
    "<poly>",
    "</poly>",
    "<and>",
]

OCR_PATTERN = r"(.+?)" + r"<loc_(\d+)>" * 8


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer of prompts and labels, one token per label, and published special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [template.format(text=label) for template in PROMPT_TEMPLATES.values() for label in LABELS]
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *LABELS] * 20, trainer)
    added = [*TASK_TOKENS, *(f"<loc_{index}>" for index in range(LOCATIONS))]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])
    tokenizer.add_special_tokens(
        [AddedToken("<mask>", normalized=False, lstrip=True), AddedToken("<image>", normalized=False)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Florence2Processor:
    """Build the published processor with this model's picture size."""
    image_processor = CLIPImageProcessor(
        do_resize=True,
        size={"height": SIDE, "width": SIDE},
        resample=3,
        do_center_crop=False,
        do_rescale=True,
        do_normalize=True,
        image_mean=list(MEAN),
        image_std=list(STD),
        do_convert_rgb=True,
    )
    image_processor.image_seq_length = IMAGE_TOKENS
    parsers = {
        "ocr": {"PATTERN": OCR_PATTERN, "AREA_THRESHOLD": 0.0},
        "phrase_grounding": {"banned_grounding_tokens": []},
        "pure_text": {},
        "description_with_bboxes": {},
        "description_with_polygons": {},
        "polygons": {},
        "bboxes": {},
        "description_with_bboxes_or_polygons": {},
    }
    return Florence2Processor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        num_additional_image_tokens=1,
        post_processor_config=parsers,
    )


def model_config(tokenizer: PreTrainedTokenizerFast) -> Florence2Config:
    """Return the published architecture in the sizes of the constants here."""
    vision = Florence2VisionConfig(
        depths=list(STAGE_DEPTHS),
        embed_dim=list(STAGE_WIDTHS),
        num_heads=list(STAGE_HEADS),
        num_groups=list(STAGE_HEADS),
        patch_stride=list(STAGE_STRIDES),
        window_size=WINDOW,
        drop_path_rate=0.0,
        projection_dim=WIDTH,
    )
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    return Florence2Config(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Florence2ForConditionalGeneration:
    """Build the model with initial weights and the published generation settings."""
    torch.manual_seed(seed)
    model = Florence2ForConditionalGeneration(model_config(tokenizer))
    model.generation_config = GenerationConfig(
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        decoder_start_token_id=END,
        forced_bos_token_id=START,
        forced_eos_token_id=END,
        num_beams=3,
        no_repeat_ngram_size=3,
        early_stopping=True,
        max_length=POSITIONS,
    )
    model.set_attn_implementation("eager")  # faster than SDPA at these sizes on a CPU
    initialize(model, tokenizer.convert_tokens_to_ids("<loc_0>"))
    return model


@torch.no_grad()
def initialize(model: Florence2ForConditionalGeneration, first_location: int) -> None:
    """Initialize weights by fan-in, halved in projections and at the ends of branches: the published 0.02 is too small.

    The embeddings of locations, rows and columns start as smooth functions of the position, so that neighbors are
    similar.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            std = module.in_features**-0.5 * (0.5 if name.endswith(("proj", "fc2")) else 1)
            nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(0.3 if module.groups > 1 else 1) * module.weight[0].numel() ** -0.5)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            module.bias.zero_()
    language = model.model.language_model
    embeddings = language.shared.weight
    embeddings.normal_(0, EMBEDDING_SCALE)
    embeddings[PAD].zero_()
    rotation, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH))
    locations = waves(LOCATIONS, WIDTH // 2, 40) @ rotation
    embeddings[first_location : first_location + LOCATIONS] = locations / locations.std() * EMBEDDING_SCALE
    for table in (language.encoder.embed_positions, language.decoder.embed_positions):
        table.weight.normal_(0, EMBEDDING_SCALE)
    position = model.model.multi_modal_projector.image_position_embed
    for table in (position.row_embeddings, position.column_embeddings):
        rows, width = table.weight.shape
        angles = torch.arange(rows)[:, None] / GRID * frequencies(width // 2, GRID / 2) * 2 * math.pi
        table.weight[:, : width // 2] = angles.sin()
        table.weight[:, width // 2 : 2 * (width // 2)] = angles.cos()
    model.tie_weights()


def frequencies(count: int, max_frequency: float) -> Tensor:
    """Return `count` frequencies, spaced logarithmically from 0.25 to `max_frequency`."""
    return torch.logspace(math.log10(0.25), math.log10(max_frequency), count)


def waves(length: int, count: int, max_frequency: float) -> Tensor:
    """Return sines and cosines of random phases, (length, 2 x count); those of low frequency have larger amplitudes."""
    frequency = frequencies(count, max_frequency)
    angles = (torch.arange(length)[:, None] / length * frequency + torch.rand(count)) * 2 * math.pi
    return torch.cat([angles.sin() / frequency**0.35, angles.cos() / frequency**0.35], 1)
