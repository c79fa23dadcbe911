"""The routes that report the state of the service: /test, /health-check, /work/status and /metrics."""

from dataclasses import asdict
from http import HTTPStatus

from flask import Blueprint, Response, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from florence_tagger import __version__
from florence_tagger.errors import NOT_READY
from florence_tagger.web.metrics import CONTENT_TYPE, Gauge, GaugeCollector, resident_memory
from florence_tagger.web.state import Service, current_service

blueprint = Blueprint("status", __name__)


@blueprint.get("/test")
def test() -> ResponseReturnValue:
    """Return OK if HTTP works."""
    return jsonify({"test endpoint is": "OK"})


@blueprint.get("/health-check")
def health_check() -> ResponseReturnValue:
    """Return OK if documents can be processed, 503 while the model loads and when it hangs."""
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
    """Return the jobs by their ids, the newest first, or with `?id=` one job."""
    jobs = current_service().jobs
    uid = request.args.get("id")
    if uid is None:
        return jsonify(jobs.all())
    job = jobs.get(uid)
    if job is None:
        raise NotFound(f"There is no job {uid}.")
    return jsonify(job)


@blueprint.get("/metrics")
def metrics() -> Response:
    """Return the metrics of the service for Prometheus."""
    return Response(current_service().metrics.text(), content_type=CONTENT_TYPE)


def gauges_for(service: Service) -> GaugeCollector:
    """Return the collector of the values that the parts of a service keep themselves."""
    scheduler, results, decoders = service.scheduler, service.pipeline.cache, service.pipeline.decoders
    return GaugeCollector(
        (
            Gauge("florence_ready", "Whether documents are accepted.", lambda: scheduler.ready),
            Gauge("florence_waiting", "Frames that wait for the model.", lambda: scheduler.waiting),
            Gauge("florence_reserved", "Reserved queue slots.", lambda: scheduler.reserved),
            Gauge("florence_under_way", "Frames that the model is processing.", lambda: scheduler.running),
            Gauge(
                "florence_busy_seconds",
                "Seconds of the current prefill or step.",
                lambda: scheduler.busy_seconds,
            ),
            Gauge("florence_body_bytes", "Bytes of request bodies in memory.", lambda: service.byte_budget.held),
            Gauge("florence_result_cache_hits", "Files from the cache.", lambda: results.hits, is_counter=True),
            Gauge("florence_result_cache_misses", "Files computed.", lambda: results.misses, is_counter=True),
            Gauge("florence_result_cache_entries", "Results in the cache.", lambda: len(results)),
            Gauge(
                "florence_decoder_memory_bytes",
                "Memory of the decoder processes.",
                lambda: resident_memory(decoders.pids),
            ),
        ),
        lambda: {"version": __version__} | asdict(service.model_info()),
    )
