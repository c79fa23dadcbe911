"""Videos with what was found in them drawn on: real files in, real files out, which PyAV reads again."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from florence_tagger.cli import main
from florence_tagger.count.annotations import OTHER_FRAMES, Annotator, counts_in_words, edges_of
from florence_tagger.errors import DocumentError
from florence_tagger.media.drawing import colours_of, draw_counts
from florence_tagger.media.limits import OWN_SIZE, DecodeOptions
from florence_tagger.media.sampling import Sampling
from florence_tagger.schemas import Detection, DocumentResult, FrameResult, Rules, VideoCount
from tests.conftest import SCENES, TRUTH, content_for
from tests.test_video_writer import frames_of, is_near
from tests.variants import PARK, QUEUE, SIDE, YARD
from tests.videos import PEAK, animation, video

ROW = 16.8  # pixels, of the height of a count
TIMES = (0.0, 0.5, 2.0, 2.3)  # s, of a video whose frames lie unevenly
LUMA = (0.2126, 0.7152, 0.0722)  # of red, green and blue (ITU-R BT.709)
DISTINCT = Rules(video_count=VideoCount.DISTINCT)


def annotator(rules: Rules = DISTINCT, fps: float = 10) -> Annotator:
    return Annotator(DecodeOptions(OWN_SIZE, 10_000_000), Sampling(fps=fps), rules)


def box_at(index: int) -> tuple[float, float, float, float]:
    """Where the one thing of the frame `index` is, which moves to the right; its lines fill pairs of pixels."""
    return 60 + 30 * index, 100, 121 + 30 * index, 181


def found_at(times: Sequence[float]) -> DocumentResult:
    """A car that moves, and in the last frame a bench; a tile's edge in each."""
    cars = [Detection("car", box_at(index), 0.9, 1) for index in range(len(times))]
    detections = [(car,) for car in cars[:-1]] + [(cars[-1], Detection("bench", (4, 190, 40, 220), 0.8, 2))]
    return DocumentResult(
        tuple(
            FrameResult(found, time_s=time, width=SIDE, height=SIDE, tiles=((30, 96, 200, 215),))
            for found, time in zip(detections, times, strict=True)
        )
    )


def rgb(colour: str) -> list[int]:
    return list(bytes.fromhex(colour[1:]))


def test_a_video_shows_each_frame_with_its_boxes_until_the_next(tmp_path: Path) -> None:
    scenes = (YARD, QUEUE, PARK, YARD)
    content = video("matroska", "libx264", times=TIMES, scenes=scenes)
    annotator().annotate(tmp_path / "a" / "b.mkv.png", content, found_at(TIMES), ["bench", "car"])
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["b.mkv.webm"]
    times, frames, seconds = frames_of(tmp_path / "a" / "b.mkv.webm")
    assert times == pytest.approx(TIMES)
    assert seconds == pytest.approx(2.6), "the last one is shown as long as the one before"
    colours = colours_of(["bench", "car"])
    assert colours["car"] != colours_of(["car"])["car"], "all labels of the video have a say in the colours"
    for index, (frame, scene) in enumerate(zip(frames, scenes, strict=True)):
        assert frame.shape == (SIDE, SIDE, 3)
        x1, _, x2, _ = (int(side) for side in box_at(index))
        assert all(is_near(frame[140:170, x].mean(axis=0), rgb(colours["car"])) for x in (x1, x2)), "sides of the box"
        assert is_near(frame[180, x1 + 10 : x2 - 10].mean(axis=0), rgb(colours["car"])), "and its bottom"
        edge = frame[120:170, 30].mean(axis=0) @ LUMA
        assert edge == pytest.approx(128, abs=8), (
            "the edge of a tile, one pixel wide: of its grey the lightness is left"
        )
        assert edge != pytest.approx(frame[120:170, 27].mean(axis=0) @ LUMA, abs=8)
        assert all(
            is_near(frame[int(row), 2], rgb(colours[label]))
            for row, label in ((ROW * 0.5, "bench"), (ROW * 1.5, "car"))
        ), "counts"
        is_there = is_near(frame[195:215, 4].mean(axis=0), rgb(colours["bench"]))
        assert is_there == (index == 3), "the bench is in the last frame alone"
        rest = frame[50:80, 150:220].astype(int) - scene.pixels[50:80, 150:220]
        assert np.abs(rest).mean() < 6, "all else is the frame's own"


