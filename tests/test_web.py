"""The application around a model that does as it is told: states, limits, errors, and any JSON at all."""

import base64
import gzip
import io
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any
from urllib.parse import unquote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from florence_tagger.assembly import start_decoder_pool
from florence_tagger.config import Settings, load_settings
from florence_tagger.errors import ModelError, NotReadyError
from florence_tagger.media.images import open_picture
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.scheduler import Scheduler
from florence_tagger.schemas import Prompt, Task
from florence_tagger.web.app import create_app
from florence_tagger.web.envelope import IndexResponse
from florence_tagger.web.metrics import Metrics
from florence_tagger.web.parameters import RequestBody
from florence_tagger.web.request import parse_request
from florence_tagger.web.routes import process
from tests.conftest import LIBRARY_WORDING, FakeModel, document, wait_for
from tests.pictures import pages
from tests.videos import animation, damaged_frame

KEYS = {
    "status",
    "data",
    "error",
    "number_documents_treated",
    "number_documents_non_treated",
    "list_id_not_treated",
    "memory_used",
    "ram_used",
}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


DECODERS: dict[int, DecoderPool] = {}  # by the limit of pixels; shared by all applications


def decoders_for(chosen: Settings) -> DecoderPool:
    if chosen.max_pixels not in DECODERS:
        DECODERS[chosen.max_pixels] = start_decoder_pool(chosen, (16, 16))
    return DECODERS[chosen.max_pixels]


@pytest.fixture(scope="module", autouse=True)
def ended_decoders() -> Iterator[None]:
    yield
    while DECODERS:
        DECODERS.popitem()[1].close()


def application(model: FakeModel, **given: Any) -> tuple[Flask, Scheduler]:
    chosen: Settings = load_settings({"result_cache": 0} | given)
    measures = Metrics()
    scheduler = Scheduler(lambda: model, chosen.queue_size, telemetry=measures)
    assert wait_for(lambda: scheduler.ready)
    return create_app(chosen, decoders_for(chosen), scheduler, measures), scheduler


@pytest.fixture
def client(fake_model: FakeModel) -> Iterator[FlaskClient]:
    app, scheduler = application(fake_model)
    yield app.test_client()
    scheduler.close()


def check_envelope(answer: Any) -> None:
    assert set(answer) == KEYS
    IndexResponse.model_validate(answer, strict=True)
    assert answer["number_documents_treated"] == len(answer["data"])
    assert answer["number_documents_non_treated"] == len(answer["list_id_not_treated"])
    assert 0 <= float(answer["memory_used"]) <= 100
    assert float(answer["ram_used"]) > 0
    assert not LIBRARY_WORDING.search(
        " ".join([answer["error"], *(text for one in answer["list_id_not_treated"] for text in one.values())])
    )


def post(client: FlaskClient, **body: Any) -> Any:
    response = client.post("/process", json=body)
    check_envelope(response.json)
    return response


def test_a_document_keeps_its_unknown_fields(client: FlaskClient) -> None:
    sent = document(PNG, extra={"deep": [1, None, {"x": "é"}]}, big=2**70)
    sent["source"]["odd"] = [1.5]
    answer = post(client, documents=[sent]).json
    assert answer["data"] == [sent | {"source": sent["source"] | {"content": [{"cat": 1}]}}]


def test_no_documents_is_an_answer(client: FlaskClient) -> None:
    response = post(client, documents=[])
    assert response.status_code == 200
    assert response.json["data"] == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON: it stops being JSON at line 1, column 1. The body must be a JSON object"),
        (b"{", "not JSON: it stops being JSON at line 1, column 2."),
        (b'{"documents": [],\n}', "not JSON: it stops being JSON at line 2, column 1."),
        (b"\xff\xfe\xfa", "not JSON: byte 3 of it is not UTF-16"),
        (b'{"documents": "\xe9"}', "not JSON: byte 16 of it is not UTF-8"),
        (b"documents=%5B%5D", 'object with a list "documents", each with its file in base64'),
        (b'{"documents": [], "x": NaN}', "NaN is not JSON"),
        (b"1" * 5000, "not JSON: a number in it has too many digits"),
        (b'{"documents": [{"x": 1e999}]}', "beyond the range"),
        (b"[]", 'list "documents"'),
        (b"{}", 'list "documents"'),
        (b'{"documents": {}}', 'list "documents"'),
        (b'{"documents": null}', 'list "documents"'),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"documents": [], "num_labels": ' + b"[" * 199 + b"]" * 199 + b"}", "num_labels"),
    ],
)
def test_bodies_that_are_no_request(client: FlaskClient, body: bytes, reason: str) -> None:
    response = client.post("/process", data=body)
    check_envelope(response.json)
    assert response.status_code == 400
    assert response.json["status"] == {"code": 400, "message": "Bad Request"}
    assert reason in response.json["error"]


