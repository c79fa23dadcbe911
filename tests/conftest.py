"""What the tests share: the committed model and scenes, a real server, and a model that does as it is told."""

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
from pathlib import Path
from threading import Event
from typing import Any

import hypothesis
import pytest
import requests

from florence_tagger.assembly import build_pipeline, start_decoder_pool
from florence_tagger.bench.processes import free_port
from florence_tagger.config import DEFAULT_MODEL, load_settings
from florence_tagger.florence.devices import RuntimeOptions
from florence_tagger.florence.manifest import load_manifest
from florence_tagger.florence.model import Florence2, load_model
from florence_tagger.media.sampling import Sampling
from florence_tagger.pipeline import Outcome, Pipeline
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import Detection, Frame, FrameResult, Prompt
from florence_tagger.telemetry import Stage, Telemetry

# A busy machine is no fault of a test: pytest's own timeout ends what hangs.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).resolve().parent.parent
SCENES = Path(__file__).parent / "scenes"
CHECKPOINT = ROOT / "training" / "florence-2-tiny"
TRUTH: dict[str, dict[str, int]] = json.loads((SCENES / "truth.json").read_text())


def document(content: bytes, **fields: Any) -> dict[str, Any]:
    """A document as Detect sends it."""
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


# What Python and its libraries write in the texts of exceptions, and people do not.
QUOTED = re.compile(
    r"\[Errno|Errno \d|[a-z](?:Error|Exception)\b|Traceback|<class|object at 0x|\(char \d|codec can't|b'"
    r"|non-hexadecimal|Expecting (?:value|property|',)|incorrect padding|non-base64 digit|only base64 data"
    r"|invalid literal|NoneType",
    re.IGNORECASE,
)


def variants(content: bytes, number: int) -> list[bytes]:
    """Files of the same picture that are not the same bytes; what follows its end is nothing to a decoder."""
    return [content + b"." * index for index in range(number)]


def content_for(counts: dict[str, int]) -> list[dict[str, int]]:
    """The content of a treated document that has these counts."""
    return [{label: counts[label]} for label in sorted(counts)]


def assert_alike(ours: Sequence[FrameResult], others: Sequence[FrameResult]) -> None:
    """The same detections; scores may differ by rounding, since products of more rows add up in another order."""
    for one, other in zip(ours, others, strict=True):
        assert (one.truncated, one.tokens) == (other.truncated, other.tokens)
        for detection, same in zip(one.detections, other.detections, strict=True):
            assert (detection.label, detection.box) == (same.label, same.box)
            assert detection.score == pytest.approx(same.score, abs=1e-4)


def wait_for(condition: Any) -> bool:
    """Whether a condition becomes true within half a minute: the machine may be busy."""
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(condition())


@pytest.fixture(autouse=True)
def _level_of_the_log() -> Iterator[None]:
    """Give the package's logger its level back, which `count` raises in its process."""
    logger = logging.getLogger("florence_tagger")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def florence2() -> Florence2:
    """The committed model, loaded in this process with the exact arithmetic of the reference."""
    folder = load_manifest(DEFAULT_MODEL)
    return Florence2(folder, RuntimeOptions("CPU", "f32"), folder.generation)


class Heard(Telemetry):
    """Counts how often each stage was gone through."""

    def __init__(self) -> None:
        self.times: Counter[Stage] = Counter()

    def took(self, stage: Stage, seconds: float) -> None:
        self.times[stage] += 1


@pytest.fixture(scope="session")
def pipeline() -> Iterator[Pipeline]:
    """All stages with the committed model and default settings, but that nothing is answered from memory."""
    settings, folder = load_settings({"result_cache": 0}), load_manifest(DEFAULT_MODEL)
    decoders = start_decoder_pool(settings, folder.image_size)
    heard = Heard()
    scheduler = Scheduler(lambda: load_model(folder, settings), settings.queue_size, telemetry=heard)
    assert wait_for(lambda: scheduler.ready)
    yield build_pipeline(settings, decoders, scheduler, heard)
    scheduler.close()
    decoders.close()


def counted(pipeline: Pipeline, *files: bytes, sampling: Sampling | None = None) -> list[Outcome]:
    """What becomes of these files, sent in one request."""
    return pipeline.run([base64.b64encode(file).decode() for file in files], sampling or Sampling())


@dataclass
class Told:
    """Keeps what a conversion tells."""

    stages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class FakeModel:
    """Finds one cat in every frame, unless told otherwise.

    Attributes:
        go: frames wait for it.
        entered: set while a frame waits.
        error: raised instead of an answer.
    """

    go: Event = field(default_factory=Event)
    entered: Event = field(default_factory=Event)
    error: Exception | None = None
    truncated: bool = False
    capacity: int = 1
    exclusive: bool = True
    under_way: dict[Hashable, Frame] = field(default_factory=dict)

    def encode(self, frame: Frame, prompt: Prompt) -> Frame:
        self.entered.set()
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        return frame

    def start(self, key: Hashable, encoded: Frame) -> None:
        self.under_way[key] = encoded

    def step(self) -> dict[Hashable, FrameResult | Exception]:
        ended, self.under_way = self.under_way, {}
        return {key: self.found(frame) for key, frame in ended.items()}

    def found(self, frame: Frame) -> FrameResult:
        return FrameResult(
            (Detection("cat", (0.0, 0.0, float(frame.width), float(frame.height)), 0.9),), self.truncated
        )


@pytest.fixture
def fake_model() -> FakeModel:
    model = FakeModel()
    model.go.set()
    return model


@dataclass(frozen=True)
class RunningServer:
    """A service in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def post(self, body: Any, **options: Any) -> requests.Response:
        return requests.post(f"{self.url}/process", json=body, timeout=60, **options)

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=60)


def start_server(log: Path, *options: str, prefix: Sequence[str] = ()) -> RunningServer:
    """Starts a service, with a command before its own, and waits until it is ready; `log` gets what it prints."""
    port = free_port()
    command = [*prefix, sys.executable, "-m", "florence_tagger", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, text=True)
    return until_ready(RunningServer(f"http://127.0.0.1:{port}", process, log))


def until_ready(server: RunningServer, condition: Callable[[], bool] = lambda: True) -> RunningServer:
    """Waits until a service is ready and a condition holds."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if server.get("/health-check").status_code == 200 and condition():
                return server
        except requests.ConnectionError:
            pass
        time.sleep(0.05)
    server.process.kill()
    pytest.fail(f"The server did not get ready:\n{server.log.read_text()}")


def stop_server(server: RunningServer) -> int:
    """Ends a service as an operator would; its exit code."""
    server.process.terminate()
    return server.process.wait(timeout=60)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real gunicorn with the committed model and default settings."""
    running = start_server(tmp_path_factory.mktemp("server") / "log.txt")
    yield running
    assert stop_server(running) == 0, running.log.read_text()
