"""What clients and proxies send: headers of all kinds, compressed bodies; on a real gunicorn with real sockets."""

import gzip
import json
import re
import socket
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from werkzeug.exceptions import UnsupportedMediaType

from florence_tagger.errors import RequestError
from florence_tagger.web.content_encoding import CODINGS, MAX_MEMBERS, PIECE, codings_of, decoded, inflate
from tests.conftest import SCENES, TRUTH, RunningServer, content_for, document, start_server, stop_server

PNG = (SCENES / "scene00.png").read_bytes()
BODY = json.dumps({"documents": [document(PNG)], "num_labels": 0}).encode()
MB = 1_000_000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A service that takes bodies of at most 8 MB."""
    running = start_server(tmp_path_factory.mktemp("server") / "log.txt", "--max-body-mb", "8", "--queue-mb", "20")
    yield running
    assert stop_server(running) == 0, running.log.read_text()


SCHEMES = {
    "X-Forwarded-Proto": ("https", "http", "HTTPS", "https,http", "wss", ""),
    "X-Forwarded-Protocol": ("ssl", "https", "http"),
    "X-Forwarded-Ssl": ("on", "off", "1"),
    "X-Forwarded-Scheme": ("https",),
    "Front-End-Https": ("on", "off"),
    "Forwarded": ("proto=https;host=example.org;for=192.0.2.1", "proto=http"),
    "X-Forwarded-Host": ("example.org",),
    "X-Forwarded-Port": ("443", "x"),
    "X-Forwarded-Prefix": ("/elsewhere",),
    "X-Forwarded-For": ("192.0.2.1, 198.51.100.2",),
    "Script_Name": ("/elsewhere",),
}
PATHS = ("/", "/test", "/health-check", "/work/status", "/metrics", "/openapi.json", "/docs", "/page/main.js")


def test_no_header_of_a_proxy_changes_an_answer(server: RunningServer) -> None:
    """Those of the scheme in all combinations, whether they agree or not; the others one by one."""
    three = ("X-Forwarded-Proto", "X-Forwarded-Protocol", "X-Forwarded-Ssl")
    combined = [
        {name: value for name, value in zip(three, values, strict=True) if value is not None}
        for values in product(*((None, *SCHEMES[name]) for name in three))
    ]
    single = [{name: value} for name, values in SCHEMES.items() for value in values]
    with requests.Session() as session:
        for headers in [*combined, *single]:
            for path in PATHS:
                answer = session.get(f"{server.url}{path}", headers=headers, timeout=10)
                assert answer.status_code == 200, (path, headers, answer.text)
                assert "Location" not in answer.headers
            answer = session.post(f"{server.url}/process", json={"documents": []}, headers=headers, timeout=10)
            assert answer.status_code == 200, (headers, answer.text)


def test_a_proxy_that_repeats_its_header_is_answered(server: RunningServer) -> None:
    connection = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Proto", "http"), ("X-Forwarded-Ssl", "off")]
    head = "".join(f"{name}: {value}\r\n" for name, value in connection)
    assert raw(server, f"GET /test HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n".encode())[0] == 200


def raw(server: RunningServer, sent: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to bytes on a connection."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30) as client:
        client.sendall(sent)
        received = b"".join(iter(partial(client.recv, 65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def bare(data: bytes) -> bytes:
    """A stream of deflate without a frame."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def members(data: bytes, size: int = 1000) -> bytes:
    """A gzip file of many parts."""
    return b"".join(gzip.compress(data[start : start + size]) for start in range(0, len(data), size))


