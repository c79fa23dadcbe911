"""Operation, on a real gunicorn with real sockets: clients that go or dawdle, overload, a model that hangs, signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from selectors import DefaultSelector
from typing import Any

import psutil
import pytest
import requests

from florence_tagger.bench.processes import free_port
from florence_tagger.web.lingering import Lingering
from tests.conftest import (
    ROOT,
    SCENES,
    TRUTH,
    RunningServer,
    content_for,
    document,
    start_server,
    stop_server,
    until_ready,
    variants,
    wait_for,
)

PNG = (SCENES / "scene00.png").read_bytes()


@contextmanager
def injected(
    folder: Path, seconds: float = 0.0, prefix: Sequence[str] = (), **settings: Any
) -> Iterator[RunningServer]:
    """A service whose model takes so many seconds for a frame, and hangs while `folder` has a file `hang`."""
    port = free_port()
    given = {"host": "127.0.0.1", "port": port, "result_cache": 0, "decoder_processes": 2} | settings
    environment = os.environ | {f"FLORENCE_{name.upper()}": str(value) for name, value in given.items()}
    own = [sys.executable, "-m", "benchmarks.injected", "--seconds", str(seconds), "--hang", str(folder / "hang")]
    command = [*prefix, *own]
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, text=True, env=environment)
    server = until_ready(RunningServer(f"http://127.0.0.1:{port}", process, log))
    try:
        yield server
    finally:
        if process.poll() is None:
            stop_server(server)


def body_of(number: int) -> dict[str, Any]:
    """A request with so many pictures, no two the same."""
    return {"documents": [document(content, id=str(index)) for index, content in enumerate(variants(PNG, number))]}


def connect(server: RunningServer, receives: int | None = None) -> socket.socket:
    """A connection, with a buffer of so many bytes for what it receives."""
    client = socket.socket()
    client.settimeout(30)
    if receives is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    try:
        client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    except OSError:
        client.close()
        raise
    return client


def head(length: int) -> bytes:
    return f"POST /process HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def newest(server: RunningServer) -> dict[str, Any]:
    job: dict[str, Any] = next(iter(server.get("/work/status").json().values()), {})
    return job


def probe_seconds(server: RunningServer) -> float:
    """How long a health check takes, on a new connection."""
    started = time.monotonic()
    assert requests.get(f"{server.url}/health-check", timeout=10).status_code == 200
    return time.monotonic() - started


def worker_of(server: RunningServer) -> psutil.Process:
    """The only child of gunicorn's arbiter; the decoder processes are the worker's."""
    return psutil.Process(server.process.pid).children()[-1]


def test_a_request_is_a_job_with_an_id_everywhere(tmp_path: Path) -> None:
    with injected(tmp_path, log_format="json") as server:
        marked = document(PNG + b"MARK-OF-THE-CONTENT", id="MARK-OF-THE-ID")
        answers = [
            server.post({"documents": [marked, document(b"MARK-OF-THE-CONTENT")]}),
            server.post({"documents": "MARK-OF-THE-CONTENT"}),
            requests.get(f"{server.url}/process", timeout=10),
            requests.post(f"{server.url}/process", data=b"MARK-OF-THE-CONTENT", timeout=10),
        ]
        assert [answer.status_code for answer in answers] == [200, 400, 405, 400]
        ids = [answer.headers["X-Job-Id"] for answer in answers]
        jobs = server.get("/work/status").json()
        assert list(jobs) == ids[::-1]
        done = jobs[ids[0]]
        assert (done["status"], done["documents"], done["documents_done"], done["frames_done"]) == ("done", 2, 2, 1)
        assert done["model"].startswith("florence-2-tiny (")
        assert [answers[0].headers[name] for name in ("X-Model", "X-Device")] == [done["model"], done["device"]]
        assert "X-Model" not in answers[1].headers, "nothing treated it"
        assert jobs[ids[1]]["status"] == "failed"
        assert "X-Job-Id" not in server.get("/health-check").headers
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    told = {line["job"]: line["message"] for line in lines if "job" in line}
    assert [told[uid][:4] for uid in ids] == ["200,", "400,", "405,", "400,"]
    text = server.log.read_text()
    assert "MARK" not in text
    assert marked["source"]["content"][:40] not in text


def test_a_client_that_goes_away_cancels_what_has_not_begun(tmp_path: Path) -> None:
    with injected(tmp_path, seconds=0.3) as server:
        sent = json.dumps(body_of(100)).encode()
        client = connect(server)
        client.sendall(head(len(sent)) + sent)
        assert wait_for(lambda: newest(server).get("documents_done", 0) > 0)
        client.close()
        assert wait_for(lambda: newest(server)["status"] == "cancelled")
        assert newest(server)["documents_done"] < 90
        assert wait_for(lambda: "florence_waiting 0.0" in server.get("/metrics").text)
        assert 'florence_requests_total{reason="client_gone"} 1.0' in server.get("/metrics").text
        assert server.post(body_of(1)).json()["number_documents_treated"] == 1


def test_a_client_that_sends_on_and_one_that_waits_are_not_gone(tmp_path: Path) -> None:
    """Two requests in one go: the second waits unread, and the first is treated all the same."""
    with injected(tmp_path, seconds=0.5) as server, connect(server) as client:
        sent = json.dumps(body_of(3)).encode()
        client.sendall((head(len(sent)) + sent) * 2)
        received = b""
        while received.count(b'"number_documents_treated":3') < 2:
            part = client.recv(65536)
            assert part
            received += part
        assert received.count(b"HTTP/1.1 200") == 2


def test_slow_senders_stop_no_health_check(tmp_path: Path) -> None:
    """Bodies byte by byte, to /process and elsewhere, and connections that say nothing at all."""
    with injected(tmp_path, http_threads=20, body_seconds=4) as server:
        started = time.monotonic()
        slow = [connect(server) for _ in range(300)]
        for number, client in enumerate(slow):
            if number % 3 == 0:
                client.sendall(head(1_000_000) + b"{")
            elif number % 3 == 1:
                client.sendall(head(1_000_000).replace(b"/process", b"/nothing") + b"{")
        seconds = [probe_seconds(server) for _ in range(20)]
        for client in slow[::3]:
            client.settimeout(20)
        codes = [client.recv(12)[-3:] for client in slow[::3]]
        assert set(codes) == {b"408", b"503"}
        assert codes.count(b"408") == 18, "as many as there are places"
        assert time.monotonic() - started < 30
        assert server.post(body_of(1)).json()["number_documents_treated"] == 1
        for client in slow:
            client.close()
    print(f"health checks beside 300 slow senders: at most {max(seconds) * 1e3:.0f} ms")
    assert max(seconds) < 3


def test_clients_that_do_not_read_stop_no_health_check(tmp_path: Path) -> None:
    """All threads are sending, or wait for the rest of a head; new and kept connections are probed all the same."""
    with injected(tmp_path, http_threads=8) as server, requests.Session() as kept:
        assert kept.get(f"{server.url}/test", timeout=10).status_code == 200
        deaf = [connect(server, receives=2048) for _ in range(8)]
        for client in deaf:
            client.sendall(b"GET /docs/swagger/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")
        slow = [connect(server) for _ in range(8)]
        for client in slow:
            client.sendall(b"GET /health-check HTTP/1.1\r\nHost:")
        for _ in range(5):
            assert probe_seconds(server) < 3
            assert kept.get(f"{server.url}/health-check", timeout=3).status_code == 200
        close_all(slow)
        assert server.get("/work/status").status_code == 200, "the threads come back"
        close_all(deaf)
    assert "Traceback" not in server.log.read_text()


def test_answers_are_sent_whole_to_clients_that_take_their_time(tmp_path: Path) -> None:
    with injected(tmp_path) as server, connect(server, receives=32_768) as client:
        client.sendall(b"GET /docs/swagger/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        time.sleep(1)
        received = everything(client).partition(b"\r\n\r\n")[2]
        assert received == server.get("/docs/swagger/swagger-ui-bundle.js").content


def test_descriptors_that_run_out_end_no_worker(tmp_path: Path) -> None:
    """The soft limit is raised to the hard one; connections are bounded by it."""
    limit = ("sh", "-c", 'ulimit -Sn 100; ulimit -Hn 300; exec "$@"', "sh")
    with injected(tmp_path, prefix=limit) as server:
        worker = worker_of(server)
        assert worker.rlimit(psutil.RLIMIT_NOFILE) == (300, 300)
        idle = worker.num_fds()
        clients = [connect(server) for _ in range(500)]
        assert probe_seconds(server) < 3
        assert worker.num_fds() < 300
        close_all(clients)
        assert wait_for(lambda: worker.num_fds() <= idle)
        worker.rlimit(psutil.RLIMIT_NOFILE, (idle + 10, 300))
        clients = [connect(server) for _ in range(40)]
        time.sleep(1)
        assert worker_of(server).pid == worker.pid
        close_all(clients)
        assert probe_seconds(server) < 3
        assert worker_of(server).pid == worker.pid
    assert "Traceback" not in server.log.read_text()


def close_all(clients: Sequence[socket.socket]) -> None:
    for client in clients:
        client.close()


def test_a_body_that_comes_too_slowly_gives_up_its_place(tmp_path: Path) -> None:
    """Long before `body_seconds`; one that comes slowly but steadily is read to its end."""
    with injected(tmp_path, http_threads=5) as server, connect(server) as steady:
        sent = json.dumps(body_of(1) | {"padding": "x" * 100_000}).encode()
        steady.sendall(head(len(sent)))
        slow = [connect(server) for _ in range(2)]
        for client in slow:
            client.sendall(head(1_000_000) + b"{")
        assert wait_for(lambda: len(server.get("/work/status").json()) == 3)
        assert server.post(body_of(1)).status_code == 503
        for start in range(0, len(sent), len(sent) // 10):
            time.sleep(0.6)
            steady.sendall(sent[start : start + len(sent) // 10])
        assert [client.recv(12) for client in slow] == [b"HTTP/1.1 408"] * 2
        assert server.post(body_of(1)).status_code == 200
        assert steady.recv(12) == b"HTTP/1.1 200"
        close_all(slow)


def test_a_body_that_is_broken_off_is_cancelled_and_damaged_chunks_are_refused(tmp_path: Path) -> None:
    with injected(tmp_path) as server:
        with connect(server) as client:
            client.sendall(head(1000) + b"{")
        assert wait_for(lambda: newest(server).get("status") == "cancelled")
        with connect(server) as client:
            client.sendall(b"POST /process HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
            assert client.recv(12) == b"HTTP/1.1 400"
        with connect(server) as client:
            client.sendall(head(10**12))
            assert client.recv(12) == b"HTTP/1.1 413"


def test_what_follows_a_body_is_neither_logged_nor_sent_back(tmp_path: Path) -> None:
    """Of a Content-Length that is too small: to HTTP the rest of the document is the next request."""
    with injected(tmp_path) as server, connect(server) as client:
        sent = json.dumps(body_of(1)).encode()
        client.sendall(head(len(sent)) + sent + b"TUFSSy1PRi1USEUtQ09OVEVOVA\r\n\r\n")
        received = everything(client)
        assert received.startswith(b"HTTP/1.1 200")
        assert received.count(b"HTTP/1.1 400 Bad Request") == 1
        assert b'"error": "The request could not be read or answered: it is not HTTP' in received
        assert b"TUFSSy1" not in received
    assert "No request that could be read: Invalid" in server.log.read_text()
    assert "TUFSSy1" not in server.log.read_text()


def everything(client: socket.socket) -> bytes:
    """What a client is sent until its connection ends."""
    return b"".join(iter(partial(client.recv, 65536), b""))


def test_a_refused_client_may_upload_on_and_reads_its_answer_then(tmp_path: Path) -> None:
    with injected(tmp_path) as server, connect(server) as client:
        client.sendall(head(10**12))
        for _ in range(8):
            client.sendall(bytes(8192))
            time.sleep(0.4)
        assert client.recv(12) == b"HTTP/1.1 413"


def test_lingering_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a client is silent for long enough, has sent for long enough, or there are too many."""
    poller = DefaultSelector()
    lingering = Lingering(poller)
    for seconds, most in (("IDLE_SECONDS", 9), ("ALL_SECONDS", 9), ("", 0)):
        with monkeypatch.context() as patch:
            if seconds:
                patch.setattr(f"florence_tagger.web.lingering.{seconds}", -1)
            ours, theirs = socket.socketpair()
            lingering.add(ours)
        theirs.sendall(b"x")
        if seconds == "ALL_SECONDS":
            for key, _ in poller.select(1):
                key.data(key.fileobj)
        lingering.end(most)
        assert ours.fileno() == -1
        assert not poller.get_map()
        theirs.close()
    poller.close()


