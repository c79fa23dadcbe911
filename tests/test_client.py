"""The client of a service counts and detects as a tagger does, and reports the same reasons."""

from collections.abc import Iterator
from typing import Any

import pytest

from florence_tagger import Client, DocumentError, RequestError, SettingsError, Tagger
from florence_tagger.config import SAMPLES
from florence_tagger.object_counter import ObjectCounter
from tests.conftest import SCENES, RunningServer

STREET, CROSSING = SAMPLES / "street.png", SAMPLES / "crossing.webm"
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_labels": 1},
    {"classes": ["car", "elephant"]},
    {"min_score": 0.97, "tiles": 2},
    {"prompt": "OPEN_VOCABULARY_DETECTION", "text": "car"},
]


@pytest.fixture(scope="module")
def tagger() -> Iterator[Tagger]:
    with Tagger.load() as tagger:
        yield tagger


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_client_same_options_counts_like_the_tagger(
    tagger: Tagger, server: RunningServer, options: dict[str, Any]
) -> None:
    assert server.client.count(STREET, **options) == tagger.count(STREET, **options)


def test_client_distinct_video_has_the_taggers_tracks(tagger: Tagger, server: RunningServer) -> None:
    there, here = (one.detect(CROSSING, video_count="distinct") for one in counters(tagger, server))
    assert [[detection.track for detection in frame.detections] for frame in there.frames] == [
        [detection.track for detection in frame.detections] for frame in here.frames
    ]
    assert here.tracks == there.tracks > 0


def test_client_refused_files_and_options_have_the_taggers_reasons(tagger: Tagger, server: RunningServer) -> None:
    reasons = []
    for one in counters(tagger, server):
        with pytest.raises(DocumentError) as refused:
            one.count(SCENES / "truth.json")
        with pytest.raises(RequestError, match="merge_iou is 2"):
            one.count(STREET, merge_iou=2)
        reasons.append(str(refused.value))
    assert reasons[0] == reasons[1]


def counters(tagger: Tagger, server: RunningServer) -> tuple[ObjectCounter, ObjectCounter]:
    return server.client, tagger


@pytest.mark.parametrize("url", ["localhost:5011", "ftp://localhost", "http://", "http://localhost:0", "http://a/?b"])
def test_client_url_of_no_service_is_a_settings_error(url: str) -> None:
    with pytest.raises(SettingsError, match="is no URL of a service"):
        Client(url)