ENCODED: dict[str, tuple[str | None, bytes]] = {
    "none": (None, BODY),
    "identity": ("identity", BODY),
    "empty": ("", BODY),
    "gzip": ("gzip", gzip.compress(BODY)),
    "GZIP": ("GZip", gzip.compress(BODY, 1)),
    "x-gzip": ("x-gzip", gzip.compress(BODY)),
    "gzip stored": ("gzip", gzip.compress(BODY, 0)),
    "gzip with a name": (
        "gzip",
        gzip.compress(BODY)[:3] + b"\x08" + gzip.compress(BODY)[4:10] + b"a.json\0" + gzip.compress(BODY)[10:],
    ),
    "gzip of many": ("gzip", members(BODY)),
    "gzip with empty ones": ("gzip", gzip.compress(b"") + members(BODY) + gzip.compress(b"")),
    "deflate": ("deflate", zlib.compress(BODY)),
    "deflate of level 0": ("deflate", zlib.compress(BODY, 0)),
    "deflate without frame": ("deflate", bare(BODY)),
    "gzip and identity": ("gzip, identity", gzip.compress(BODY)),
    "gzip, then deflate": ("gzip, deflate", zlib.compress(gzip.compress(BODY))),
    "deflate, then gzip": ("deflate,gzip", gzip.compress(bare(BODY))),
    "gzip twice": ("gzip, gzip", gzip.compress(gzip.compress(BODY))),
}


