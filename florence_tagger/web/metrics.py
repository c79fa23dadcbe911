"""What the service counts, in Prometheus' words; `docs/operations.md` has the names. The only user of its library."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

import psutil
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client import generate_latest as in_text
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from florence_tagger.errors import DocumentError
from florence_tagger.pipeline import Outcome
from florence_tagger.schemas import FrameResult
from florence_tagger.telemetry import Stage, Telemetry

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
CLIENT_GONE = 499  # nginx' code for it; only the log and the metrics see it
FRAMES = (1, 2, 4, 8, 16, 32, 64)

# What becomes of requests; codes that are not listed are one reason, so that their number is bounded.
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
    """Counters and histograms of one service, for any thread."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "florence_requests", "Requests to /process by what became of them.", ["reason"], registry=registry
        )
        self._request_seconds = Histogram(
            "florence_request_seconds",
            "From a request's header to its answer, by what became of it.",
            ["reason"],
            buckets=SECONDS,
            registry=registry,
        )
        self._documents = Counter(
            "florence_documents", "Documents: treated, or the reason why not.", ["reason"], registry=registry
        )
        self._stages = Histogram(
            "florence_stage_seconds", "Time in each stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self._batch = Histogram(
            "florence_batch_frames",
            "Frames whose answers are taken a token on together.",
            buckets=FRAMES,
            registry=registry,
        )
        self._tokens = Counter("florence_tokens", "Tokens of the model's answers.", registry=registry)
        self._objects = Counter("florence_objects", "Objects in the model's answers.", registry=registry)
        self._tracks = Counter(
            "florence_tracks", "Different objects that were counted in videos by their tracks.", registry=registry
        )
        self._tiles = Counter("florence_tiles", "Tiles of pictures that were looked at.", registry=registry)
        self._truncated = Counter(
            "florence_truncated_answers", "Answers that were cut off at the most tokens.", registry=registry
        )
        for reason in ("ok", "unavailable"):
            self._requests.labels(reason)
        for stage in Stage:
            self._stages.labels(stage)
        ProcessCollector(registry=registry)

    def add(self, collector: Collector) -> None:
        """Has numbers that are kept elsewhere told with the others."""
        self._registry.register(collector)

    def text(self) -> bytes:
        """All numbers, as Prometheus reads them."""
        return in_text(self._registry)

    def count_request(self, code: int, seconds: float) -> None:
        """A request was answered with an HTTP code after so many seconds."""
        reason = REASONS.get(code, "other")
        self._requests.labels(reason).inc()
        self._request_seconds.labels(reason).observe(seconds)

    def count_document(self, outcome: Outcome) -> None:
        """A document is done with."""
        self._documents.labels(outcome.reason if isinstance(outcome, DocumentError) else "treated").inc()
        if not isinstance(outcome, DocumentError):
            self._tracks.inc(outcome.tracks)

    def took(self, stage: Stage, seconds: float) -> None:
        self._stages.labels(stage).observe(seconds)

    def stepped(self, frames: int) -> None:
        self._batch.observe(frames)

    def cut(self, tiles: int) -> None:
        self._tiles.inc(tiles)

    def detected(self, detection: FrameResult) -> None:
        self._tokens.inc(detection.tokens)
        self._objects.inc(len(detection.detections))
        self._truncated.inc(detection.truncated)


@dataclass(frozen=True)
class Gauge:
    """A number that is read where it is kept, when it is asked for."""

    name: str
    meaning: str
    read: Callable[[], float]
    counts: bool = False  # it only grows


class GaugeCollector(Collector):
    """Tells readings, and what the service consists of."""

    def __init__(self, readings: tuple[Gauge, ...], info: Callable[[], dict[str, str]]) -> None:
        self._readings = readings
        self._info = info

    def collect(self) -> Iterator[Metric]:
        for one in self._readings:
            family = CounterMetricFamily if one.counts else GaugeMetricFamily
            yield family(one.name, one.meaning, one.read())
        yield InfoMetricFamily("florence_model", "What treats the documents.", self._info())


def memory_of(pids: list[int]) -> float:
    """The resident memory of processes, bytes; those that ended meanwhile have none."""
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue
    return total
