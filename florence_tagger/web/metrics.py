"""The route /metrics: what the service counts, in Prometheus' words. The only user of its library."""

from collections.abc import Iterator

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from florence_tagger.web.service import Service, current_service

blueprint = Blueprint("metrics", __name__)


class ServiceCollector(Collector):
    """Reads the numbers where they are kept, when they are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        batcher, results = self._service.batcher, self._service.pipeline.results
        yield GaugeMetricFamily("florence_ready", "Whether documents are taken.", float(batcher.ready))
        yield GaugeMetricFamily("florence_waiting", "Frames that wait for the model.", batcher.waiting)
        yield GaugeMetricFamily("florence_under_way", "Frames that the model is at.", batcher.under_way)
        yield GaugeMetricFamily("florence_busy_seconds", "Time since the model began its step.", batcher.busy_seconds)
        for phase, (number, seconds) in batcher.totals.items():
            name = f"florence_{phase.value}"
            yield CounterMetricFamily(f"{name}_steps", f"How often the model did: {phase.value}.", number)
            yield CounterMetricFamily(f"{name}_seconds", f"How long the model did: {phase.value}.", seconds)
        yield CounterMetricFamily("florence_result_cache_hits", "Files that were known.", results.hits)
        yield CounterMetricFamily("florence_result_cache_misses", "Files that were not.", results.misses)
        yield GaugeMetricFamily("florence_result_cache_entries", "Files whose answers are kept.", len(results))


@blueprint.get("/metrics")
def metrics() -> Response:
    """What the service counts."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ServiceCollector(current_service()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