WANTED = 'not JSON. The body must be a JSON object with a list "documents", each with its file in base64'


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (PNG, "The body is a file itself (PNG), not JSON"),
        (animation("GIF"), "a file itself (GIF)"),
        (b"\xff\xd8\xff\xe0" + b"[{,:" * 300_000, "a file itself (JPEG)"),
        (base64.b64encode(PNG), "a file in base64 alone"),
        (base64.urlsafe_b64encode(PNG), "a file in base64 alone"),
        (base64.encodebytes(PNG), "a file in base64 alone"),
        (b"data:image/png;base64," + base64.b64encode(PNG), "a file in base64 alone"),
        (gzip.compress(b'{"documents": []}'), "compressed by gzip, without the header Content-Encoding: gzip"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + PNG + b"\r\n--x--\r\n",
            "a form in parts (multipart)",
        ),
    ],
    ids=["PNG", "GIF", "JPEG", "base64", "base64url", "base64 in lines", "data", "gzip", "multipart"],
)
@pytest.mark.parametrize("content_type", ["application/json", "image/png", "multipart/form-data; boundary=x"])
def test_bodies_that_are_something_else_are_told_what_they_are(
    client: FlaskClient, body: bytes, reason: str, content_type: str
) -> None:
    response = client.post("/process", data=body, content_type=content_type)
    check_envelope(response.json)
    assert response.status_code == 400
    assert reason in response.json["error"]
    assert WANTED in response.json["error"]


def test_json_that_looks_like_a_video_is_json(client: FlaskClient) -> None:
    """Its bytes 5 to 8 are those of a QuickTime atom."""
    assert client.post("/process", data=b'{"x-wide": 1, "documents": []}').status_code == 200
    error = client.post("/process", data=b'{"x-wide": 1, "documents": [}').json["error"]
    assert error.startswith("The body is not JSON: it stops being JSON at line 1, column 29.")


WRITINGS = {
    "base64": lambda file: base64.b64encode(file).decode(),
    "base64url": lambda file: base64.urlsafe_b64encode(file).decode(),
    "without padding": lambda file: base64.b64encode(file).decode().rstrip("="),
    "base64url without padding": lambda file: base64.urlsafe_b64encode(file).decode().rstrip("="),
    "half its padding": lambda file: base64.b64encode(file).decode().replace("==", "="),
    "lines": lambda file: base64.encodebytes(file).decode(),
    "data": lambda file: "data:image/png;base64," + base64.b64encode(file).decode(),
    "data in base64url": lambda file: "DATA:image/png;base64," + base64.urlsafe_b64encode(file).decode().rstrip("="),
    "blanks": lambda file: "\t" + base64.urlsafe_b64encode(file).decode() + " \r\n",
}


@pytest.mark.parametrize("more", range(3))
@pytest.mark.parametrize("name", WRITINGS)
def test_ways_to_write_base64(client: FlaskClient, name: str, more: int) -> None:
    """Of files that need all lengths of padding, and have what the two alphabets differ in."""
    file = PNG + b"\xfb\xff\xfe" * 5 + bytes(more)
    assert {"+", "/"} <= set(base64.b64encode(file).decode())
    sent = document(b"", id="a")
    sent["source"]["content"] = WRITINGS[name](file)
    assert post(client, documents=[sent]).json["data"][0]["source"]["content"] == [{"cat": 1}]


@pytest.mark.parametrize("outer", ["base64", "base64url without padding", "lines", "data"])
@pytest.mark.parametrize("inner", ["base64", "base64url without padding", "lines", "data"])
def test_base64_of_base64_has_its_reason(client: FlaskClient, inner: str, outer: str) -> None:
    sent = document(b"", id="a")
    sent["source"]["content"] = WRITINGS[outer](WRITINGS[inner](PNG).encode())
    (untreated,) = post(client, documents=[sent]).json["list_id_not_treated"]
    assert untreated == {"a": "source.content is base64 of base64; the file is wanted in base64 once."}


def test_a_picture_of_letters_and_digits_is_a_picture(client: FlaskClient) -> None:
    """A portable bitmap in text has only what base64 has, too."""
    bitmap = b"P1\n20 20\n" + b"0 1\n" * 200
    assert post(client, documents=[document(bitmap)]).json["data"][0]["source"]["content"] == [{"cat": 1}]


