"""The user's own document: the sample answer's form, and that each path of the interface is served."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest

from florence_tagger.config import load_settings
from florence_tagger.web.routes.openapi import describe
from tests.conftest import ROOT, SCENES, RunningServer, document

CONTRACT = Path(__file__).parent / "contract"
SAMPLE: dict[str, Any] = json.loads((CONTRACT / "florence_response.json").read_text())
INTERFACE: dict[str, Any] = json.loads((CONTRACT / "openapi.json").read_text())


def form_of(value: Any) -> Any:
    """Names and types of a value, without its content."""
    if isinstance(value, dict):
        return {name: form_of(inner) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        return [form_of(value[0])] if value else []
    return type(value).__name__


@pytest.fixture(scope="module")
def answer(server: RunningServer) -> Any:
    sent = SAMPLE["data"][0]
    sent = sent | {
        "source": sent["source"] | {"content": document((SCENES / "scene00.png").read_bytes())["source"]["content"]}
    }
    return server.post({"documents": [sent]}).json()


def test_the_answer_has_the_sample_form(answer: Any) -> None:
    def without_counts(envelope: Any) -> Any:
        (one,) = envelope["data"]
        return envelope | {"data": [one | {"source": one["source"] | {"content": []}}]}

    assert form_of(without_counts(answer)) == form_of(without_counts(SAMPLE))
    for content in (answer["data"][0]["source"]["content"], SAMPLE["data"][0]["source"]["content"]):
        assert all(len(one) == 1 for one in content)
        assert all(isinstance(count, int) for one in content for count in one.values())
        labels = [label for one in content for label in one]
        assert labels == sorted(labels)


def test_everything_but_the_content_is_echoed(answer: Any) -> None:
    treated, sample = answer["data"][0], SAMPLE["data"][0]
    assert treated | {"source": None} == sample | {"source": None}
    assert treated["source"] | {"content": None} == sample["source"] | {"content": None}


def test_memory_is_told_as_in_the_sample(answer: Any) -> None:
    assert len(answer["memory_used"].partition(".")[2]) == len(SAMPLE["memory_used"].partition(".")[2])
    assert len(answer["ram_used"].partition(".")[2]) == len(SAMPLE["ram_used"].partition(".")[2])


def test_the_answer_fits_the_interface(answer: Any, server: RunningServer) -> None:
    schema = INTERFACE["components"]["schemas"]["Index_Response"]
    jsonschema.validate(answer, schema, cls=jsonschema.Draft202012Validator)
    failure = server.post({}).json()
    jsonschema.validate(failure, schema, cls=jsonschema.Draft202012Validator)
    assert set(failure) == set(answer) == set(schema["properties"])


def missing(theirs: Any, ours: Any, place: str = "") -> Iterator[str]:
    """The places of what theirs has and ours has not, or has otherwise; an empty schema allows any."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name, inner in theirs.items():
            if name in ours:
                yield from missing(inner, ours[name], f"{place}/{name}")
            else:
                yield f"{place}/{name}"
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for index, (inner, other) in enumerate(zip(theirs, ours, strict=True)):
            yield from missing(inner, other, f"{place}/{index}")
    elif theirs != ours:
        yield place


def test_what_is_missing_is_seen() -> None:
    assert list(missing({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}], "c": 4})) == ["/a/1/b"]
    assert list(missing({"a": [1], "b": {}}, {"a": [1, 2]})) == ["/a", "/b"]


@pytest.fixture(scope="module")
def described(server: RunningServer) -> Any:
    return server.get("/openapi.json").json()


def test_the_description_has_everything_of_the_interface(described: Any) -> None:
    assert list(missing(INTERFACE, described)) == []


@pytest.mark.parametrize("settings", [{}, {"api_key": "secret", "max_documents": 3, "video_fps": 0.5}])
def test_the_description_is_valid(settings: dict[str, Any]) -> None:
    """By openapi-spec-validator, which also compares each default with its schema."""
    openapi_spec_validator.validate(describe(load_settings(settings)))
    broken = describe(load_settings(settings))
    broken["components"]["schemas"]["Index_Response"]["properties"]["status"]["required"] = ["code"]
    with pytest.raises(jsonschema.ValidationError, match="'code' is a required property"):
        openapi_spec_validator.validate(broken)


# What a generated client does: everything as it comes, some parameters, a document that is none, and a bad parameter.
PROGRAM = """
import json, sys
from client import Client
from client.api.default import predict_image_process_post as post, health_check_health_check_get as health
from client.models import ProcessRequest, ProcessRequestOutputType0, ProcessRequestPromptType0

url, documents = json.load(sys.stdin)
service = Client(url)
assert health.sync_detailed(client=service).status_code == 200
requests = [
    ProcessRequest(documents),
    ProcessRequest(documents, num_labels=0, min_score=0.5, return_boxes=True, video_fps=0.5, video_max_frames=3),
    ProcessRequest(documents, num_labels="1", min_score=None, output=ProcessRequestOutputType0.PROBABILITIES),
    ProcessRequest(documents, prompt=ProcessRequestPromptType0.OPEN_VOCABULARY_DETECTION, text="car"),
    ProcessRequest([1]),
    ProcessRequest([], min_score=1.5),
]
print(json.dumps([post.sync(client=service, body=request).to_dict() for request in requests]))
"""


