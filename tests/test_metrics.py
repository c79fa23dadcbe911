"""What is counted, and that the dashboard and the documentation ask for nothing that does not exist."""

import json
import re

from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from florence_tagger.errors import ModelError
from florence_tagger.web.measures import REASONS
from tests.conftest import ROOT, FakeModel, document
from tests.test_web import PNG, application


def numbers(client: FlaskClient) -> dict[str, float]:
    """What /metrics tells, by name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def test_requests_and_documents_are_counted_by_what_became_of_them(fake_model: FakeModel) -> None:
    app, batcher = application(fake_model, api_key="")
    client = app.test_client()
    client.post("/process", json={"documents": [document(PNG), document(b"no picture"), {}, document(PNG + b".")]})
    fake_model.error = ModelError("out of order")
    client.post("/process", json={"documents": [document(PNG)]})
    client.post("/process", data=b"nonsense")
    client.get("/process")
    told = numbers(client)
    assert told["florence_requests_total ok"] == 2
    assert told["florence_requests_total bad_request"] == 1
    assert told["florence_requests_total wrong_method"] == 1
    assert told["florence_request_seconds_count ok"] == 2
    assert {name: value for name, value in told.items() if name.startswith("florence_documents_total")} == {
        "florence_documents_total treated": 2,
        "florence_documents_total file": 1,
        "florence_documents_total content": 1,
        "florence_documents_total model": 1,
    }
    assert told["florence_objects_total"] == 2
    assert told["florence_stage_seconds_count queue"] == 3
    assert told["florence_stage_seconds_count decode_step"] == told["florence_batch_frames_count"] == 2
    assert told["process_resident_memory_bytes"] > 1e6
    assert told["florence_decoder_memory_bytes"] > 1e6
    batcher.close()


def test_labels_are_few_whatever_is_sent() -> None:
    assert len(set(REASONS.values())) == len(REASONS) < 12


def test_the_dashboard_and_the_documentation_know_the_names(fake_model: FakeModel) -> None:
    app, batcher = application(fake_model)
    client = app.test_client()
    client.post("/process", json={"documents": [document(PNG)]})
    existing = {name.partition(" ")[0] for name in numbers(client)}
    batcher.close()
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:florence|process)_\w+", target["expr"])
    }
    written = set(re.findall(r"`(florence_\w+)", (ROOT / "docs" / "operations.md").read_text()))
    assert asked <= existing
    own = {name for name in existing if name.startswith("florence_") and not re.search("_(created|bucket)$", name)}
    assert written == {re.sub("_(sum|count)$", "", name) for name in own}
