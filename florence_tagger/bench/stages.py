"""The stages of a picture, measured one after another in this process, and their shares of the machine's limits."""

import base64
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from florence_tagger.bench.roofline import matmul_gflops, memory_gb_per_s, workload_of
from florence_tagger.config import Settings
from florence_tagger.florence.decoding import Decoded, GenerationSettings, with_fixed_length
from florence_tagger.florence.graphs import CrossAttention
from florence_tagger.florence.model import Florence2
from florence_tagger.media.content import decode_base64
from florence_tagger.media.images import open_rgb, resize_to_input
from florence_tagger.schemas import OBJECT_DETECTION, Frame

ROUNDS = 9
STEPS = 100  # the length of an answer with about 20 objects


def measure_stages(
    florence2: Florence2, settings: Settings, pictures: Sequence[Path]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds of each stage (medians over pictures), and the machine's limits with the stages' shares."""
    times: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        result, seconds = measured(run, *arguments)
        times.setdefault(name, []).append(seconds)
        return result

    for path in pictures:
        text = base64.b64encode(path.read_bytes()).decode()
        content = timed("base64", decode_base64, text, len(text))
        rgb = timed("decode_file", open_rgb, content, settings.max_pixels)
        pixels = timed("preprocess", resize_to_input, rgb, florence2.manifest.image_size)
        timed("vision", florence2.image_features, pixels)
        prefilled = timed("encode", florence2.prefill, Frame(pixels, rgb.width, rgb.height))
        decoded = timed("decoder", florence2.decode, prefilled.cross_attention, florence2.generation)
        timed("postprocess", florence2.postprocess, decoded, prefilled)
        steps = num_steps(decoded, florence2.generation)
        times.setdefault("decoder_per_token", []).append(times["decoder"][-1] / steps)
        times.setdefault("tokens", []).append(len(decoded.token_ids))
    stages = {name: statistics.median(values) for name, values in times.items()}
    stages["encoder"] = stages.pop("encode") - stages["vision"]
    return stages, measure_limits(florence2, stages, prefilled.cross_attention)


def measured(run: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Call a function; return its result and its seconds."""
    started = time.perf_counter()
    return run(*arguments), time.perf_counter() - started


def num_steps(decoded: Decoded, generation: GenerationSettings) -> int:
    """Return the number of decoder steps for an answer: one for each token except a forced end token."""
    forced = generation.forced_eos_token_id is not None and len(decoded.token_ids) == generation.max_new_tokens
    return max(len(decoded.token_ids) - forced, 1)


def measure_limits(florence2: Florence2, stages: dict[str, float], cross_attention: CrossAttention) -> dict[str, float]:
    """Return the limits of the machine, and the shares of them that vision, encoder and decoder reach."""
    device = florence2.devices["vision"]
    precisions = florence2.precisions
    rates = {name: matmul_gflops(device, name) for name in {precisions["vision"], precisions["encoder"]}}
    workload = workload_of(florence2.manifest.path, len(florence2.prompt_ids(OBJECT_DETECTION)))
    memory, step = measure_step(florence2, cross_attention)
    return {f"matmul_{name}_gflops": rate for name, rate in rates.items()} | {
        "memory_gb_per_s": memory,
        "vision_limit_gflops": rates[precisions["vision"]],
        "encoder_limit_gflops": rates[precisions["encoder"]],
        "vision_gflop": workload.vision_gflop,
        "encoder_gflop": workload.encoder_gflop,
        "decoder_weights_mb": workload.decoder_bytes / 1e6,
        "decoder_step_ms": step * 1e3,
        "vision_share": workload.vision_gflop / stages["vision"] / rates[precisions["vision"]],
        "encoder_share": workload.encoder_gflop / stages["encoder"] / rates[precisions["encoder"]],
        "decoder_share": workload.decoder_bytes / 1e9 / step / memory,
    }


def measure_step(florence2: Florence2, cross_attention: CrossAttention, rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the memory's GB/s and the seconds of a decoder step with one sequence: medians of alternating rounds.

    Other processes use the memory, too: only figures that are measured at the same time can be compared.
    """
    settings = with_fixed_length(florence2.generation, 1, min(STEPS, florence2.generation.max_new_tokens))
    memory, steps = [], []
    for _ in range(rounds):
        memory.append(memory_gb_per_s(os.cpu_count() or 1))
        decoded, seconds = measured(florence2.decode, cross_attention, settings)
        steps.append(seconds / num_steps(decoded, settings))
    return statistics.median(memory), statistics.median(steps)


def machine() -> str:
    """Return the processor's name and number of cores."""
    names = [line.partition(":")[2].strip() for line in cpu_lines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def cpu_lines() -> list[str]:
    """Return the lines of /proc/cpuinfo, none if the system is not Linux."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
