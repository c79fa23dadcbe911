"""The main job through a real gunicorn: pictures in, right counts out."""

import os
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import SCENES, TRUTH, RunningServer, content_for, document, variants


@pytest.mark.parametrize("name", TRUTH)
def test_scene_is_counted(server: RunningServer, name: str) -> None:
    sent = document((SCENES / name).read_bytes(), id=name)
    answer = server.post({"documents": [sent], "num_labels": 0}).json()
    assert answer["data"] == [sent | {"source": sent["source"] | {"content": content_for(TRUTH[name])}}]
    assert answer["status"] == {"code": 200, "message": "Success"}
    assert (answer["number_documents_treated"], answer["number_documents_non_treated"]) == (1, 0)
    assert answer["error"] == ""
    assert answer["list_id_not_treated"] == []


def test_documents_keep_their_order_and_bad_ones_do_not_hurt(server: RunningServer) -> None:
    good = [document((SCENES / name).read_bytes(), id=name) for name in TRUTH]
    bad = document(b"no picture at all", id="bad")
    answer = server.post({"documents": [*good[:3], bad, *good[3:]], "num_labels": 0}).json()
    assert [one["id"] for one in answer["data"]] == list(TRUTH)
    assert [one["source"]["content"] for one in answer["data"]] == [content_for(counts) for counts in TRUTH.values()]
    assert answer["number_documents_non_treated"] == 1
    ((identity, reason),) = answer["list_id_not_treated"][0].items()
    assert identity == "bad"
    assert "not a picture" in reason


def test_requests_at_the_same_time_get_their_own_counts(server: RunningServer) -> None:
    names = list(TRUTH) * 4

    def count(name: str) -> object:
        body = {"documents": [document((SCENES / name).read_bytes())], "num_labels": 0}
        return server.post(body).json()["data"][0]["source"]["content"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(count, names)) == [content_for(TRUTH[name]) for name in names]


def test_num_labels_keeps_the_most_frequent(server: RunningServer) -> None:
    name = max(TRUTH, key=lambda one: len(TRUTH[one]))
    counts = TRUTH[name]
    best = sorted(counts, key=lambda label: (-counts[label], label))[:2]
    answer = server.post({"documents": [document((SCENES / name).read_bytes())], "num_classes": "2"}).json()
    assert answer["data"][0]["source"]["content"] == content_for({label: counts[label] for label in best})


def test_boxes_are_pixels_of_the_picture(server: RunningServer) -> None:
    name = "scene00.png"
    answer = server.post({"documents": [document((SCENES / name).read_bytes())], "return_boxes": True}).json()
    detections = answer["data"][0]["source"]["detections"]
    assert len(detections) == sum(TRUTH[name].values())
    for one in detections:
        x1, y1, x2, y2 = one["box"]
        assert 0 <= x1 < x2 <= 320
        assert 0 <= y1 < y2 <= 320


def test_all_tasks_at_once(server: RunningServer) -> None:
    """Their prompts differ in length, and are decoded together."""
    name = "scene06.png"  # of which the model says something when asked for detections, too
    asked = [
        {"prompt": "OD"},
        {"prompt": "<region_proposal>"},
        {"prompt": "DENSE_REGION_CAPTION"},
        {"prompt": "OPEN_VOCABULARY_DETECTION", "text": "a dog that sits beside three red cars"},
        {"prompt": "CAPTION_TO_PHRASE_GROUNDING", "text": "dogs"},
    ]
    content = document((SCENES / name).read_bytes())
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda one: server.post({"documents": [content], **one}).json(), asked * 4))
    assert [answer["list_id_not_treated"] for answer in answers] == [[]] * 20
    assert [answer["data"] for answer in answers] == [answer["data"] for answer in answers[:5]] * 4
    (counts,), (proposals,) = (answers[place]["data"] for place in (0, 1))
    assert counts["source"]["content"] == [{label: TRUTH[name][label]} for label in sorted(TRUTH[name])]
    assert [list(one) for one in proposals["source"]["content"]] == [["region"]]
    long = server.post({"documents": [content], "prompt": "OPEN_VOCABULARY_DETECTION", "text": "a cat " * 300}).json()
    assert "too long" in str(long["list_id_not_treated"])


