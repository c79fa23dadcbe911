"""The stages of a picture, one after the other in this process, and how near they come to what the machine can do."""

import base64
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from florence_tagger.benchmark.limits import matmul_gflops, memory_gb_per_s, work_of
from florence_tagger.config import Settings
from florence_tagger.florence.decoding import Decoded, GenerationSettings
from florence_tagger.florence.detector import Detector
from florence_tagger.media.content import decode_base64
from florence_tagger.media.images import fit, open_rgb
from florence_tagger.schemas import Frame


def measure_inside(
    detector: Detector, settings: Settings, pictures: Sequence[Path]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each stage (medians over pictures), and the machine's limits with the shares of them reached."""
    times: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = run(*arguments)
        times.setdefault(name, []).append(time.perf_counter() - started)
        return result

    for path in pictures:
        text = base64.b64encode(path.read_bytes()).decode()
        content = timed("base64", decode_base64, text, len(text))
        rgb = timed("decode_file", open_rgb, content, settings.max_pixels)
        pixels = timed("preprocess", fit, rgb, detector.folder.image_size)
        timed("vision", detector.image_features, pixels)
        timed("encode", detector.encode, Frame(pixels, rgb.width, rgb.height))
        said = timed("generate", detector.generate, pixels, detector.generation)
        timed("postprocess", detector.read, said, rgb.width, rgb.height)
        times.setdefault("tokens", []).append(len(said.token_ids))
        times.setdefault("decoder_per_token", []).append(
            (times["generate"][-1] - times["encode"][-1]) / steps_of(said, detector.generation)
        )
    stages = {name: statistics.median(values) for name, values in times.items()}
    encode, generate = stages.pop("encode"), stages.pop("generate")
    stages |= {"encoder": encode - stages["vision"], "decoder": generate - encode}
    return stages, measure_limits(detector, stages)


def steps_of(said: Decoded, generation: GenerationSettings) -> int:
    """How many steps the decoder made for an answer: one a token, but none for an end that was forced."""
    forced = generation.forced_eos_token_id is not None and len(said.token_ids) == generation.max_new_tokens
    return max(len(said.token_ids) - forced, 1)


def measure_limits(detector: Detector, stages: dict[str, float]) -> dict[str, float]:
    """The limits of the machine, and the shares of them that vision, encoder and decoder reach."""
    device = detector.devices["vision"]
    precisions = detector.precisions
    rates = {name: matmul_gflops(device, name) for name in {precisions["vision"], precisions["encoder"]}}
    memory = memory_gb_per_s(os.cpu_count() or 1)
    work = work_of(detector.folder.path, len(detector.prompt_ids))
    return {f"matmul_{name}_gflops": rate for name, rate in rates.items()} | {
        "memory_gb_per_s": memory,
        "vision_limit_gflops": rates[precisions["vision"]],
        "encoder_limit_gflops": rates[precisions["encoder"]],
        "vision_gflop": work.vision_gflop,
        "encoder_gflop": work.encoder_gflop,
        "decoder_weights_mb": work.decoder_bytes / 1e6,
        "vision_share": work.vision_gflop / stages["vision"] / rates[precisions["vision"]],
        "encoder_share": work.encoder_gflop / stages["encoder"] / rates[precisions["encoder"]],
        "decoder_share": work.decoder_bytes / 1e9 / stages["decoder_per_token"] / memory,
    }


def machine() -> str:
    """The processor's name and number of cores, for comparison."""
    names = [line.partition(":")[2].strip() for line in cpu_lines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def cpu_lines() -> list[str]:
    """Linux's description of the processors, where it is Linux."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
