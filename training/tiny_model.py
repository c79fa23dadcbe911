"""A small Florence-2 before its training: the published architecture, processor and prompts, fewer and narrower layers.

Where it differs from the published ones is in the constants here; the rest is `Florence2ForConditionalGeneration`.
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

from florence_tagger.florence.tasks import QUESTIONS
from training.scenes import LABELS

SIDE = 224  # of the input, pixels
GRID = 14  # image tokens a side: the strides below divide by 16
IMAGE_TOKENS = GRID * GRID + 1  # the mean of all stands before them
WIDTH = 192  # of the text model
STAGE_WIDTHS, STAGE_DEPTHS, STAGE_HEADS, STAGE_STRIDES = (32, 64, 128, 192), (1, 1, 2, 1), (1, 2, 4, 6), (4, 2, 2, 1)
WINDOW = 7
ENCODER_LAYERS, DECODER_LAYERS, HEADS, HIDDEN = 2, 3, 8, 512
POSITIONS = 256
LOCATIONS = 1000
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as published
START, PAD, END = 0, 1, 2
EMBEDDING_SCALE = 0.04

# The published tokens of tasks in their published order; none is used by detection.
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
    """A byte-level BPE of the prompts and labels, each label one token, with the published special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [prompt_text.format(text=label) for prompt_text in QUESTIONS.values() for label in LABELS]
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
    """The published processor with this model's size of pictures."""
    images = CLIPImageProcessor(
        do_resize=True,
        size={"height": SIDE, "width": SIDE},
        resample=3,
        do_center_crop=False,
        do_rescale=True,
        do_normalize=True,
        image_mean=list(MEAN),
        image_std=list(DEVIATION),
        do_convert_rgb=True,
    )
    images.image_seq_length = IMAGE_TOKENS
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
        image_processor=images, tokenizer=tokenizer, num_additional_image_tokens=1, post_processor_config=parsers
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Florence2ForConditionalGeneration:
    """The model with weights that training starts from, and the published settings of generation."""
    torch.manual_seed(seed)
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
    config = Florence2Config(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model = Florence2ForConditionalGeneration(config)
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
    model.set_attn_implementation("eager")  # quicker than SDPA at these sizes on a CPU
    initialise(model, tokenizer.convert_tokens_to_ids("<loc_0>"))
    return model


@torch.no_grad()
def initialise(model: Florence2ForConditionalGeneration, first_location: int) -> None:
    """Weights by fan-in, half of that in projections and ends of branches: 0.02, as published, is too small here.

    Locations, rows and columns begin as smooth functions of what they stand for: neighbours are alike from the start.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            deviation = module.in_features**-0.5 * (0.5 if name.endswith(("proj", "fc2")) else 1)
            nn.init.trunc_normal_(module.weight, std=deviation, a=-3 * deviation, b=3 * deviation)
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


def frequencies(count: int, most: float) -> Tensor:
    """`count` frequencies, evenly spaced by their logarithm from a quarter of a wave to `most` waves."""
    return torch.logspace(math.log10(0.25), math.log10(most), count)


def waves(length: int, count: int, most: float) -> Tensor:
    """Sines and cosines of random phases over `length` places, (length, 2 x count); slow ones are stronger."""
    speed = frequencies(count, most)
    angles = (torch.arange(length)[:, None] / length * speed + torch.rand(count)) * 2 * math.pi
    return torch.cat([angles.sin() / speed**0.35, angles.cos() / speed**0.35], 1)