def test_bytes_that_wait_are_bounded(tmp_path: Path) -> None:
    with injected(tmp_path, seconds=2, queue_mb=1) as server, ThreadPoolExecutor(2) as pool:
        large = body_of(1) | {"padding": "x" * 900_000}
        running = pool.submit(server.post, large)
        assert wait_for(lambda: newest(server).get("status") == "running")
        refused = server.post(large)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "bytes" in refused.json()["error"]
        assert running.result().status_code == 200
        alone = body_of(1) | {"padding": "x" * 2_000_000}
        assert server.post(alone).status_code == 200, "one alone may have more"


def test_a_model_that_hangs_is_started_anew(tmp_path: Path) -> None:
    with injected(tmp_path, hang_seconds=2) as server, ThreadPoolExecutor(4) as pool:
        worker = worker_of(server).pid
        (tmp_path / "hang").touch()
        hanging = time.monotonic()
        waiting = [pool.submit(server.post, body_of(2)) for _ in range(3)]
        assert wait_for(lambda: server.get("/health-check").status_code == 503)
        noticed = time.monotonic() - hanging
        for answer in (one.result() for one in waiting):
            assert answer.status_code == 200
            reasons = [reason for one in answer.json()["list_id_not_treated"] for reason in one.values()]
            assert reasons == ["The model hung, and is started anew."] * 2
        (tmp_path / "hang").unlink()
        until_ready(server, lambda: worker_of(server).pid != worker)
        healthy = time.monotonic() - hanging
        assert server.post(body_of(1)).json()["number_documents_treated"] == 1
    print(f"hang: noticed after {noticed:.1f} s of which 2 are the setting, healthy after {healthy:.1f} s")


