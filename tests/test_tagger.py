"""The Python API: the same counts as the service's, from many threads, and nothing left behind."""

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import florence_tagger
from florence_tagger import Tagger
from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.errors import DocumentError, ModelError, NotReadyError, RequestError, SettingsError
from tests.conftest import ROOT, SCENES, TRUTH, variants, wait_for

SCENE = SCENES / "scene00.png"
COUNTS = dict(sorted(TRUTH["scene00.png"].items()))


def children() -> int:
    return len([one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE])


def test_files_are_counted_from_threads() -> None:
    files = [SCENES / name for name in TRUTH] * 4
    contents = [variants(path.read_bytes(), index + 1)[index] for index, path in enumerate(files)]
    # fewer places than threads: the others wait
    with Tagger.load(DEFAULT_MODEL, queue_size=16) as tagger, ThreadPoolExecutor(16) as pool:
        counted = list(pool.map(lambda content: tagger.count(content, num_labels=0), contents))
    assert counted == [TRUTH[path.name] for path in files]


@pytest.mark.parametrize("task", ["OPEN_VOCABULARY_DETECTION", "CAPTION_TO_PHRASE_GROUNDING"])
def test_what_is_asked_for_is_counted_and_nothing_else(task: str) -> None:
    """The bundled model was trained for this; of what is not there it finds nothing."""
    with Tagger.load(decoder_processes=1) as tagger:
        for name, truth in TRUTH.items():
            for label in (*truth, "clock"):
                expected = {label: truth[label]} if label in truth else {}
                assert tagger.count(SCENES / name, prompt=task, text=label, num_labels=0) == expected


def test_it_counts_tells_what_is_wrong_and_ends_what_it_began(tmp_path: Path) -> None:
    before, threads = children(), set(threading.enumerate())
    tagger = Tagger.load(str(DEFAULT_MODEL), decoder_processes=1)
    assert list(tagger.count(str(SCENE)).items()) == list(COUNTS.items())
    assert len(tagger.count(SCENE, num_labels=1)) == 1
    assert len(tagger.count(ROOT / "florence_tagger" / "web" / "samples" / "picnic.jpg")) == 7, "all, by default"
    assert tagger.count(SCENE, min_score=1) == {}
    (frame_result,) = tagger.detect(SCENE).frames
    assert len(frame_result.detections) == sum(COUNTS.values())
    with pytest.raises(DocumentError, match=r"The file can't be read: No such file or directory\."):
        tagger.count(tmp_path / "none.png")
    with pytest.raises(DocumentError, match=r"The file can't be read: its name has a null character\."):
        tagger.count("\0")
    with pytest.raises(DocumentError, match=r"The file can't be read: Is a directory\."):
        tagger.count(tmp_path)
    with pytest.raises(DocumentError, match=r"The file is empty\."):
        tagger.count(b"")
    with pytest.raises(RequestError, match="There is no task CAPTION; accepted are OD, "):
        tagger.count(SCENE, prompt="CAPTION")
    with pytest.raises(RequestError, match="needs text"):
        tagger.count(SCENE, prompt="<open_vocabulary_detection>")
    with pytest.raises(RequestError, match="text has 3000 characters"):
        tagger.count(SCENE, prompt="OPEN_VOCABULARY_DETECTION", text="x" * 3000)
    with pytest.raises(RequestError, match="num_labels is -1"):
        tagger.count(SCENE, num_labels=-1)
    for wrong in ({"num_labels": "3"}, {"num_labels": 2.5}, {"min_score": "high"}):
        with pytest.raises(RequestError, match=f"{next(iter(wrong))} is "):
            tagger.count(SCENE, **wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="min_score is nan"):
        tagger.count(SCENE, min_score=float("nan"))
    tagger.close()
    tagger.close()
    with pytest.raises(NotReadyError, match=r"The tagger is closed\."):
        tagger.count(SCENE)
    assert wait_for(lambda: children() == before)
    assert wait_for(lambda: set(threading.enumerate()) <= threads)


def test_no_more_is_read_of_a_file_than_is_accepted() -> None:
    with Tagger.load(max_document_mb=0.001, decoder_processes=1) as tagger:
        for file in ("/dev/zero", SCENE, SCENE.read_bytes()):
            with pytest.raises(DocumentError, match=r"larger than 0\.001 MB"):
                tagger.count(file)


def test_what_is_forgotten_is_closed() -> None:
    before = children()
    assert Tagger.load(decoder_processes=1).count(SCENE) == COUNTS
    gc.collect()
    assert wait_for(lambda: children() == before)


def test_a_load_that_fails_leaves_nothing() -> None:
    before = children()
    with pytest.raises(ModelError, match="There is no model folder"):
        Tagger.load("/nowhere")
    with pytest.raises(ModelError, match=r"Device NPU\.7 is not there"):
        Tagger.load(device="NPU.7")
    with pytest.raises(SettingsError, match="there is no such setting"):
        Tagger.load(beams=1)
    assert wait_for(lambda: children() == before)


def test_a_close_ends_what_others_wait_for() -> None:
    tagger = Tagger.load(num_beams=8, decoder_processes=1)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(tagger.count, content) for content in variants(SCENE.read_bytes(), 60)]
        assert waiting[0].result() == COUNTS
        tagger.close()
        ended = [one.exception() for one in waiting]
    assert {type(one) for one in ended} == {type(None), NotReadyError}


def test_a_program_of_three_lines_ends() -> None:
    code = f"from florence_tagger import Tagger\nprint(Tagger.load().count({str(SCENE)!r}))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.stdout, result.stderr, result.returncode) == (f"{COUNTS}\n", "", 0)


def test_what_is_exported_is_there_and_nothing_else() -> None:
    assert florence_tagger.DocumentError is DocumentError
    for name in florence_tagger.__all__:
        assert getattr(florence_tagger, name) is not None
    assert set(florence_tagger.__all__) <= set(dir(florence_tagger))
    with pytest.raises(AttributeError, match="has no attribute 'Taggers'"):
        _ = florence_tagger.Taggers  # type: ignore[attr-defined]
