"""The route /metrics, and the numbers that are kept by other parts of the service."""

from dataclasses import asdict

from flask import Blueprint, Response

from florence_tagger import __version__
from florence_tagger.web.measures import CONTENT_TYPE, Reading, Readings, memory_of
from florence_tagger.web.service import Service, current_service

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    """What the service counts."""
    return Response(current_service().metrics.text(), content_type=CONTENT_TYPE)


def readings_of(service: Service) -> Readings:
    """What the parts of a service count themselves."""
    batcher, results, decoders = service.batcher, service.pipeline.results, service.pipeline.decoders
    return Readings(
        (
            Reading("florence_ready", "Whether documents are taken.", lambda: batcher.ready),
            Reading("florence_waiting", "Frames that wait for the model.", lambda: batcher.waiting),
            Reading("florence_reserved", "Places of the queue that requests have reserved.", lambda: batcher.reserved),
            Reading("florence_under_way", "Frames that the model is at.", lambda: batcher.under_way),
            Reading("florence_busy_seconds", "Time since the model began its step.", lambda: batcher.busy_seconds),
            Reading("florence_body_bytes", "Bytes of bodies that requests hold.", lambda: service.room.held),
            Reading("florence_result_cache_hits", "Files that were known.", lambda: results.hits, counts=True),
            Reading("florence_result_cache_misses", "Files that were not.", lambda: results.misses, counts=True),
            Reading("florence_result_cache_entries", "Files whose answers are kept.", lambda: len(results)),
            Reading(
                "florence_decoder_memory_bytes", "Memory of the decoder processes.", lambda: memory_of(decoders.pids)
            ),
        ),
        lambda: {"version": __version__} | asdict(service.about()),
    )