def test_counts_are_those_of_the_frame_and_of_the_video_until_then() -> None:
    frame_results = [
        FrameResult(tuple(Detection("car", (0, 0, 1, 1), 1.0, track) for track in tracks), time_s=float(time))
        for time, tracks in enumerate(((1, 2), (3,), (None,)))
    ]
    distinct = counts_in_words(frame_results, DISTINCT, ["car"])
    assert [line["car"] for line in distinct] == ["car: 2, 2 so far", "car: 1, 3 so far", "car: 0, 3 so far"]
    peak = counts_in_words(frame_results, Rules(classes=("bus", "car")), ["bus", "car"])
    assert [tuple(line.values()) for line in peak] == [("bus: 0, max 0", f"car: {n}, max 2") for n in (2, 1, 1)]


def test_the_last_frame_is_shown_as_long_as_the_one_before() -> None:
    assert edges_of([3.0]) == [3.0, 4.0]
    assert edges_of([0.0, 2.0, 2.5]) == [0.0, 2.0, 2.5, 3.0]


def test_counts_take_half_of_the_height_at_most() -> None:
    labels = [f"thing {index}" for index in range(100)]
    picture = Image.new("RGB", (300, 200), "white")
    draw_counts(picture, {label: f"{label}: 1" for label in labels}, colours_of(labels))
    column = np.asarray(picture)[:, 1]
    assert (column[:80] != 255).any(axis=1).mean() > 0.9
    assert (column[100:] == 255).all()


@pytest.mark.parametrize(
    ("content", "times", "reason"),
    [
        (b"", TIMES, "is not a picture or video"),
        (video("matroska", "libx264", times=TIMES, scenes=(YARD, QUEUE, PARK, YARD))[:2000], TIMES, "The video"),
        (video("matroska", "libx264", times=TIMES[:3]), TIMES, OTHER_FRAMES),
        (video("matroska", "libx264", times=TIMES[:3]), (0.0, 1.0, 2.0), OTHER_FRAMES),
    ],
    ids=["no file", "damaged", "fewer frames", "other frames"],
)
def test_what_can_not_be_drawn_on_has_a_reason_and_leaves_nothing(
    tmp_path: Path, content: bytes, times: Sequence[float], reason: str
) -> None:
    with pytest.raises(DocumentError, match=reason):
        annotator().annotate(tmp_path / "a.mkv.png", content, found_at(times), ["car"])
    assert not list(tmp_path.iterdir())


def test_the_command_draws_videos_as_videos_and_pictures_as_pictures(tmp_path: Path) -> None:
    files, drawn = tmp_path / "files", tmp_path / "drawn"
    files.mkdir()
    clip, slides = video("mp4", "libx264"), animation("GIF", duration=1700)
    picture = (SCENES / "scene00.png").read_bytes()
    contents = {"a.mp4": clip, "broken.mp4": clip[:500]}
    for name, content in (contents | {"slides.gif": slides, "z.png": picture}).items():
        (files / name).write_bytes(content)
    place = drawn / files.relative_to("/")
    result = CliRunner().invoke(main, ["count", str(files), "--annotate", str(drawn), "--json"])
    assert result.exit_code == 1, result.output
    counted = {Path(one["file"]).name: one["content"] for one in json.loads(result.stdout)}
    assert counted["a.mp4"] == content_for(PEAK)
    assert counted["z.png"] == content_for(TRUTH["scene00.png"])
    assert "1 of 4 files could not be counted." in result.stderr
    assert sorted(one.name for one in place.iterdir()) == ["a.mp4.webm", "slides.gif.webm", "z.png.png"]
    times, frames, seconds = frames_of(place / "a.mp4.webm")
    assert (times, seconds) == ([0.0, 1.0, 2.0], 3.0)
    colours = colours_of(PEAK)
    rows = {label: int(ROW * (0.5 + index)) for index, label in enumerate(PEAK)}
    assert all(is_near(frame[row, 1], rgb(colours[label])) for frame in frames for label, row in rows.items())
    times, *_ = frames_of(place / "slides.gif.webm")
    assert times == pytest.approx([0, 1.7, 3.4])
    with Image.open(io.BytesIO((place / "z.png.png").read_bytes())) as image:
        assert image.format == "PNG"