def test_a_worker_that_is_killed_is_started_anew(tmp_path: Path) -> None:
    server = start_server(tmp_path / "log.txt")
    with ThreadPoolExecutor(8) as pool:
        worker = worker_of(server)
        clients = [pool.submit(attempt, server) for _ in range(8)]
        assert wait_for(lambda: newest(server).get("status"))
        worker.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        until_ready(server, lambda: worker_of(server).pid != worker.pid)
        healthy = time.monotonic() - killed
        assert {client.result() for client in clients} <= {200, 503, "reset"}
        assert server.post(body_of(1)).json()["number_documents_treated"] == 1
    assert stop_server(server) == 0
    print(f"kill -9 under load: healthy after {healthy:.1f} s, the bundled model's loading included")


def attempt(server: RunningServer) -> int | str:
    """What a client sees."""
    try:
        return server.post(body_of(5)).status_code
    except requests.ConnectionError:
        return "reset"


def test_a_service_that_is_told_to_stop_finishes_what_runs(tmp_path: Path) -> None:
    with injected(tmp_path, seconds=0.1) as server, ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(server.post, body_of(3)) for _ in range(8)]
        assert wait_for(lambda: len(server.get("/work/status").json()) == 8)
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert wait_for(lambda: not accepts(server))
        for answer in (client.result() for client in clients):
            assert answer.json()["number_documents_treated"] == 3
        assert server.process.wait(30) == 0
        ended = time.monotonic() - told
    print(f"SIGTERM with 24 pictures of 0.1 s under way: ended after {ended:.1f} s")


