"""Metrics of the service for Prometheus, listed in `docs/operations.md`. The only module that uses its library."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

import psutil
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from florence_tagger.context import Outcome
from florence_tagger.errors import DocumentError
from florence_tagger.schemas import FrameResult
from florence_tagger.telemetry import Stage, Telemetry

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
CLIENT_GONE = 499  # as in nginx; it occurs in the log and the metrics only
FRAMES = (1, 2, 4, 8, 16, 32, 64)

# Labels of requests by status; all other codes share one label, so that the number of labels is bounded.
REASONS = {
    HTTPStatus.OK: "ok",
    HTTPStatus.BAD_REQUEST: "bad_request",
    HTTPStatus.UNAUTHORIZED: "no_key",
    HTTPStatus.METHOD_NOT_ALLOWED: "wrong_method",
    HTTPStatus.REQUEST_TIMEOUT: "late_body",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "encoding",
    CLIENT_GONE: "client_gone",
    HTTPStatus.INTERNAL_SERVER_ERROR: "fault",
    HTTPStatus.SERVICE_UNAVAILABLE: "unavailable",
}


class Metrics(Telemetry):
    """Counters and histograms of one service; thread-safe."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("florence_requests", "Requests to /process by outcome.", ["reason"], registry=registry)
        self._request_seconds = Histogram(
            "florence_request_seconds",
            "Duration of requests to /process by outcome.",
            ["reason"],
            buckets=SECONDS,
            registry=registry,
        )
        self._documents = Counter(
            "florence_documents", "Documents by outcome: treated, or the reason why not.", ["reason"], registry=registry
        )
        self._stages = Histogram(
            "florence_stage_seconds", "Duration of each stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self._batch = Histogram(
            "florence_batch_frames",
            "Sequences in a decode step.",
            buckets=FRAMES,
            registry=registry,
        )
        self._tokens = Counter("florence_tokens", "Generated tokens.", registry=registry)
        self._objects = Counter("florence_objects", "Detected objects.", registry=registry)
        self._tracks = Counter("florence_tracks", "Distinct objects counted in videos.", registry=registry)
        self._tiles = Counter("florence_tiles", "Processed tiles of pictures.", registry=registry)
        self._truncated = Counter("florence_truncated_answers", "Answers cut off at max_new_tokens.", registry=registry)
        for reason in ("ok", "unavailable"):
            self._requests.labels(reason)
        for stage in Stage:
            self._stages.labels(stage)
        ProcessCollector(registry=registry)

    def register(self, collector: Collector) -> None:
        """Add the metrics of a collector to the output."""
        self._registry.register(collector)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)

    def count_request(self, code: int, seconds: float) -> None:
        """Count a request by the HTTP code of its answer, and observe its duration."""
        reason = REASONS.get(code, "other")
        self._requests.labels(reason).inc()
        self._request_seconds.labels(reason).observe(seconds)

    def count_document(self, outcome: Outcome) -> None:
        """Count a finished document by its outcome."""
        self._documents.labels(outcome.reason if isinstance(outcome, DocumentError) else "treated").inc()
        if not isinstance(outcome, DocumentError):
            self._tracks.inc(outcome.tracks)

    def observe_stage(self, stage: Stage, seconds: float) -> None:
        """Observe the duration of a stage."""
        self._stages.labels(stage).observe(seconds)

    def observe_step(self, num_sequences: int) -> None:
        """Observe the number of sequences in a decode step."""
        self._batch.observe(num_sequences)

    def observe_tiles(self, num_tiles: int) -> None:
        """Count the tiles of a document."""
        self._tiles.inc(num_tiles)

    def observe_result(self, frame_result: FrameResult) -> None:
        """Count the tokens and objects of a frame, and a truncated answer."""
        self._tokens.inc(frame_result.tokens)
        self._objects.inc(len(frame_result.detections))
        self._truncated.inc(frame_result.truncated)


@dataclass(frozen=True)
class Gauge:
    """A metric whose value is read when Prometheus scrapes it.

    Attributes:
        name: of the metric.
        description: for Prometheus.
        read: returns the value.
        is_counter: the value never decreases.
    """

    name: str
    description: str
    read: Callable[[], float]
    is_counter: bool = False


class GaugeCollector(Collector):
    """Collector of gauges, and of the versions and devices of a service."""

    def __init__(self, gauges: tuple[Gauge, ...], info: Callable[[], dict[str, str]]) -> None:
        self._gauges = gauges
        self._info = info

    def collect(self) -> Iterator[Metric]:
        """Yield the current value of each gauge, and the info metric."""
        for gauge in self._gauges:
            family = CounterMetricFamily if gauge.is_counter else GaugeMetricFamily
            yield family(gauge.name, gauge.description, gauge.read())
        yield InfoMetricFamily("florence_model", "Model, devices and version.", self._info())


def resident_memory(pids: list[int]) -> float:
    """Return the resident memory of processes, bytes, without those that have ended."""
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue
    return total
