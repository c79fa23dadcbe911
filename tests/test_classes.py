"""Classes, aliases, suppression and distinct counts through the whole product."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.classes import count_scenes
from florence_tagger import RequestError, SettingsError, Tagger
from florence_tagger.config import SAMPLES
from tests.conftest import ROOT, SCENES, TRUTH, RunningServer, document
from tests.test_video_writer import frames_of
from training.clips import write_video
from training.passing import draw_passing
from training.scenes import Scene

NAME = max(TRUTH, key=lambda name: len(TRUTH[name]))
CONTENT, COUNTS = (SCENES / NAME).read_bytes(), TRUTH[NAME]
SOME = sorted(COUNTS)[:2]
ABSENT = "submarine"
VIDEO = (SAMPLES / "crossing.webm").read_bytes()
ASKED = ("OPEN_VOCABULARY_DETECTION", "CAPTION_TO_PHRASE_GROUNDING")


def source(server: RunningServer, content: bytes = CONTENT, **parameters: Any) -> dict[str, Any]:
    """A document's source as the service answers it."""
    response = server.post({"documents": [document(content)], **parameters})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["data"][0]["source"]
    return found


def test_classes_and_aliases_are_exact_zeros_included() -> None:
    pairs = count_scenes(6)
    assert [ours for ours, _ in pairs] == [right for _, right in pairs]
    assert any(count == 0 for ours, _ in pairs[::2] for count in ours.values())
    assert any(count > 0 for ours, _ in pairs[::2] for count in ours.values())


def test_process_counts_classes_alone_and_all_of_them(server: RunningServer) -> None:
    wanted = [ABSENT, f" {SOME[0].upper()} ", *SOME[1:]]
    counts = dict(zip(wanted, (0, *(COUNTS[one] for one in SOME)), strict=True))
    found = source(server, classes=wanted, num_labels=1, return_boxes=True)
    assert found["content"] == [{name: counts[name]} for name in sorted(wanted)]
    assert Counter(one["label"] for one in found["detections"]) == {name: n for name, n in counts.items() if n}
    probable = source(server, classes=wanted, num_labels=1, output="probabilities")["content"]
    assert {one["label"]: one["probability"] > 0 for one in probable} == {name: n > 0 for name, n in counts.items()}


@pytest.mark.parametrize("task", ASKED)
def test_classes_are_the_text_of_tasks_that_take_one(server: RunningServer, task: str) -> None:
    by_class = source(server, prompt=task, classes=[*SOME, ABSENT], return_boxes=True)
    by_text = source(server, prompt=task, text="<and>".join([*SOME, ABSENT]), return_boxes=True)
    assert [list(one) for one in by_class["content"]] == [[name] for name in sorted([*SOME, ABSENT])]
    assert [one for one in by_class["content"] if 0 not in one.values()] == by_text["content"]
    assert by_class["detections"] == by_text["detections"]


def test_classes_match_the_labels_of_the_other_tasks(server: RunningServer) -> None:
    proposals = source(server, prompt="REGION_PROPOSAL", classes=["regions", "car"])["content"]
    every = sum(count for one in source(server, prompt="REGION_PROPOSAL")["content"] for count in one.values())
    assert proposals == [{"car": 0}, {"regions": every}]
    assert source(server, prompt="DENSE_REGION_CAPTION", classes=[ABSENT])["content"] == [{ABSENT: 0}]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"classes": []}, "classes is []; accepted is a list of 1 to 100 texts of at most 100 characters."),
        ({"classes": "car"}, "accepted is a list of 1 to 100 texts"),
        ({"classes": ["car", 5]}, "accepted is a list of 1 to 100 texts"),
        ({"classes": ["car", " "]}, "accepted is a list of 1 to 100 texts"),
        ({"classes": ["x"] * 101}, "accepted is a list of 1 to 100 texts"),
        ({"classes": ["\ud800"]}, "accepted is a list of 1 to 100 texts"),
        ({"classes": ["car", "Cars"]}, "'car' and 'Cars', which are one thing"),
        ({"classes": ["car"], "text": "car", "prompt": ASKED[0]}, "takes text or classes, not both"),
        ({"classes": ["x" * 90 + str(n) for n in range(30)], "prompt": ASKED[1]}, "2000 are accepted"),
        ({"prompt": ASKED[1]}, "or classes"),
        ({"merge_iou": 1.5}, "merge_iou is 1.5; accepted is a number from 0 to 1."),
        ({"merge_iou": True}, "merge_iou is true"),
        ({"video_count": "all"}, 'video_count is "all"; accepted is peak or distinct.'),
        ({"video_count": 1}, "accepted is peak or distinct."),
    ],
)
def test_process_says_what_is_accepted(server: RunningServer, parameters: dict[str, Any], reason: str) -> None:
    response = server.post({"documents": [document(CONTENT)], **parameters})
    assert response.status_code == 400
    assert reason in response.json()["error"]


