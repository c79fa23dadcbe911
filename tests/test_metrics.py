"""What is counted, and that the dashboard and the documentation ask for nothing that does not exist."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from florence_tagger import __version__
from florence_tagger.errors import ModelError
from florence_tagger.web.metrics import REASONS
from tests.conftest import ROOT, FakeModel, document, wait_for
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
    app, scheduler = application(fake_model, api_key="")
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
    scheduler.close()


def test_answers_and_copies_are_counted(fake_model: FakeModel) -> None:
    app, scheduler = application(fake_model, result_cache=8)
    client = app.test_client()
    fake_model.truncated = True
    for _ in range(3):
        client.post("/process", json={"documents": [document(PNG)]})
    client.post("/process", json={"documents": [document(PNG + b".")]})
    told = numbers(client)
    assert told["florence_result_cache_hits_total"] == 2
    assert told["florence_result_cache_misses_total"] == told["florence_result_cache_entries"] == 2
    assert told["florence_objects_total"] == told["florence_truncated_answers_total"] == 2, "those of the model"
    assert told["florence_documents_total treated"] == 4
    assert told["florence_tokens_total"] == 0, "the fake one has none"
    (about,) = (name for name in told if name.startswith("florence_model_info "))
    assert about.endswith(__version__)
    scheduler.close()


def test_what_waits_is_told_while_it_waits(fake_model: FakeModel) -> None:
    app, scheduler = application(fake_model, api_key="", queue_size=4)
    client = app.test_client()
    idle = numbers(client)
    assert idle["florence_ready"] == 1
    assert [idle[name] for name in ("florence_waiting", "florence_reserved", "florence_under_way")] == [0, 0, 0]
    fake_model.go.clear()
    fake_model.entered.clear()
    with ThreadPoolExecutor(3) as pool:
        bodies = [{"documents": [document(PNG + b"." * number)]} for number in range(3)]
        answers = [pool.submit(app.test_client().post, "/process", json=body) for body in bodies]
        assert wait_for(lambda: numbers(client)["florence_waiting"] == 2)
        busy = numbers(client)
        fake_model.go.set()
        assert [answer.result().status_code for answer in answers] == [200] * 3
    assert busy["florence_under_way"] == 1
    assert busy["florence_body_bytes"] > 3 * len(PNG)
    assert busy["florence_busy_seconds"] > 0
    assert wait_for(lambda: numbers(client)["florence_body_bytes"] == 0)
    scheduler.close()


def test_refusals_are_counted_by_their_reason(fake_model: FakeModel) -> None:
    app, scheduler = application(fake_model, api_key="key", max_documents=1)
    client = app.test_client()
    key = {"X-API-Key": "key"}
    client.post("/process", json={"documents": []})
    client.post("/process", json={"documents": [{}, {}]}, headers=key)
    scheduler.close()
    client.post("/process", json={"documents": [document(PNG)]}, headers=key)
    families = text_string_to_metric_families(client.get("/metrics", headers=key).text)
    told = {
        sample.labels["reason"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "florence_requests_total" and sample.value
    }
    assert told == {"no_key": 1, "too_large": 1, "unavailable": 1}


def test_labels_are_few_whatever_is_sent() -> None:
    assert len(set(REASONS.values())) == len(REASONS) < 12


def test_the_dashboard_and_the_documentation_know_the_names(fake_model: FakeModel) -> None:
    app, scheduler = application(fake_model)
    client = app.test_client()
    client.post("/process", json={"documents": [document(PNG)]})
    existing = {name.partition(" ")[0] for name in numbers(client)}
    scheduler.close()
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
