"""Settings -> the stages of a pipeline: what the service and the Python API have in common."""

import os

from florence_tagger.cache import ResultCache
from florence_tagger.config import Settings
from florence_tagger.labels import read_aliases
from florence_tagger.media.limits import DecodeOptions, SandboxLimits
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.pipeline import Pipeline, RequestLimits
from florence_tagger.scheduler import Scheduler
from florence_tagger.telemetry import Telemetry

MAX_DECODERS = 8  # unless the settings say otherwise


def start_decoder_pool(settings: Settings, image_size: tuple[int, int]) -> DecoderPool:
    """The processes that decode, for a model's input of `image_size` (height, width)."""
    limits = DecodeOptions(image_size, settings.max_pixels, settings.max_pages, settings.reduced_decoding)
    confinement = SandboxLimits(limits, int(settings.decoder_memory_mb * 1e6), settings.document_seconds)
    processes = settings.decoder_processes or min(os.cpu_count() or 1, MAX_DECODERS)
    return DecoderPool(processes, confinement)


def build_pipeline(
    settings: Settings, decoders: DecoderPool, scheduler: Scheduler, telemetry: Telemetry | None = None
) -> Pipeline:
    """The stages in order, for frames that `decoders` make and a model that `scheduler` feeds.

    Raises:
        SettingsError: the file of aliases can't be used.
    """
    limits = RequestLimits(int(settings.max_document_mb * 1e6), settings.request_seconds)
    aliases = read_aliases(settings.aliases)
    return Pipeline(decoders, scheduler, ResultCache(settings.result_cache), limits, telemetry or Telemetry(), aliases)


def sampling_from(settings: Settings) -> Sampling:
    """How videos are sampled where nobody asks for less."""
    return Sampling(settings.video_fps, settings.video_max_frames, settings.video_max_seconds)