@pytest.mark.parametrize("prompt", ["OPEN_VOCABULARY_DETECTION", "CAPTION_TO_PHRASE_GROUNDING"])
@pytest.mark.parametrize("text", ["person<and>dog<and>cup", "car <and> person", "<and>car", "car<and>", "a<and><and>b"])
def test_several_things_are_asked_for_with_and(server: RunningServer, prompt: str, text: str) -> None:
    """What the bundled model, which has never seen the mark, makes of them is not compared."""
    content = document((SCENES / "scene00.png").read_bytes())
    answer = server.post({"documents": [content], "prompt": prompt, "text": text}).json()
    assert answer["list_id_not_treated"] == []
    assert answer["number_documents_treated"] == 1
    refused = server.post({"documents": [content], "prompt": prompt, "text": f"{text}<loc_1>"}).json()
    assert "of those only <and> is accepted" in str(refused["list_id_not_treated"])
    assert "needs text" in server.post({"documents": [content], "prompt": prompt, "text": " <and> "}).json()["error"]


def test_the_printed_command_counts(server: RunningServer) -> None:
    assert shutil.which("curl"), "this test needs curl: apt-get install curl"
    lines = server.log.read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip().startswith("printf"))
    printed = "\n".join(lines[start : start + 2])
    result = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, check=True)
    assert '"content":[{"backpack":5},{"car":4},{"person":3}]' in result.stdout


def test_no_address_is_ever_asked(server: RunningServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        naming = [
            f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}.ts\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile '{url}.mp4'\n",
            f"<svg xmlns='http://www.w3.org/2000/svg'><image href='{url}.png'/></svg>",
            f"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM '{url}'>]><MPD><BaseURL>{url}</BaseURL></MPD>",
            f"v=0\nc=IN IP4 127.0.0.1\nm=video {listener.getsockname()[1]} RTP/AVP 96\n",
        ]
        contents = (url, f"data:text/uri-list,{url}", f"file://{SCENES}/scene00.png", str(SCENES / "scene00.png"))
        documents = [document(text.encode(), id=str(place)) for place, text in enumerate(naming)]
        documents += [{"id": content, "source": {"content": content, "fs": {"uri": url}}} for content in contents]
        answer = server.post({"documents": documents}).json()
        reasons = [next(iter(one.values())) for one in answer["list_id_not_treated"]]
        assert len(reasons) == len(documents)
        assert all(reasons)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_health_and_jobs(server: RunningServer) -> None:
    assert server.get("/test").json() == {"test endpoint is": "OK"}
    assert server.get("/health-check").json() == {"message": "OK"}
    server.post({"documents": [document((SCENES / "scene00.png").read_bytes())]})
    jobs = server.get("/work/status").json()
    uid, newest = next(iter(jobs.items()))
    assert newest["uid"] == uid
    assert (newest["type_job"], newest["status"]) == ("process", "done")
    assert (newest["documents"], newest["documents_done"]) == (1, 1)
    assert server.get(f"/work/status?id={uid}").json() == {uid: newest}
    assert server.get("/work/status?id=unknown").status_code == 404


def test_idle_memory(server: RunningServer) -> None:
    parent = psutil.Process(server.process.pid)
    processes = [parent, *parent.children(recursive=True)]
    assert len(processes) == 2 + min(os.cpu_count() or 1, 8), "one worker: the model is loaded once; and the decoders"
    assert sum(process.memory_full_info().pss for process in processes) < 450e6


def test_health_answers_while_the_model_works(server: RunningServer) -> None:
    body = {"documents": [document(content) for content in variants((SCENES / "scene00.png").read_bytes(), 200)]}
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(server.post, body)
        time.sleep(0.5)
        assert not work.done()
        assert requests.get(f"{server.url}/health-check", timeout=2).status_code == 200
        assert work.result().json()["number_documents_treated"] == 200


def numbers(server: RunningServer) -> dict[str, float]:
    """What /metrics tells, by name, with the label of what has one."""
    families = text_string_to_metric_families(server.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if "le" not in sample.labels]
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def test_copies_are_answered_from_memory(server: RunningServer) -> None:
    before = numbers(server)
    body = {"documents": [document((SCENES / "scene02.png").read_bytes() + b"copy")] * 5}
    answers = [server.post(body).json()["data"] for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0][0]["source"]["content"] == content_for(TRUTH["scene02.png"])
    told = {name: value - before.get(name, 0) for name, value in numbers(server).items()}
    assert told["florence_result_cache_misses_total"] == 1
    assert told["florence_result_cache_hits_total"] == 9
    assert told["florence_stage_seconds_count encode"] == 1
    assert told["florence_stage_seconds_count decode_step"] > 5
    assert (numbers(server)["florence_ready"], numbers(server)["florence_waiting"]) == (1, 0)