@pytest.mark.parametrize(("depth", "status"), [(100, 200), (197, 200), (198, 400), (900, 400), (990, 400), (5000, 400)])
@pytest.mark.parametrize("pair", ["[]", '{"":}'])
def test_deep_nesting_is_echoed_or_refused(client: FlaskClient, pair: str, depth: int, status: int) -> None:
    nested = pair[:-1] * (depth - 1) + ("{}" if pair[0] == "{" else "[]") + pair[-1] * (depth - 1)
    sent = json.dumps({"documents": [document(PNG, deep="?")]}).replace('"?"', nested)
    response = client.post("/process", data=sent)
    check_envelope(response.json)
    assert response.status_code == status
    if status == 400:
        assert "nested too deeply" in response.json["error"]
    else:
        assert response.json["data"][0]["deep"] == json.loads(nested)


@pytest.mark.parametrize("value", [None, "", 0, "0", 10_000, " 7 ", "10000"])
def test_numbers_of_labels_that_are_accepted(client: FlaskClient, value: Any) -> None:
    assert post(client, documents=[], num_labels=value).status_code == 200
    assert post(client, documents=[], num_classes=value).status_code == 200


@pytest.mark.parametrize("value", [True, False, 1.5, -1, "-1", 10_001, "x", "1.0", "٣", [], {}, "9" * 30, 10**30])
def test_numbers_of_labels_that_are_not(client: FlaskClient, value: Any) -> None:
    response = post(client, documents=[], num_labels=value)
    assert response.status_code == 400
    assert "num_labels is" in response.json["error"]
    assert post(client, documents=[], num_classes=value).status_code == 400


def test_both_names_must_agree(client: FlaskClient) -> None:
    assert post(client, documents=[], num_labels=3, num_classes="3").status_code == 200
    assert post(client, documents=[], num_labels=3, num_classes=4).status_code == 400


@pytest.mark.parametrize("prompt", ["OD", "<OD>", "od", "<od>", None, ""])
def test_tasks_that_are_accepted(client: FlaskClient, prompt: Any) -> None:
    assert post(client, documents=[], prompt=prompt, output="counts", min_score=0).status_code == 200


@pytest.mark.parametrize(
    "parameter",
    [
        {"prompt": "CAPTION"},
        {"prompt": "OD>"},
        {"prompt": "<OD"},
        {"prompt": "region_propoſal"},
        {"prompt": 5},
        {"output": "boxes"},
        {"output": []},
        {"return_boxes": "yes"},
    ]
    + [{"min_score": score} for score in (-0.1, 1.01, True, "high", [], 10**400)],
)
def test_what_is_not_offered_is_refused(client: FlaskClient, parameter: dict[str, Any]) -> None:
    response = post(client, documents=[], **parameter)
    assert response.status_code == 400
    assert "accepted is" in response.json["error"]


@pytest.mark.parametrize(
    ("sent", "name", "reason"),
    [
        (None, "documents[0]", "not an object"),
        ("x", "documents[0]", "not an object"),
        ({}, "documents[0]", "no object source"),
        ({"id": "a", "source": 3}, "a", "no object source"),
        ({"id": "a", "source": {}}, "a", "no text source.content"),
        ({"id": 17, "source": {"content": None}}, "17", "no text source.content"),
        ({"id": "", "source": {"content": [1]}}, "documents[0]", "no text source.content"),
        ({"id": None, "source": {"content": ""}}, "documents[0]", "empty"),
        ({"id": {}, "source": {"content": "?"}}, "documents[0]", "not base64: character 1 of it is '?'"),
        ({"id": "a", "source": {"content": "iVBORw0%2BGgo"}}, "a", "not base64: character 8 of it is '%'"),
        ({"id": "a", "source": {"content": "iVBORw0KG"}}, "a", "not base64: its length can't be"),
        ({"id": "a", "source": {"content": "iVBO=Rw0"}}, "a", "not base64: character 5 of it is '='"),
        ({"id": "a", "source": {"content": "é"}}, "a", "not base64: character 1 of it is 'é'"),
        ({"id": "a", "source": {"content": "http://example.org/a.png"}}, "a", "not base64: it looks like a URL"),
        ({"id": "a", "source": {"content": "data:image/png,%89PNG"}}, "a", "not base64: character 1 of it is '%'"),
        ({"id": "a", "source": {"content": "AAAA"}}, "a", "not a picture"),
    ],
)
def test_documents_that_can_not_be_treated(client: FlaskClient, sent: Any, name: str, reason: str) -> None:
    good = document(PNG, id="good")
    response = post(client, documents=[sent, good])
    assert response.status_code == 200
    assert [one["id"] for one in response.json["data"]] == ["good"]
    ((identity, text),) = response.json["list_id_not_treated"][0].items()
    assert identity == name
    assert reason in text


