"""Shared fixtures and helpers: the bundled model and scenes, a real server, and a scripted fake model."""

import base64
import json
import logging
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import hypothesis
import pytest

from florence_tagger.assembly import build_pipeline, start_decoder_pool
from florence_tagger.bench.processes import free_port
from florence_tagger.client import Client
from florence_tagger.config import DEFAULT_MODEL, load_settings
from florence_tagger.context import Outcome
from florence_tagger.errors import UnreachableError
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.manifest import load_manifest
from florence_tagger.florence.model import Florence2, load_model
from florence_tagger.media.sampling import Sampling
from florence_tagger.pipeline import Pipeline
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import Detection, Frame, FrameResult, Prompt
from florence_tagger.telemetry import Stage, Telemetry

# No deadlines, because the machine may be busy: pytest's own timeout ends a test that hangs.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).resolve().parent.parent
SCENES = Path(__file__).parent / "scenes"
CHECKPOINT = ROOT / "training" / "florence-2-tiny"
TRUTH: dict[str, dict[str, int]] = json.loads((SCENES / "truth.json").read_text())


def document(content: bytes, **fields: Any) -> dict[str, Any]:
    """Return a request's document as Detect sends it."""
    return {
        "id": "7587bcb2-4ea6-4a64-a426-040b40bf414b",
        "index": "large_control_dataset-doc",
        "source": {
            "content": base64.b64encode(content).decode(),
            "fs": {"uri": "file:///test_data/Large%20Control%20DataSet/images.jpeg"},
            "file_name": "images.jpeg",
            "file_type": "jpeg",
            "embedded_depth": 0,
        },
    } | fields


# Wording of Python's and its libraries' exceptions, which our own messages never quote.
LIBRARY_WORDING = re.compile(
    r"\[Errno|Errno \d|[a-z](?:Error|Exception)\b|Traceback|<class|object at 0x|\(char \d|codec can't|b'"
    r"|non-hexadecimal|Expecting (?:value|property|',)|incorrect padding|non-base64 digit|only base64 data"
    r"|invalid literal|NoneType",
    re.IGNORECASE,
)


def distinct_copies(content: bytes, num_copies: int) -> list[bytes]:
    """Return files of one picture that differ in their bytes: decoders ignore what follows the picture's end."""
    return [content + b"." * index for index in range(num_copies)]


def content_for(counts: dict[str, int]) -> list[dict[str, int]]:
    """Return the `content` of an answered document with these counts."""
    return [{label: counts[label]} for label in sorted(counts)]


def assert_same_results(results: Sequence[FrameResult], expected: Sequence[FrameResult]) -> None:
    """Assert equal detections; scores may differ by rounding, because larger batches sum in another order."""
    for result, expected_result in zip(results, expected, strict=True):
        assert (result.truncated, result.tokens) == (expected_result.truncated, expected_result.tokens)
        for detection, expected_detection in zip(result.detections, expected_result.detections, strict=True):
            assert (detection.label, detection.box) == (expected_detection.label, expected_detection.box)
            assert detection.score == pytest.approx(expected_detection.score, abs=1e-4)


def wait_for(condition: Any) -> bool:
    """Wait up to half a minute, because the machine may be busy, and return whether the condition became true."""
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(condition())


@pytest.fixture(autouse=True)
def _restored_log_level() -> Iterator[None]:
    """Restore the level of the package's logger, which `count` raises in its process."""
    logger = logging.getLogger("florence_tagger")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def florence2() -> Florence2:
    """Return the bundled model, loaded in this process with the reference's exact arithmetic."""
    manifest = load_manifest(DEFAULT_MODEL)
    return Florence2(manifest, RuntimeOptions("CPU", "f32"), manifest.generation)


class StageCounter(Telemetry):
    """Counts how often each stage ran."""

    def __init__(self) -> None:
        self.counts: Counter[Stage] = Counter()

    def observe_stage(self, stage: Stage, seconds: float) -> None:
        """Count one run of a stage."""
        self.counts[stage] += 1


