"""The routes that report how the service is: /test, /health-check, /work/status and /metrics."""

from dataclasses import asdict
from http import HTTPStatus

from flask import Blueprint, Response, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from florence_tagger import __version__
from florence_tagger.errors import NOT_READY
from florence_tagger.web.metrics import CONTENT_TYPE, Gauge, GaugeCollector, memory_of
from florence_tagger.web.state import Service, current_service

blueprint = Blueprint("status", __name__)


@blueprint.get("/test")
def test() -> ResponseReturnValue:
    """Whether HTTP works."""
    return jsonify({"test endpoint is": "OK"})


@blueprint.get("/health-check")
def health_check() -> ResponseReturnValue:
    """Whether documents can be treated: 503 while the model loads and when it hangs."""
    service = current_service()
    scheduler = service.scheduler
    if scheduler.busy_seconds > service.settings.hang_seconds:
        message = f"The model has not answered for {scheduler.busy_seconds:.0f} s."
        return jsonify(message=message), HTTPStatus.SERVICE_UNAVAILABLE
    if not scheduler.ready:
        return jsonify(message=NOT_READY), HTTPStatus.SERVICE_UNAVAILABLE
    return jsonify(message="OK")


@blueprint.get("/work/status")
def work_status() -> ResponseReturnValue:
    """The jobs by their ids, the newest first; `?id=` gives one."""
    jobs = current_service().jobs
    uid = request.args.get("id")
    if uid is None:
        return jsonify(jobs.all())
    job = jobs.one(uid)
    if job is None:
        raise NotFound(f"There is no job {uid}.")
    return jsonify(job)


@blueprint.get("/metrics")
def metrics() -> Response:
    """What the service counts."""
    return Response(current_service().metrics.text(), content_type=CONTENT_TYPE)


def gauges_of(service: Service) -> GaugeCollector:
    """What the parts of a service count themselves."""
    scheduler, results, decoders = service.scheduler, service.pipeline.results, service.pipeline.decoders
    return GaugeCollector(
        (
            Gauge("florence_ready", "Whether documents are taken.", lambda: scheduler.ready),
            Gauge("florence_waiting", "Frames that wait for the model.", lambda: scheduler.waiting),
            Gauge("florence_reserved", "Places of the queue that requests have reserved.", lambda: scheduler.reserved),
            Gauge("florence_under_way", "Frames that the model is at.", lambda: scheduler.under_way),
            Gauge("florence_busy_seconds", "Time since the model began its step.", lambda: scheduler.busy_seconds),
            Gauge("florence_body_bytes", "Bytes of bodies that requests hold.", lambda: service.room.held),
            Gauge("florence_result_cache_hits", "Files that were known.", lambda: results.hits, counts=True),
            Gauge("florence_result_cache_misses", "Files that were not.", lambda: results.misses, counts=True),
            Gauge("florence_result_cache_entries", "Files whose answers are kept.", lambda: len(results)),
            Gauge(
                "florence_decoder_memory_bytes", "Memory of the decoder processes.", lambda: memory_of(decoders.pids)
            ),
        ),
        lambda: {"version": __version__} | asdict(service.about()),
    )