def test_boxes_come_when_asked_for(client: FlaskClient, fake_model: FakeModel) -> None:
    source = post(client, documents=[document(PNG)], return_boxes=True).json["data"][0]["source"]
    assert source["detections"] == [{"label": "cat", "score": 0.9, "box": [0, 0, 20, 10], "frame": 0}]
    assert "truncated" not in source
    fake_model.truncated = True
    source = post(client, documents=[document(PNG)], return_boxes=True).json["data"][0]["source"]
    assert source["truncated"] is True


def test_weak_boxes_are_left_out(client: FlaskClient) -> None:
    for min_score, counts in ((0, [{"cat": 1}]), (0.9, [{"cat": 1}]), ("0.91", []), (1, [])):
        answer = post(client, documents=[document(PNG)], min_score=min_score, return_boxes=True).json
        source = answer["data"][0]["source"]
        assert source["content"] == counts
        assert len(source["detections"]) == len(counts)


def test_labels_with_their_probabilities_as_the_older_tagger_had_them(client: FlaskClient) -> None:
    source = post(client, documents=[document(PNG)], output="probabilities").json["data"][0]["source"]
    assert source["content"] == [{"label": "cat", "probability": 0.9}]
    answer = post(client, documents=[document(PNG)], output="probabilities", min_score=0.95).json
    assert answer["data"][0]["source"]["content"] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("video_fps", 0.5),
        ("video_fps", "0.5"),
        ("video_fps", 1),
        ("video_max_frames", 3),
        ("video_max_frames", " 32 "),
        ("video_max_frames", None),
        ("video_max_seconds", 1e-3),
        ("video_max_seconds", ""),
    ],
)
def test_samplings_that_are_accepted(client: FlaskClient, name: str, value: Any) -> None:
    assert post(client, documents=[], **{name: value}).status_code == 200


@pytest.mark.parametrize("value", [0, -1, True, "x", "nan", "inf", [], {}, 4000, "1e9", 10**400, "9" * 30])
@pytest.mark.parametrize("name", ["video_fps", "video_max_frames", "video_max_seconds"])
def test_samplings_that_are_not(client: FlaskClient, name: str, value: Any) -> None:
    response = post(client, documents=[], **{name: value})
    assert response.status_code == 400
    assert f"{name} is" in response.json["error"]
    assert "the service's setting" in response.json["error"]


def test_frames_are_whole(client: FlaskClient) -> None:
    assert post(client, documents=[], video_max_frames=1.5).status_code == 400


def test_boxes_tell_their_time(client: FlaskClient, fake_model: FakeModel) -> None:
    content = animation("GIF")
    (one,) = post(client, documents=[document(content)], return_boxes=True).json["data"]
    assert one["source"]["content"] == [{"cat": 1}]
    places = [(found["frame"], found["time_s"]) for found in one["source"]["detections"]]
    assert places == [(0, 0), (1, 1), (2, 2)]
    assert one["source"]["frames"] == [{"frame": place, "time_s": place} for place in range(3)]
    assert "incomplete" not in one["source"]
    (one,) = post(client, documents=[document(content)], return_boxes=True, video_max_frames=2).json["data"]
    assert [found["time_s"] for found in one["source"]["detections"]] == [0, 2]  # the last is among them


def test_boxes_tell_their_page(client: FlaskClient, fake_model: FakeModel) -> None:
    (one,) = post(client, documents=[document(pages())], return_boxes=True).json["data"]
    assert one["source"]["content"] == [{"cat": 3}]
    places = [(found["frame"], found["page"]) for found in one["source"]["detections"]]
    assert places == [(0, 1), (1, 2), (2, 3)]


def test_frames_with_nothing_in_them_are_told(client: FlaskClient) -> None:
    options = {"return_boxes": True, "min_score": 1}
    (one,) = post(client, documents=[document(pages())], **options).json["data"]
    assert one["source"]["detections"] == []
    assert one["source"]["frames"] == [{"frame": place, "page": place + 1} for place in range(3)]
    (one,) = post(client, documents=[document(PNG)], **options).json["data"]
    assert one["source"]["frames"] == [{"frame": 0}]


