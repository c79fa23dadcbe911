"""The stages of a picture, one after the other in this process, and how near they come to what the machine can do."""

import base64
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from florence_tagger.bench.roofline import matmul_gflops, memory_gb_per_s, work_of
from florence_tagger.config import Settings
from florence_tagger.florence.decoding import Decoded, GenerationSettings, exactly
from florence_tagger.florence.graphs import CrossAttention
from florence_tagger.florence.model import Florence2
from florence_tagger.media.content import decode_base64
from florence_tagger.media.images import fit, open_rgb
from florence_tagger.schemas import OBJECT_DETECTION, Frame

ROUNDS = 9
STEPS = 100  # of an answer of some 20 objects


def measure_inside(
    florence2: Florence2, settings: Settings, pictures: Sequence[Path]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each stage (medians over pictures), and the machine's limits with the shares of them reached."""
    times: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        result, seconds = measured(run, *arguments)
        times.setdefault(name, []).append(seconds)
        return result

    for path in pictures:
        text = base64.b64encode(path.read_bytes()).decode()
        content = timed("base64", decode_base64, text, len(text))
        rgb = timed("decode_file", open_rgb, content, settings.max_pixels)
        pixels = timed("preprocess", fit, rgb, florence2.folder.image_size)
        timed("vision", florence2.image_features, pixels)
        encoded = timed("encode", florence2.encode, Frame(pixels, rgb.width, rgb.height))
        said = timed("decoder", florence2.decode, encoded.cross_attention, florence2.generation)
        timed("postprocess", florence2.read, said, encoded)
        steps = steps_of(said, florence2.generation)
        times.setdefault("decoder_per_token", []).append(times["decoder"][-1] / steps)
        times.setdefault("tokens", []).append(len(said.token_ids))
    stages = {name: statistics.median(values) for name, values in times.items()}
    stages["encoder"] = stages.pop("encode") - stages["vision"]
    return stages, measure_limits(florence2, stages, encoded.cross_attention)


def measured(run: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a function returns, and the seconds that it took."""
    started = time.perf_counter()
    return run(*arguments), time.perf_counter() - started


def steps_of(said: Decoded, generation: GenerationSettings) -> int:
    """How many steps the decoder made for an answer: one a token, but none for an end that was forced."""
    forced = generation.forced_eos_token_id is not None and len(said.token_ids) == generation.max_new_tokens
    return max(len(said.token_ids) - forced, 1)


def measure_limits(florence2: Florence2, stages: dict[str, float], cross_attention: CrossAttention) -> dict[str, float]:
    """The limits of the machine, and the shares of them that vision, encoder and decoder reach."""
    device = florence2.devices["vision"]
    precisions = florence2.precisions
    rates = {name: matmul_gflops(device, name) for name in {precisions["vision"], precisions["encoder"]}}
    work = work_of(florence2.folder.path, len(florence2.prompt_ids(OBJECT_DETECTION)))
    memory, step = measure_step(florence2, cross_attention)
    return {f"matmul_{name}_gflops": rate for name, rate in rates.items()} | {
        "memory_gb_per_s": memory,
        "vision_limit_gflops": rates[precisions["vision"]],
        "encoder_limit_gflops": rates[precisions["encoder"]],
        "vision_gflop": work.vision_gflop,
        "encoder_gflop": work.encoder_gflop,
        "decoder_weights_mb": work.decoder_bytes / 1e6,
        "decoder_step_ms": step * 1e3,
        "vision_share": work.vision_gflop / stages["vision"] / rates[precisions["vision"]],
        "encoder_share": work.encoder_gflop / stages["encoder"] / rates[precisions["encoder"]],
        "decoder_share": work.decoder_bytes / 1e9 / step / memory,
    }


def measure_step(florence2: Florence2, cross_attention: CrossAttention, rounds: int = ROUNDS) -> tuple[float, float]:
    """GB/s of the memory, and the seconds of a decoder step with one sequence: medians of rounds that alternate.

    Whoever else uses the machine uses its memory, too: only what is measured in the same seconds can be compared.
    """
    alone = exactly(florence2.generation, 1, min(STEPS, florence2.generation.max_new_tokens))
    memory, steps = [], []
    for _ in range(rounds):
        memory.append(memory_gb_per_s(os.cpu_count() or 1))
        said, seconds = measured(florence2.decode, cross_attention, alone)
        steps.append(seconds / steps_of(said, alone))
    return statistics.median(memory), statistics.median(steps)


def machine() -> str:
    """The processor's name and number of cores, for comparison."""
    names = [line.partition(":")[2].strip() for line in cpu_lines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def cpu_lines() -> list[str]:
    """Linux's description of the processors, where it is Linux."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
