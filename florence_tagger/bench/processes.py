"""The processes that the benchmark measures: a real service, and PyTorch, which this package never loads."""

import base64
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, cast

import psutil

from florence_tagger.client import Client
from florence_tagger.config import PREFIX, Settings
from florence_tagger.errors import TaggerError, UnreachableError

READY_SECONDS = 600  # the first start on a GPU compiles its kernels
PORTS = range(20_000, 32_768)  # below those of outgoing connections (ip(7), ip_local_port_range)


@dataclass(frozen=True)
class Timing:
    """Seconds from the first of some requests to the last answer, and the service's own seconds for the newest job."""

    seconds: float
    service_seconds: float


@dataclass(frozen=True)
class Serving:
    """A running service in its own process.

    Attributes:
        process: the service's parent process.
        port: on 127.0.0.1.
        start_seconds: time from the start of the process until the service was ready.
    """

    process: subprocess.Popen[bytes]
    client: Client
    start_seconds: float

    def post(self, pictures: Sequence[Path]) -> Timing:
        """Send each picture in a separate request, all at the same time."""
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
        """Send a request, and return the answer's JSON."""
        answer: dict[str, Any] = self.client.send(method, path, content=body).json()
        return answer

    def peak_rss_mb(self) -> float:
        """Return the peak resident memory of the service's processes, MB (10^6), as Linux counts it."""
        return sum(peak_rss(process.pid) for process in self._processes()) / 1e6

    def rss_mb(self) -> float:
        """Return the current resident memory of the service's processes, MB (10^6)."""
        return sum(process.memory_info().rss for process in self._processes()) / 1e6

    def _processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children()]


def body_of(picture: Path) -> bytes:
    """Return the body of a request for one picture."""
    content = base64.b64encode(picture.read_bytes()).decode()
    return json.dumps({"documents": [{"id": picture.name, "source": {"content": content}}]}).encode()


def peak_rss(pid: int) -> int:
    """Return the peak resident memory of a process, bytes (proc(5), VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@contextmanager
def service(settings: Settings, command: Sequence[str] = ("florence_tagger", "serve")) -> Iterator[Serving]:
    """Run a service with these settings on a free port until the end of the block.

    Args:
        settings: passed to the service by environment variables.
        command: the module that serves, followed by its arguments.

    Raises:
        TaggerError: the service does not start, or fails.
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
            with Client(f"http://127.0.0.1:{port}", timeout_seconds=READY_SECONDS) as client:
                wait_until_ready(process, client)
                yield Serving(process, client, time.perf_counter() - started)
        except (OSError, ValueError, UnreachableError) as exc:
            log.seek(0)
            raise TaggerError(f"The service failed; it said:\n{log.read().decode()[-2000:]}") from exc
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    """Return a port without a listener, outside the range that the system assigns to outgoing connections."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def wait_until_ready(process: subprocess.Popen[bytes], client: Client) -> None:
    """Wait until a service is ready; ConnectionError if it ends before or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(UnreachableError):  # it does not listen yet
            if client.send("GET", "/health-check").status_code == HTTPStatus.OK:
                return
        time.sleep(0.02)
    raise ConnectionError("it did not get ready")


@contextmanager
def reference(checkpoint: Path, beams: int | None, tokens: int | None) -> Iterator[Callable[[Path], float]]:
    """Start PyTorch in its own process; yield a function from a picture to the seconds that its answer took."""
    command = [sys.executable, "-m", "convert.transformers_reference", "--checkpoint", str(checkpoint)]
    command += ["--beams", str(beams)] if beams else []
    command += ["--tokens", str(tokens)] if tokens else []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        stdin, stdout = cast(IO[str], process.stdin), cast(IO[str], process.stdout)

        def time_reference(picture: Path) -> float:
            try:
                print(picture.resolve(), file=stdin, flush=True)
                return float(json.loads(stdout.readline())["seconds"])
            except (OSError, ValueError) as exc:
                raise TaggerError(f"`{' '.join(command[1:])}` did not answer; it says why above.") from exc

        try:
            yield time_reference
        finally:
            process.terminate()