def test_a_damaged_video_is_marked(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    (one,) = post(client, documents=[document(damaged_frame())], return_boxes=True).json["data"]
    assert one["source"]["incomplete"] is True
    assert "counted by its first 3 frames" in caplog.text


def test_a_failing_model_costs_one_document(
    client: FlaskClient, fake_model: FakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    fake_model.error = ModelError("out of order")
    response = post(client, documents=[document(PNG, id="a")])
    assert response.status_code == 200
    assert "The model failed" in response.json["list_id_not_treated"][0]["a"]
    assert "out of order" in caplog.text
    fake_model.error = None
    assert post(client, documents=[document(PNG)]).json["number_documents_treated"] == 1


def test_limits(fake_model: FakeModel) -> None:
    app, scheduler = application(fake_model, max_documents=2, max_body_mb=0.01, max_document_mb=0.0001, max_pixels=10)
    client = app.test_client()
    response = post(client, documents=[{}] * 3)
    assert response.status_code == 413
    assert "3 documents; 2 are accepted" in response.json["error"]
    response = client.post("/process", data=b"x" * 10_001)
    check_envelope(response.json)
    assert response.status_code == 413
    assert "larger than 0.01 MB" in response.json["error"]
    chunked = {"wsgi.input": io.BytesIO(b" " * 20_000), "wsgi.input_terminated": True}
    response = client.post("/process", environ_overrides=chunked)
    assert response.status_code == 413
    (untreated,) = post(client, documents=[document(PNG + bytes(100), id="large")]).json["list_id_not_treated"]
    assert "larger than 0.0001 MB" in untreated["large"]
    (untreated,) = post(client, documents=[document(PNG, id="wide")]).json["list_id_not_treated"]
    assert "20 x 10 pixels" in untreated["wide"]
    scheduler.close()


def test_not_ready_then_ready() -> None:
    loading, model = Event(), FakeModel()
    model.go.set()

    def load() -> FakeModel:
        assert loading.wait(30)
        return model

    scheduler = Scheduler(load, 1)
    client = create_app(load_settings(), decoders_for(load_settings()), scheduler).test_client()
    response = post(client, documents=[document(PNG)])
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert client.get("/health-check").status_code == 503
    assert client.get("/test").status_code == 200
    loading.set()
    assert wait_for(lambda: client.get("/health-check").status_code == 200)
    assert post(client, documents=[document(PNG)]).json["number_documents_treated"] == 1
    scheduler.close()


def test_a_model_that_can_not_be_loaded_is_told() -> None:
    told: list[Exception] = []

    def load() -> FakeModel:
        raise ModelError("no such device")

    scheduler = Scheduler(load, 1, told.append)
    assert wait_for(lambda: told)
    assert str(told[0]) == "no such device"
    assert not scheduler.ready
    scheduler.close()


def test_a_full_queue_refuses_and_a_hanging_model_is_unhealthy(fake_model: FakeModel) -> None:
    fake_model.go.clear()
    app, scheduler = application(fake_model, queue_size=1, hang_seconds=5)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(lambda: post(app.test_client(), documents=[document(PNG)]))
        assert fake_model.entered.wait(10)
        waiting = pool.submit(lambda: post(app.test_client(), documents=[document(PNG)] * 3))
        assert wait_for(lambda: scheduler.waiting == 1)
        refused = post(app.test_client(), documents=[document(PNG)])
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert app.test_client().get("/health-check").status_code == 200
        assert wait_for(lambda: app.test_client().get("/health-check").status_code == 503)
        statuses = [job["status"] for job in app.test_client().get("/work/status").json.values()]
        assert statuses == ["failed", "waiting", "running"]
        fake_model.go.set()
        assert running.result().json["number_documents_treated"] == 1
        assert waiting.result().json["number_documents_treated"] == 3
    scheduler.close()


def test_the_deadline_of_a_request(fake_model: FakeModel) -> None:
    fake_model.go.clear()
    app, scheduler = application(fake_model, request_seconds=0.2)
    response = post(app.test_client(), documents=[document(PNG, id="a"), document(PNG, id="b")])
    assert response.status_code == 200
    assert [next(iter(one)) for one in response.json["list_id_not_treated"]] == ["a", "b"]
    assert "0.2 seconds" in response.json["list_id_not_treated"][0]["a"]
    fake_model.go.set()
    scheduler.close()


def test_closing_cancels_what_waits(fake_model: FakeModel) -> None:
    fake_model.go.clear()
    app, scheduler = application(fake_model, queue_size=5)
    with ThreadPoolExecutor(2) as pool:
        request = pool.submit(lambda: post(app.test_client(), documents=[document(PNG, id=str(i)) for i in range(3)]))
        assert wait_for(lambda: scheduler.waiting == 2)
        closing = pool.submit(scheduler.close)
        assert wait_for(lambda: scheduler.waiting == 0)
        fake_model.go.set()
        closing.result(10)
        answer = request.result(10).json
    assert answer["number_documents_treated"] == 1
    assert [one.get("2") or one.get("1") for one in answer["list_id_not_treated"]] == ["The service is stopping."] * 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/process", 405), ("PUT", "/process", 405), ("GET", "/nothing", 404), ("POST", "/test", 405)],
)
def test_wrong_routes(client: FlaskClient, method: str, path: str, status: int) -> None:
    response = client.open(path, method=method)
    check_envelope(response.json)
    assert response.status_code == response.json["status"]["code"] == status
    assert ("Allow" in response.headers) == (status == 405)


def test_a_fault_of_ours_shows_no_trace(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("florence_tagger.web.routes.process.answer", broken)
    with caplog.at_level(logging.ERROR):
        response = post(client, documents=[])
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "secret" in caplog.text


def test_the_api_key(fake_model: FakeModel) -> None:
    app, scheduler = application(fake_model, api_key="schlüssel")
    client = app.test_client()
    for path in ("/process", "/work/status"):
        method = "POST" if path == "/process" else "GET"
        assert client.open(path, method=method, json={"documents": []}).status_code == 401
        headers = {"X-API-Key": "wrong"}
        assert client.open(path, method=method, json={"documents": []}, headers=headers).status_code == 401
    over_the_wire = "schlüssel".encode().decode("latin-1")
    response = client.post("/process", json={"documents": []}, headers={"X-API-Key": over_the_wire})
    assert response.status_code == 200
    assert client.get("/health-check").status_code == 200
    scheduler.close()


def test_a_large_request_leaves_places_for_others(fake_model: FakeModel) -> None:
    fake_model.go.clear()
    app, scheduler = application(fake_model, queue_size=10)
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(lambda: post(app.test_client(), documents=[document(PNG)] * 50))
        assert wait_for(lambda: scheduler.waiting == 7)
        small = pool.submit(lambda: post(app.test_client(), documents=[document(PNG)]))
        assert wait_for(lambda: scheduler.waiting == 8)
        fake_model.go.set()
        assert small.result().json["number_documents_treated"] == 1
        assert large.result().json["number_documents_treated"] == 50
    scheduler.close()


def test_more_requests_than_places_are_refused_and_health_still_answers(fake_model: FakeModel) -> None:
    fake_model.go.clear()
    app, scheduler = application(fake_model, http_threads=4)
    with ThreadPoolExecutor(2) as pool:
        accepted = [pool.submit(lambda: post(app.test_client(), documents=[document(PNG)])) for _ in range(2)]
        assert wait_for(lambda: len(app.test_client().get("/work/status").json) == 2)
        assert post(app.test_client(), documents=[]).status_code == 503
        fake_model.go.set()
        assert all(request.result().status_code == 200 for request in accepted)
    assert post(app.test_client(), documents=[]).status_code == 200
    scheduler.close()


def test_nothing_is_taken_after_closing(client: FlaskClient, fake_model: FakeModel) -> None:
    scheduler = Scheduler(lambda: fake_model, 1)
    assert wait_for(lambda: scheduler.ready)
    scheduler.close()
    with pytest.raises(NotReadyError, match="stopping"):
        scheduler.add_request(open_picture(PNG, (16, 16), 1000), timeout=10)


def test_a_copy_outlives_the_request_that_had_it_first(fake_model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of the first goes while its pages wait; the other request then looks at the file itself."""
    fake_model.go.clear()
    app, scheduler = application(fake_model, result_cache=10)
    gone = Event()
    monkeypatch.setattr(process, "is_gone", lambda environ: "leaves" in environ["QUERY_STRING"] and gone.is_set())
    sent = {"documents": [document(pages(20))]}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: app.test_client().post("/process?leaves", json=sent))
        assert wait_for(lambda: scheduler.waiting == 7)  # its other pages wait for these
        second = pool.submit(lambda: post(app.test_client(), **sent))
        assert wait_for(lambda: scheduler.reserved == 1)
        gone.set()
        assert first.result(10).status_code == 499
        fake_model.go.set()
        assert second.result(10).json["data"][0]["source"]["content"] == [{"cat": 20}]
    statuses = [job["status"] for job in app.test_client().get("/work/status").json.values()]
    assert statuses == ["done", "cancelled"]
    scheduler.close()


def test_refusals_do_not_drive_out_what_was_treated(client: FlaskClient) -> None:
    post(client, documents=[])
    for _ in range(105):
        client.post("/process", data=b"nonsense")
    statuses = [job["status"] for job in client.get("/work/status").json.values()]
    assert statuses == ["failed"] * 100 + ["done"]


def test_old_jobs_are_forgotten(client: FlaskClient) -> None:
    for _ in range(105):
        post(client, documents=[])
    assert len(client.get("/work/status").json) == 100


@pytest.mark.parametrize("value", [5.0, 0.0, "0005", "\t5\n"])
def test_other_writings_of_a_whole_number(client: FlaskClient, value: Any) -> None:
    assert post(client, documents=[], num_labels=value, num_classes=None).status_code == 200


@pytest.mark.parametrize("value", ["1e-3", ".5", "0.5 ", "1.", 1, 0.0])
def test_writings_of_a_score(client: FlaskClient, value: Any) -> None:
    assert post(client, documents=[], min_score=value).status_code == 200


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"num_labels": 5.5}, "num_labels is 5.5; accepted is an integer from 0 to 10000."),
        ({"min_score": "2"}, 'min_score is "2"; accepted is a number from 0 to 1.'),
        ({"output": 1}, "output is 1; accepted is counts or probabilities."),
        ({"return_boxes": 1}, "return_boxes is 1; accepted is true or false."),
        ({"text": 5}, "text is 5; accepted is a text of at most 2000 characters."),
        ({"text": "\ud800"}, 'text is "\\ud800"; accepted is a text of at most 2000 characters.'),
        ({"text": "x" * 2001}, f'text is "{"x" * 46}...; accepted is a text of at most 2000 characters.'),
        ({"video_fps": 2}, "video_fps is 2; accepted is a number above 0 to 1, the service's setting."),
        ({"video_max_frames": 0}, "video_max_frames is 0; accepted is an integer from 1 to 32, the service's setting."),
        ({"output": [], "num_labels": {}}, "num_labels is {}; accepted is an integer from 0 to 10000. output is []; "),
        ({"prompt": "<OPEN_VOCABULARY_DETECTION>"}, "OPEN_VOCABULARY_DETECTION needs text"),
        ({"prompt": "CAPTION_TO_PHRASE_GROUNDING", "text": " \n"}, "CAPTION_TO_PHRASE_GROUNDING needs text"),
        (
            {"prompt": "<CAPTION>"},
            'prompt is "<CAPTION>"; accepted is OD or DENSE_REGION_CAPTION or REGION_PROPOSAL or '
            "OPEN_VOCABULARY_DETECTION or CAPTION_TO_PHRASE_GROUNDING.",
        ),
    ],
)
def test_the_words_of_a_refusal(client: FlaskClient, parameters: dict[str, Any], error: str) -> None:
    response = client.post("/process", json={"documents": []} | parameters)
    assert response.status_code == 400
    assert error in response.json["error"]


@pytest.mark.parametrize(
    ("parameters", "prompt"),
    [
        ({}, Prompt(Task.OBJECT_DETECTION)),
        ({"prompt": " <Dense_Region_Caption> "}, Prompt(Task.DENSE_REGION_CAPTION)),
        ({"prompt": "region_proposal", "text": "not looked at"}, Prompt(Task.REGION_PROPOSAL)),
        (
            {"prompt": "open_vocabulary_detection", "text": " a red car\n"},
            Prompt(Task.OPEN_VOCABULARY_DETECTION, "a red car"),
        ),
        ({"prompt": "<CAPTION_TO_PHRASE_GROUNDING>", "text": "é"}, Prompt(Task.PHRASE_GROUNDING, "é")),
    ],
)
def test_what_a_prompt_means(parameters: dict[str, Any], prompt: Prompt) -> None:
    body = json.dumps({"documents": []} | parameters).encode()
    assert parse_request(body, 1, Sampling()).prompt == prompt


def test_ten_thousand_documents(client: FlaskClient) -> None:
    response = post(client, documents=[document(PNG)] * 10_000)
    assert response.status_code == 413
    assert "The request has 10000 documents; 1000 are accepted." in response.json["error"]


def test_documents_of_one_id_are_all_treated(client: FlaskClient) -> None:
    sent = [document(PNG, id="same", index=place) for place in range(3)]
    answer = post(client, documents=[sent[0], {"id": "same"}, *sent[1:]]).json
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert [list(one) for one in answer["list_id_not_treated"]] == [["same"]]


@pytest.mark.parametrize("identity", [None, "", True, 17, 1.5, [], {}, "\ud800", 2**70])
def test_any_id_comes_back(client: FlaskClient, identity: Any) -> None:
    (one,) = post(client, documents=[document(PNG, id=identity)]).json["data"]
    assert one["id"] == identity
    nameless = document(PNG)
    del nameless["id"]
    assert post(client, documents=[nameless]).json["data"][0].keys() == {"index", "source"}


def test_the_last_of_two_fields_counts(client: FlaskClient) -> None:
    response = client.post("/process", data=b'{"documents": 5, "documents": [], "num_labels": "x", "num_labels": 1}')
    assert response.status_code == 200


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", None])
def test_the_content_type_does_not_matter(client: FlaskClient, content_type: str | None) -> None:
    response = client.post("/process", data=b'{"documents": []}', content_type=content_type)
    assert response.status_code == 200


def test_headers_of_every_answer(client: FlaskClient) -> None:
    for method, path in (
        ("GET", "/test"),
        ("POST", "/process"),
        ("GET", "/nothing"),
        ("PUT", "/test"),
        ("GET", "/docs"),
    ):
        headers = client.open(path, method=method, headers={"Origin": "http://evil.example"}).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("host", ["evil.example", "x:99999", "a b", "<script>", ""])
def test_the_host_is_not_repeated(client: FlaskClient, host: str) -> None:
    for path in ("/test/", "/work//status", "/docs//swagger/start.js"):
        response = client.get(path, headers={"Host": host})
        assert response.status_code in (400, 404)
        check_envelope(response.json)
        assert "Location" not in response.headers
        assert not host or host not in response.text


def test_a_missing_key_is_told_at_the_start(fake_model: FakeModel, caplog: pytest.LogCaptureFixture) -> None:
    for key in ("", "secret"):
        caplog.clear()
        _, scheduler = application(fake_model, api_key=key)
        scheduler.close()
        assert ("No API key is set (FLORENCE_API_KEY)" in caplog.text) == (not key)
        assert "secret" not in caplog.text


def test_a_key_that_is_no_utf_8(fake_model: FakeModel) -> None:
    app, scheduler = application(fake_model, api_key="\udcff")  # as Python has the byte 255 of the environment
    assert app.test_client().get("/metrics").status_code == 401
    assert app.test_client().get("/metrics", headers={"X-API-Key": "\xff"}).status_code == 200
    scheduler.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("id", "source", "content", "documents", *(name for name in RequestBody.model_fields if name != "documents"))
TASKS = st.sampled_from([*Task]) | st.text(max_size=3)
ENVELOPES = st.fixed_dictionaries(
    {"documents": st.lists(JSON | st.dictionaries(st.sampled_from(FIELDS), JSON), max_size=4) | JSON},
    optional=dict.fromkeys(FIELDS[4:], JSON | TASKS | st.integers(-1, 40) | st.floats(-1, 2).map(str)),
)


@pytest.fixture(scope="module")
def shared_client() -> Iterator[FlaskClient]:
    model = FakeModel()
    model.go.set()
    app, scheduler = application(model)
    yield app.test_client()
    scheduler.close()


@given(body=JSON | ENVELOPES)
@settings(deadline=None, max_examples=300)
def test_any_json_gets_an_envelope(shared_client: FlaskClient, body: Any) -> None:
    response = shared_client.post("/process", json=body)
    check_envelope(response.json)
    assert response.status_code in (200, 400)
    assert response.json["status"]["code"] == response.status_code
    if response.status_code == 200:
        assert len(response.json["data"]) + len(response.json["list_id_not_treated"]) == len(body["documents"])
    else:
        assert response.json["error"]


@given(body=st.binary() | st.binary().map(lambda inner: b'{"documents": [' + inner + b"]}"))
@settings(deadline=None, max_examples=200)
def test_any_bytes_get_an_envelope(shared_client: FlaskClient, body: bytes) -> None:
    response = shared_client.post("/process", data=body)
    check_envelope(response.json)
    assert response.status_code in (200, 400)


def test_a_body_of_nothing_but_small_values_is_not_read(client: FlaskClient) -> None:
    body = b'{"documents": [], "x": [' + b",".join([b"{}"] * 300_000) + b"]}"
    response = client.post("/process", data=body)
    assert response.status_code == 400
    assert "more than the 500,000 values accepted" in response.json["error"]


@pytest.mark.parametrize("name", ["model (int8)", "Modell für Zähler", "模型\r\nSet-Cookie: a=b", "100 %"])
def test_a_header_can_carry_any_name(name: str) -> None:
    carried = process.quote_header(name)
    assert carried.isascii()
    assert carried.isprintable()
    assert unquote(carried) == name
    assert process.quote_header("model (int8)") == "model (int8)", "readable where it can be"
