"""Tiles through all stages: cut in the decoder process, processed as frames of one document, counted once.

The picture shows four of the scenes side by side, with known counts; their objects are too small without tiles.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from florence_tagger import Tagger
from florence_tagger.cli import main
from florence_tagger.config import load_settings
from florence_tagger.context import RequestContext
from florence_tagger.errors import RequestError, SettingsError
from florence_tagger.media.limits import DecodeOptions, SandboxLimits
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.pipeline import within_budget
from florence_tagger.schemas import AUTO, Frame, Task, Tiles
from tests.conftest import SCENES, TRUTH, FakeModel, RunningServer, content_for, document
from tests.test_metrics import numbers
from tests.test_web import application

INPUT_SIZE = (224, 224)
FRAMES = 12  # of a video
SHOWN = tuple(TRUTH)[8:12]
COUNTS = dict(sum((Counter(TRUTH[name]) for name in SHOWN), Counter()))


def crowd() -> Image.Image:
    """Return the four scenes in a picture of 768 x 768 pixels."""
    picture = Image.new("RGB", (768, 768))
    for index, name in enumerate(SHOWN):
        picture.paste(Image.open(SCENES / name).convert("RGB").resize((384, 384)), (index % 2 * 384, index // 2 * 384))
    return picture


def encode(picture: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def animation(*pictures: Image.Image) -> bytes:
    """Return an animation that FFmpeg decodes, one second for each picture."""
    return encode(pictures[0], "PNG", save_all=True, append_images=pictures[1:], duration=1000)


CROWD = encode(crowd())
PAGES = encode(crowd(), "TIFF", save_all=True, append_images=[Image.open(SCENES / SHOWN[3])])


@pytest.fixture(scope="module")
def tagger() -> Iterator[Tagger]:
    with Tagger.load(decoder_processes=1, video_max_frames=FRAMES) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    pool = decoders_of(INPUT_SIZE)
    yield pool
    pool.close()


def decoders_of(image_size: tuple[int, int], memory_bytes: int = 600_000_000) -> DecoderPool:
    return DecoderPool(1, SandboxLimits(DecodeOptions(image_size, 10**8, reduced=True), memory_bytes, 60))


def frames(pool: DecoderPool, content: bytes, *tiles: int, **sampling: Any) -> list[Frame]:
    return list(pool.frames(content, Sampling(**sampling), RequestContext.within(60), tiles=tiles))


def test_tiles_are_cut_from_the_full_resolution(decoders: DecoderPool) -> None:
    full, *tiles = frames(decoders, CROWD, 2)
    assert (full.tile, full.width, full.height) == (None, 768, 768)
    assert [frame.tile for frame in tiles] == [(x, y, x + 439, y + 439) for y in (0, 329) for x in (0, 329)]
    for frame in tiles:
        assert (frame.width, frame.height) == (768, 768)
        expected = crowd().crop(frame.tile).resize(INPUT_SIZE[::-1], Image.Resampling.BICUBIC)  # type: ignore[arg-type]
        np.testing.assert_array_equal(frame.pixels, np.asarray(expected))


def test_a_picture_that_is_not_larger_than_the_input_has_no_tiles(decoders: DecoderPool) -> None:
    assert len(frames(decoders, encode(crowd().resize((224, 200))), 6)) == 1


def test_each_page_and_frame_has_its_tiles(decoders: DecoderPool) -> None:
    pages = frames(decoders, PAGES, 1, 2)
    assert [(frame.page, frame.tile is not None) for frame in pages] == [(1, False), (2, False), *[(2, True)] * 4]
    animated = frames(decoders, animation(crowd(), crowd().rotate(90)), 2)
    assert [frame.tile is None for frame in animated] == [True, *[False] * 4] * 2


def test_repeated_frames_are_not_tiled_again(decoders: DecoderPool) -> None:
    pictures = [crowd() for _ in range(3)]
    for index, picture in enumerate(pictures):
        picture.putpixel((index, 0), (255, 0, 0))  # otherwise Pillow saves only one of them
    first, *others = frames(decoders, animation(*pictures), 2)
    assert (first.repeats, [frame.tile is None for frame in others]) == (False, [False] * 4 + [True] * 2)
    assert [frame.repeats for frame in others] == [False] * 4 + [True] * 2


def test_a_large_jpeg_is_reduced_no_further_than_its_tiles_allow(decoders: DecoderPool) -> None:
    """Lines of one pixel disappear at half the scale."""
    lines = np.zeros((2000, 2000, 3), np.uint8)
    lines[:, ::2] = 255
    content = encode(Image.fromarray(lines), "JPEG", quality=100, subsampling=0, exif=rotated_exif())
    *_, tile = frames(decoders, content, 6)
    assert (tile.width, tile.height) == (2000, 2000)
    assert tile.tile == pytest.approx((1578, 1578, 2000, 2000), abs=4)
    full, *_ = frames(decoders, content, 1)
    assert np.ptp(full.pixels.astype(int)) < 40


def rotated_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_100_megapixels_are_tiled_within_the_memory_of_a_decoder() -> None:
    """Use the input size of Florence-2, which allows no reduction; two copies would take 800 MB."""
    row = Image.linear_gradient("L").resize((10_000, 100)).convert("RGB")
    huge = Image.new("RGB", (10_000, 10_000))
    for top in range(0, 10_000, 100):
        huge.paste(row, (0, top))
    content = encode(huge, "JPEG")
    del huge
    pool = decoders_of((768, 768))
    try:
        tiles = [frame.tile for frame in frames(pool, content, 6)]
    finally:
        pool.close()
    assert len(tiles) == 37


@pytest.mark.parametrize("tiles", [2, 3, AUTO])
def test_a_crowd_is_counted_in_tiles(tagger: Tagger, tiles: Tiles) -> None:
    assert tagger.count(CROWD, tiles=1) != COUNTS
    assert tagger.count(CROWD, tiles=tiles) == dict(sorted(COUNTS.items()))
    (frame_result,) = tagger.detect(CROWD, tiles=tiles).frames
    assert len(frame_result.tiles) == (4 if tiles == AUTO else tiles**2)
    boxes = [detection.box for detection in frame_result.detections]
    assert max(box[2] for box in boxes) > 384 > 220 > min(box[0] for box in boxes), "in pixels of the picture"
    assert all(0 <= x1 < x2 <= 768 and 0 <= y1 < y2 <= 768 for x1, y1, x2, y2 in boxes)


@pytest.mark.parametrize("tiles", [2, AUTO])
def test_pages_are_summed(tagger: Tagger, tiles: Tiles) -> None:
    both = Counter(COUNTS) + Counter(TRUTH[SHOWN[3]])
    assert Counter(tagger.count(PAGES, tiles=tiles)) == both


def test_tiles_of_a_video_stay_within_its_budget(tagger: Tagger) -> None:
    content = animation(*(crowd().rotate(angle) for angle in (0, 180, 90, 270, 0, 180)))
    for tiles, num_times in ((2, 2), (AUTO, 6)):
        result = tagger.detect(content, tiles=tiles)
        assert len(result.frames) == num_times
        assert 0 < sum(len(frame_result.tiles) for frame_result in result.frames) <= FRAMES - num_times
    assert within_budget(Sampling(), 1) == Sampling()
    assert [within_budget(Sampling(), side).max_frames for side in (2, 3, 6, AUTO)] == [6, 3, 1, 16]


@pytest.mark.parametrize("task", Task)
def test_every_task_accepts_tiles(tagger: Tagger, task: Task) -> None:
    text = "dog" if task.takes_text else ""
    (frame_result,) = tagger.detect(CROWD, task, text, tiles=2).frames
    labels = Counter(detection.label for detection in frame_result.detections)
    assert len(frame_result.tiles) == 4
    if task.takes_text:
        assert labels == {"dog": COUNTS["dog"]}
    if task is Task.REGION_PROPOSAL:
        assert not labels, "the bundled model was not trained for it"


@pytest.mark.parametrize("tiles", [0, 7, -1, True, 2.0, "3", "Auto"])
def test_other_values_of_tiles_are_rejected(tagger: Tagger, tiles: Any) -> None:
    with pytest.raises(RequestError, match=r"tiles is .*; accepted is an integer from 1 to 6 or auto\."):
        tagger.count(CROWD, tiles=tiles)


def test_the_service_counts_in_tiles_and_reports_them(server: RunningServer) -> None:
    body = {"documents": [document(CROWD)], "num_labels": 0, "return_boxes": True, "tiles": "2"}
    (processed,) = server.post(body).json()["data"]
    assert processed["source"]["content"] == content_for(COUNTS)
    (frame,) = processed["source"]["frames"]
    assert frame == {"frame": 0, "tiles": [[x, y, x + 439, y + 439] for y in (0, 329) for x in (0, 329)]}
    del body["tiles"]  # the same file without tiles
    (plain,) = server.post(body).json()["data"]
    assert plain["source"]["frames"] == [{"frame": 0}]
    assert plain["source"]["content"] != content_for(COUNTS)


def test_tiles_of_a_request_are_checked(fake_model: FakeModel) -> None:
    app, scheduler = application(fake_model)
    client = app.test_client()
    for value in (1, 6, "3", " 2 ", 2.0, "auto", "", None):
        assert client.post("/process", json={"documents": [], "tiles": value}).status_code == 200
    for value in (0, 7, -1, 1.5, True, "x", "AUTO", [2], {"side": 2}, "9" * 30):
        response = client.post("/process", json={"documents": [], "tiles": value})
        assert response.status_code == 400
        assert "accepted is an integer from 1 to 6 or auto." in response.json["error"]
    scheduler.close()


def test_the_setting_is_the_default_and_tiles_are_counted(fake_model: FakeModel) -> None:
    app, scheduler = application(fake_model, tiles=2, result_cache=8)
    client = app.test_client()
    assert (
        client.get("/openapi.json").json["components"]["schemas"]["Process_Request"]["properties"]["tiles"]["default"]
        == 2
    )
    for tiles, total in ((None, 4), (3, 13), (1, 13), (2, 13)):  # the last is cached
        client.post("/process", json={"documents": [document(CROWD)], "tiles": tiles})
        assert numbers(client)["florence_tiles_total"] == total
    scheduler.close()


def test_the_setting_is_checked() -> None:
    assert [load_settings({"tiles": value}).tiles for value in (1, "6", "auto")] == [1, 6, "auto"]
    for value in (0, "7", "all"):
        with pytest.raises(SettingsError) as raised:
            load_settings({"tiles": value})
        assert str(raised.value) == f"FLORENCE_TILES={value}: accepted is an integer from 1 to 6 or auto"


def test_a_failed_tile_fails_only_its_document(fake_model: FakeModel) -> None:
    app, scheduler = application(fake_model)
    fake_model.error = RuntimeError("out of order")
    answer = app.test_client().post("/process", json={"documents": [document(CROWD)], "tiles": 3}).json
    assert (answer["number_documents_treated"], answer["number_documents_non_treated"]) == (0, 1)
    scheduler.close()


def test_the_command_counts_and_draws_in_tiles(tmp_path: Path) -> None:
    (tmp_path / "crowd.png").write_bytes(CROWD)
    drawn = tmp_path / "drawn"
    options = ["count", str(tmp_path / "crowd.png"), "--json", "--tiles", "2", "--annotate", str(drawn)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    (counted,) = json.loads(result.stdout)
    assert counted["content"] == content_for(COUNTS)
    (picture,) = drawn.rglob("*.png")
    assert np.asarray(Image.open(picture))[329, 5].tolist() == [128, 128, 128], "the edge of a tile"
    assert CliRunner().invoke(main, [*options[:3], "--tiles", "7"]).exit_code == 2