@pytest.mark.parametrize("nothing", [{"classes": None}, {"classes": ""}, {"merge_iou": ""}, {"video_count": None}])
def test_what_stands_for_a_default_changes_nothing(server: RunningServer, nothing: dict[str, Any]) -> None:
    assert source(server, num_labels=0, **nothing)["content"] == [{one: COUNTS[one]} for one in sorted(COUNTS)]


def test_merge_iou_keeps_the_strongest_of_boxes_that_overlap(server: RunningServer) -> None:
    every = source(server, return_boxes=True)["detections"]
    one = source(server, merge_iou="1e-9", return_boxes=True)["detections"]
    assert 0 < len(one) <= len(every)
    assert max(every, key=lambda found: found["score"]) in one
    assert source(server, merge_iou=1, return_boxes=True)["detections"] == every


def test_distinct_numbers_what_it_counts(server: RunningServer) -> None:
    found = source(server, VIDEO, video_count="distinct", num_labels=0, return_boxes=True)
    tracks = {one["track"]: one["label"] for one in found["detections"] if "track" in one}
    assert tracks
    told = re.search(r"^florence_tracks_total (\S+)", server.get("/metrics").text, re.MULTILINE)
    assert told
    assert float(told[1]) >= len(tracks)
    assert sorted(tracks) == list(range(1, len(tracks) + 1))
    assert found["content"] == [{label: n} for label, n in sorted(Counter(tracks.values()).items())]
    assert not any("track" in one for one in source(server, VIDEO, return_boxes=True)["detections"])
    assert source(server, video_count="distinct")["content"] == source(server)["content"], "a picture is as it was"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Three seconds in which things pass, and how many."""
    drawn = draw_passing(np.random.default_rng(9), 24, 8, objects=(4, 6))
    path = tmp_path_factory.mktemp("clip") / "passing.mp4"
    write_video(path, [Scene(pixels, ()) for pixels in drawn.frames], 8)
    return path, dict(sorted(drawn.counts.items()))


def test_distinct_counts_what_passes(clip: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    path, counts = clip
    options = ["count", str(path), "--json", "--video-count", "distinct", "--annotate", str(tmp_path / "drawn")]
    environment = {"FLORENCE_VIDEO_FPS": "8", "FLORENCE_DECODER_PROCESSES": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "florence_tagger", *options], env=environment, cwd=ROOT, capture_output=True, check=True
    )
    assert json.loads(run.stdout)[0]["content"] == [{label: n} for label, n in counts.items()]
    (drawn,) = (tmp_path / "drawn").rglob("*.*")
    assert drawn.name == "passing.mp4.webm"
    assert len(frames_of(drawn)[0]) == 24, "all frames"
    with Tagger.load(video_fps=8, decoder_processes=1) as tagger:
        assert tagger.count(path, video_count="distinct") == counts
        some = next(iter(counts))
        assert tagger.count(path, classes=[some, ABSENT], video_count="distinct") == {some: counts[some], ABSENT: 0}
        with pytest.raises(RequestError, match="one thing"):
            tagger.count(path, classes=["car", "cars"])


@pytest.mark.parametrize("there", [False, True])
def test_count_takes_classes_here_and_of_a_service(server: RunningServer, there: bool) -> None:
    options = ["--csv", "--classes", f"{ABSENT}, {SOME[0]}s", "--merge-iou", "0.9", "--num-labels", "1"]
    options += ["--server", server.url] if there else []
    command = [sys.executable, "-m", "florence_tagger", "count", str(SCENES / NAME), *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [row.split(",")[1:3] for row in run.stdout.splitlines()[1:]]
    assert rows == sorted([[ABSENT, "0"], [f"{SOME[0]}s", str(COUNTS[SOME[0]])]])


@pytest.mark.parametrize("options", [["--classes", "car,,dog"], ["--classes", "car,cars"], ["--classes", ""]])
def test_count_refuses_classes_that_are_none(options: list[str]) -> None:
    command = [sys.executable, "-m", "florence_tagger", "count", str(SCENES / NAME), *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "Error: classes has" in run.stderr


def test_a_file_of_aliases_that_is_wrong_is_an_error_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "aliases.json"
    path.write_text('{"car": ["suv"], "truck": ["suv"]}')
    command = [sys.executable, "-m", "florence_tagger", "serve", "--port", "1", "--aliases", str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert f"Error: FLORENCE_ALIASES={path}: it maps 'suv' twice, to 'car' and to 'truck'." in run.stderr
    with pytest.raises(SettingsError, match="twice"):
        Tagger.load(aliases=path)
