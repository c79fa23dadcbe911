"""The processes that are measured: a real service, and PyTorch, which this package never loads."""

import base64
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import psutil

from florence_tagger.config import PREFIX, Settings
from florence_tagger.errors import TaggerError

READY_SECONDS = 600  # the first start on a GPU compiles its kernels
PORTS = range(20_000, 32_768)  # below those of outgoing connections (ip(7), ip_local_port_range)


@dataclass(frozen=True)
class Timing:
    """Seconds of some requests, and those that the service itself spent on the last of them."""

    seconds: float
    inside: float


@dataclass(frozen=True)
class Serving:
    """A service in a process of its own.

    Attributes:
        start_seconds: from its start until it was ready.
    """

    process: subprocess.Popen[bytes]
    port: int
    start_seconds: float

    def post(self, pictures: Sequence[Path]) -> Timing:
        """Sends each picture in a request of its own, all at the same time."""
        bodies = [body_of(path) for path in pictures]
        with ThreadPoolExecutor(len(bodies)) as pool:
            started = time.perf_counter()
            answers = list(pool.map(lambda body: self.request("POST", "/process", body), bodies))
            seconds = time.perf_counter() - started
        for answer in answers:
            if answer.get("number_documents_treated") != 1:
                raise TaggerError(f"The service did not treat a picture: {answer}")
        newest = next(iter(self.request("GET", "/work/status").values()))
        return Timing(seconds, newest["seconds"])

    def request(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """The JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_SECONDS)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def peak_rss_mb(self) -> float:
        """Most memory that the service's processes had, MB (10^6), as Linux counts it."""
        return sum(peak_rss(process.pid) for process in self._processes()) / 1e6

    def rss_mb(self) -> float:
        """The memory that the service's processes have now, MB (10^6)."""
        return sum(process.memory_info().rss for process in self._processes()) / 1e6

    def _processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children()]


def body_of(picture: Path) -> bytes:
    """A request for one picture."""
    content = base64.b64encode(picture.read_bytes()).decode()
    return json.dumps({"documents": [{"id": picture.name, "source": {"content": content}}]}).encode()


def peak_rss(pid: int) -> int:
    """The high-water mark of a process's resident memory, bytes (proc(5), VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@contextmanager
def service(settings: Settings, command: Sequence[str] = ("florence_tagger", "serve")) -> Iterator[Serving]:
    """A service with these settings on a port of its own, ended with the block; TaggerError where it does not start.

    `command` is the module that serves, and what it is told.
    """
    port = free_port()
    values = {name: value for name, value in settings.model_dump().items() if value is not None}
    values |= {"host": "127.0.0.1", "port": port, "api_key": ""}
    environment = os.environ | {f"{PREFIX}{name.upper()}": str(value) for name, value in values.items()}
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *command], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_until_ready(process, port)
            yield Serving(process, port, time.perf_counter() - started)
        except (OSError, ValueError, http.client.HTTPException) as exc:
            log.seek(0)
            raise TaggerError(f"The service failed; it said:\n{log.read().decode()[-2000:]}") from exc
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    """A port that nothing listens on, and that the system gives to no connection before a service can take it."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Returns once a service answers that it is ready; ConnectionError where it ends before or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health-check", timeout=5):
                return
        except OSError:  # not there yet, or still loading
            time.sleep(0.02)
    raise ConnectionError("it did not get ready")


@contextmanager
def reference(checkpoint: Path, beams: int | None, tokens: int | None) -> Iterator[Callable[[Path], float]]:
    """PyTorch in a process of its own: a function from a picture to the seconds that its answer took."""
    command = [sys.executable, "-m", "convert.transformers_reference", "--checkpoint", str(checkpoint)]
    command += ["--beams", str(beams)] if beams else []
    command += ["--tokens", str(tokens)] if tokens else []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        asked, told = cast(IO[str], process.stdin), cast(IO[str], process.stdout)

        def seconds(picture: Path) -> float:
            try:
                print(picture.resolve(), file=asked, flush=True)
                return float(json.loads(told.readline())["seconds"])
            except (OSError, ValueError) as exc:
                raise TaggerError(f"`{' '.join(command[1:])}` did not answer; it says why above.") from exc

        try:
            yield seconds
        finally:
            process.terminate()