def test_a_generated_client_works(server: RunningServer, tmp_path: Path) -> None:
    """By openapi-python-client: its parameters have plain types, and the service takes what it sends."""
    (tmp_path / "openapi.json").write_bytes(server.get("/openapi.json").content)
    tools = Path(sys.executable).parent
    command = [tools / "openapi-python-client", "generate", "--fail-on-warning", "--meta", "none"]
    command += ["--path", tmp_path / "openapi.json", "--output-path", tmp_path / "client"]
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stdout + run.stderr

    text = (tmp_path / "client" / "models" / "process_request.py").read_text()
    declared = dict(re.findall(r"^    (\w+): (.+?)(?: = .*)?$", text, re.MULTILINE))
    numbers = {
        "min_score": "float",
        "merge_iou": "float",
        "video_fps": "float",
        "video_max_seconds": "float",
        "video_max_frames": "int",
    }
    for name, kind in (numbers | {"num_labels": "int", "num_classes": "int"}).items():
        assert declared[name] == f"{kind} | None | str | Unset"
    assert declared["return_boxes"].startswith("bool | ")
    classes = {path.name for path in (tmp_path / "client" / "models").glob("process_request_*.py")}
    assert classes == {f"process_request_{name}_type_0.py" for name in ("prompt", "output", "video_count")}, (
        "of choices"
    )

    street = document((ROOT / "florence_tagger" / "web" / "samples" / "street.png").read_bytes())
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([server.url, [street]]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    *treated, untreated, refused = json.loads(run.stdout)
    contents = [answer["data"][0]["source"]["content"] for answer in treated]
    assert contents[0] == contents[1] == [{"backpack": 5}, {"car": 4}, {"person": 3}]
    assert [one["label"] for one in contents[2]] == ["car"]
    assert contents[3] == [{"car": 4}]
    assert untreated["list_id_not_treated"] == [{"documents[0]": "The document is not an object."}]
    assert refused["status"] == {"code": 400, "message": "Bad Request"}


def test_every_failure_is_described_with_the_envelope(described: Any) -> None:
    reference = {"$ref": "#/components/schemas/Index_Response"}
    for operations in described["paths"].values():
        for operation in operations.values():
            assert {"200", "405", "414", "500"} <= set(operation["responses"])
    responses = described["paths"]["/process"]["post"]["responses"]
    assert set(responses) == {"200", "400", "405", "408", "413", "414", "415", "500", "503"}
    assert all(one["content"]["application/json"]["schema"] == reference for one in responses.values())
    assert responses["503"]["headers"]["Retry-After"]["required"]
    assert all(one["headers"]["X-Job-Id"]["required"] for one in responses.values())


def test_the_description_tells_of_the_key_where_there_is_one() -> None:
    described = describe(load_settings({"api_key": "secret"}))
    assert "secret" not in json.dumps(described)
    for path, method in (("/process", "post"), ("/work/status", "get"), ("/metrics", "get")):
        operation = described["paths"][path][method]
        assert operation["security"] == [{"ApiKey": []}]
        assert "401" in operation["responses"]


def test_documents_are_of_any_form(described: Any) -> None:
    documents = described["components"]["schemas"]["Process_Request"]["properties"]["documents"]
    assert set(documents["items"]) == {"description"}
    assert documents["maxItems"] == 1000


def test_the_example_can_be_sent(described: Any, server: RunningServer) -> None:
    schema = described["components"]["schemas"]["Process_Request"]
    (example,) = schema["properties"]["documents"]["examples"]
    body = {"documents": example} | {
        name: field["default"] for name, field in schema["properties"].items() if "default" in field
    }
    jsonschema.validate(body, schema, cls=jsonschema.Draft202012Validator)
    assert server.post(body).json()["number_documents_treated"] == 1


def test_every_field_of_a_request_is_documented(described: Any) -> None:
    section = (ROOT / "docs" / "requests.md").read_text()
    for name in described["components"]["schemas"]["Process_Request"]["properties"]:
        assert f"`{name}`" in section


def test_the_page_asks_no_other_host(server: RunningServer) -> None:
    page = server.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"https?:|\"//", page.text)
    assets = re.findall(r'(?:src|href)="(/[^"]*)"', page.text)
    assert len(assets) == 3
    for asset in assets:
        response = server.get(asset)
        assert response.status_code == 200
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert server.get("/docs/swagger/../../app.py").status_code == 404


@pytest.mark.parametrize("path", INTERFACE["paths"])
def test_each_path_is_served(path: str, server: RunningServer) -> None:
    for method in INTERFACE["paths"][path]:
        response = server.get(path) if method == "get" else server.post({"documents": []})
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "application/json"
