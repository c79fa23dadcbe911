"""The user's own document: the sample answer's form, and that each path of the interface is served."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import SCENES, RunningServer, document

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


@pytest.mark.parametrize("path", INTERFACE["paths"])
def test_each_path_is_served(path: str, server: RunningServer) -> None:
    for method in INTERFACE["paths"][path]:
        response = server.get(path) if method == "get" else server.post({"documents": []})
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "application/json"