def in_pieces(data: bytes, size: int = 777) -> Iterator[bytes]:
    """Chunks of a body, which requests sends as such."""
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
@pytest.mark.parametrize("name", ENCODED)
def test_a_compressed_body_is_read_as_a_plain_one(small: RunningServer, name: str, chunked: bool) -> None:
    encoding, data = ENCODED[name]
    headers = {} if encoding is None else {"Content-Encoding": encoding}
    answer = requests.post(
        f"{small.url}/process", data=in_pieces(data) if chunked else data, headers=headers, timeout=60
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["source"]["content"] == content_for(TRUTH["scene00.png"])


@pytest.mark.parametrize(
    ("encoding", "data", "reason"),
    [
        ("gzip", gzip.compress(BODY)[:-1], "not gzip, as its Content-Encoding says: it ends too early"),
        ("gzip", gzip.compress(BODY)[:5000], "it ends too early"),
        ("gzip", b"", "it ends too early"),
        ("gzip", members(BODY)[:-9], "it ends too early"),
        ("gzip", BODY, "it is damaged, or something else"),
        ("gzip", zlib.compress(BODY), "it is damaged"),
        ("gzip", gzip.compress(BODY) + b"more", "it is damaged"),
        ("gzip", gzip.compress(BODY)[:-8] + bytes(8), "it is damaged"),
        ("deflate", zlib.compress(BODY)[:-1], "not deflate, as its Content-Encoding says: it ends too early"),
        ("deflate", bare(BODY)[:-1], "it ends too early"),
        ("deflate", b"x", "it is damaged|ends too early"),
        ("deflate", gzip.compress(BODY), "it is damaged"),
        ("deflate", zlib.compress(BODY) * 2, "it goes on after its end"),
        ("gzip, deflate", gzip.compress(BODY), "not deflate"),
        ("deflate, gzip", gzip.compress(BODY), "not deflate"),
        ("gzip", gzip.compress(b"\x89PNG"), "not JSON"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
def test_a_damaged_one_is_refused_with_a_reason(
    small: RunningServer, encoding: str, data: bytes, reason: str, chunked: bool
) -> None:
    sent: Any = in_pieces(data) if chunked else data
    answer = requests.post(f"{small.url}/process", data=sent, headers={"Content-Encoding": encoding}, timeout=60)
    assert answer.status_code == answer.json()["status"]["code"] == 400
    assert re.search(reason, answer.json()["error"]), answer.json()["error"]


@pytest.mark.parametrize(
    "encoding", ["br", "zstd", "compress", "gzip, br", "br, gzip", "base64", "x" * 200, "gzip;q=1", "gzip,gzip,gzip"]
)
def test_another_encoding_is_refused_in_the_envelope(small: RunningServer, encoding: str) -> None:
    answer = requests.post(
        f"{small.url}/process", data=gzip.compress(BODY), headers={"Content-Encoding": encoding}, timeout=60
    )
    assert answer.status_code == answer.json()["status"]["code"] == 415
    assert answer.json()["error"].endswith("accepted are gzip, deflate and identity.")
    assert len(answer.json()["error"]) < 200
    assert answer.headers["Accept-Encoding"] == "gzip, deflate"
    assert set(answer.json()) == set(small.post({"documents": []}).json())


def zeros(length: int) -> bytes:
    """So many zero bytes as gzip has them, made without holding them."""
    stream = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    return b"".join(stream.compress(bytes(MB)) for _ in range(length // MB)) + stream.flush()


def peak_memory(process: psutil.Process) -> int:
    """The most resident memory of a process since the last call, bytes (proc(5), VmHWM and clear_refs)."""
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return int(kilobytes) * 1024


BOMB = zeros(1000 * MB)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", BOMB),
        ("deflate", zlib.compress(bytes(9 * MB))),
        ("gzip", members(bytes(8_000_001), MB)),
        ("gzip, gzip", gzip.compress(gzip.compress(bytes(9 * MB)))),
        ("gzip, gzip", gzip.compress(BOMB)),
        ("gzip, gzip", gzip.compress(members(bytes(9 * MB), MB) + bytes(9 * MB))),
    ],
    ids=["1 GB", "deflate", "a byte too long", "twice", "1 GB twice", "long between"],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
def test_a_bomb_costs_nothing(small: RunningServer, encoding: str, data: bytes, chunked: bool) -> None:
    worker = psutil.Process(small.process.pid).children()[-1]
    small.post({"documents": []})
    peak_memory(worker)
    before = worker.memory_info().rss
    seconds = worker.cpu_times().user
    sent: Any = in_pieces(data, 100_000) if chunked else data
    answer = requests.post(f"{small.url}/process", data=sent, headers={"Content-Encoding": encoding}, timeout=60)
    assert answer.status_code == 413, answer.text
    assert "larger than 8 MB" in answer.json()["error"]
    assert peak_memory(worker) - before < 7 * MB, "less than what was accepted of it"
    assert worker.cpu_times().user - seconds < 1


def test_what_comes_out_counts_among_the_bytes_that_are_held(small: RunningServer) -> None:
    """One request alone may have more than the service holds of several, and gives all of it back."""
    padded = json.dumps({"documents": [], "padding": "x" * 7_900_000}).encode()
    for _ in range(5):
        answer = requests.post(
            f"{small.url}/process", data=gzip.compress(padded), headers={"Content-Encoding": "gzip"}, timeout=60
        )
        assert answer.status_code == 200
    (held,) = re.findall(r"^florence_body_bytes (\S+)$", small.get("/metrics").text, re.MULTILINE)
    assert float(held) == 0


def undone(encoding: str, parts: Sequence[bytes]) -> list[bytes]:
    return [*decoded(parts, codings_of(encoding), iter)]


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 10**9])
@pytest.mark.parametrize("name", [name for name, (encoding, _) in ENCODED.items() if encoding and "a" not in encoding])
def test_parts_of_any_size_come_to_the_same(name: str, size: int) -> None:
    encoding, data = ENCODED[name]
    pieces = undone(str(encoding), [*in_pieces(data, size)])
    assert b"".join(pieces) == BODY
    assert max(map(len, pieces)) <= PIECE


def test_what_a_stream_holds_back_is_not_lost() -> None:
    """A bare stream has no trailer: its last bytes may be read long before all that they stand for is written."""
    for length in (PIECE - 1, PIECE, PIECE + 1, 3 * PIECE):
        data = bytes(length)
        assert b"".join(undone("deflate", [bare(data)])) == data


def test_empty_parts_without_end_are_refused() -> None:
    with pytest.raises(RequestError, match=f"more than {MAX_MEMBERS} parts"):
        list(inflate([gzip.compress(b"") * (MAX_MEMBERS + 1)], CODINGS["gzip"]))


def test_codings_are_named_in_any_case() -> None:
    assert codings_of("") == codings_of(" identity, ,Identity") == []
    assert [coding.name for coding in codings_of("Deflate, X-GZIP")] == ["deflate", "gzip"]
    with pytest.raises(UnsupportedMediaType, match="is br, zstd; accepted"):
        codings_of("br, gzip, zstd")