@pytest.fixture(scope="session")
def pipeline() -> Iterator[Pipeline]:
    """Yield a pipeline of the bundled model with default settings, but without the result cache."""
    settings, manifest = load_settings({"result_cache": 0}), load_manifest(DEFAULT_MODEL)
    decoders = start_decoder_pool(settings, manifest.image_size)
    stage_counter = StageCounter()
    scheduler = Scheduler(lambda: load_model(manifest, settings), settings.queue_size, telemetry=stage_counter)
    assert wait_for(lambda: scheduler.ready)
    yield build_pipeline(settings, decoders, scheduler, stage_counter)
    scheduler.close()
    decoders.close()


def run_pipeline(pipeline: Pipeline, *files: bytes, sampling: Sampling | None = None) -> list[Outcome]:
    """Return the outcomes of these files, sent in one request."""
    return pipeline.run([base64.b64encode(file).decode() for file in files], sampling or Sampling())


@dataclass
class RecordedProgress:
    """Records the stages and notes of a conversion."""

    stages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def stage(self, name: str) -> None:
        """Record the start of a stage."""
        self.stages.append(name)

    def note(self, text: str) -> None:
        """Record a note."""
        self.notes.append(text)


@dataclass
class FakeModel:
    """A model that detects one cat in every frame.

    Attributes:
        go: must be set before frames are encoded.
        entered: set when a frame is to be encoded.
        error: raised instead of a result.
    """

    go: Event = field(default_factory=Event)
    entered: Event = field(default_factory=Event)
    error: Exception | None = None
    truncated: bool = False
    capacity: int = 1
    exclusive: bool = True
    running: dict[Hashable, Frame] = field(default_factory=dict)

    def prefill(self, frame: Frame, prompt: Prompt) -> Frame:
        """Wait for `go`, then return the frame, or raise `error`."""
        self.entered.set()
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        return frame

    def add(self, key: Hashable, prefilled: Frame) -> None:
        """Add a frame to the running ones."""
        self.running[key] = prefilled

    def step(self) -> dict[Hashable, FrameResult | Exception]:
        """Finish all running frames."""
        finished, self.running = self.running, {}
        return {key: self.result_for(frame) for key, frame in finished.items()}

    def result_for(self, frame: Frame) -> FrameResult:
        """Return a result of one cat that fills the frame."""
        return FrameResult(
            (Detection("cat", (0.0, 0.0, float(frame.width), float(frame.height)), 0.9),), self.truncated
        )


@pytest.fixture
def fake_model() -> FakeModel:
    """Return a fake model that does not wait."""
    model = FakeModel()
    model.go.set()
    return model


@dataclass(frozen=True)
class RunningServer:
    """A service in a separate process."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    @cached_property
    def client(self) -> Client:
        """The client of the service."""
        return Client(self.url, timeout_seconds=60)

    def post(self, body: Any, **options: Any) -> httpx.Response:
        """Send a request to `/process`; `options` as of `Client.post`."""
        return self.client.post(body, **options)

    def get(self, path: str) -> httpx.Response:
        """Request a path."""
        return self.client.send("GET", path)


def start_server(log: Path, *options: str, prefix: Sequence[str] = ()) -> RunningServer:
    """Start a service and wait until it is ready; `prefix` precedes its command, `log` receives its output."""
    port = free_port()
    command = [*prefix, sys.executable, "-m", "florence_tagger", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, text=True)
    return wait_until_ready(RunningServer(f"http://127.0.0.1:{port}", process, log))


def wait_until_ready(server: RunningServer, condition: Callable[[], bool] = lambda: True) -> RunningServer:
    """Wait until a service is ready and a condition holds; return the service."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if server.get("/health-check").status_code == 200 and condition():
                return server
        except UnreachableError:
            pass
        time.sleep(0.05)
    server.process.kill()
    pytest.fail(f"The server did not get ready:\n{server.log.read_text()}")


def stop_server(server: RunningServer) -> int:
    """Send SIGTERM to a service, as an operator would, and return its exit code."""
    server.process.terminate()
    return server.process.wait(timeout=60)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Yield a running gunicorn with the bundled model and default settings."""
    running = start_server(tmp_path_factory.mktemp("server") / "log.txt")
    yield running
    assert stop_server(running) == 0, running.log.read_text()