def accepts(server: RunningServer) -> bool:
    try:
        connect(server).close()
    except OSError:
        return False
    return True


def test_stopping_is_bounded(tmp_path: Path) -> None:
    with injected(tmp_path, seconds=0.5, stop_seconds=9) as server, ThreadPoolExecutor(1) as pool:
        client = pool.submit(server.post, body_of(100))
        assert wait_for(lambda: newest(server).get("status") == "running")
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        answer = client.result().json()
        assert 0 < answer["number_documents_treated"] < 100
        assert server.process.wait(30) == 0
        assert time.monotonic() - told < 12


def test_a_cache_folder_that_can_not_be_written_costs_the_cache_alone(tmp_path: Path) -> None:
    """A limit of 200 kB for each file stands for the full disk; the decoders' own files stay below it."""
    cache = tmp_path / "cache"
    cache.mkdir()
    limit = ("sh", "-c", 'ulimit -f 400; exec "$@"', "sh")
    for prefix in (limit, ()):
        server = start_server(tmp_path / "log.txt", "--cache-dir", str(cache), prefix=prefix)
        answer = server.post({"documents": [document(PNG)], "num_labels": 0}).json()
        assert answer["data"][0]["source"]["content"] == content_for(TRUTH["scene00.png"])
        assert stop_server(server) == 0
        written = [file.stat().st_size for file in cache.rglob("*") if file.is_file()]
        assert (max(written, default=0) > 200_000) == (not prefix)
