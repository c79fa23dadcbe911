"""Which frames of a video are looked at, which of them by the model, and what they add up to."""

import io
import itertools
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from florence_tagger.counting import count_document
from florence_tagger.documents import Part, gather
from florence_tagger.media.frames import open_frames
from florence_tagger.media.limits import DecodeOptions
from florence_tagger.media.sampling import SampledFrames, Sampling
from florence_tagger.media.similarity import block_means, near_identical
from florence_tagger.pipeline import Pipeline
from florence_tagger.schemas import Detection, DocumentResult, Frame, FrameResult
from florence_tagger.telemetry import Stage
from tests.conftest import Heard, counted
from tests.pictures import pages
from tests.variants import PLAIN, SIDE, STREET, YARD, Scene, picture, saved
from tests.videos import PEAK, RATE, animation, joined, video
from training.batches import model_input
from training.grounds import draw_ground
from training.scenes import LABELS, World, draw_scene, draw_shape, load_sprites, paste

SIZE = (224, 224)


def sampled(content: bytes, **sampling: Any) -> list[Frame]:
    return list(open_frames(io.BytesIO(content), DecodeOptions(SIZE, 10**8), Sampling(**sampling)))


@pytest.mark.parametrize(
    ("times", "sampling", "places", "closing"),
    [
        ([0.0], {}, [0], False),
        ([0.0, 0.5, 1.0, 1.5, 2.0], {}, [0, 2, 4], False),
        ([5.0, 5.5, 6.0, 6.5], {}, [0, 1, 2, 3], False),
        ([0.0, 0.4, 0.8, 3.0], {}, [0, 2, 3], False),  # what is shown at 1 and at 2 is the frame of 0.8
        ([0.0, 0.4, 0.8, 2.5], {}, [0, 2, 3], True),  # no moment shows the last, however long it stays
        ([0.0, 2.5], {}, [0, 1], True),
        ([index / 10 for index in range(100)], {"max_frames": 4}, [0, 33, 66, 99], False),
        ([index / 10 for index in range(100)], {"max_frames": 1}, [0], False),
        ([index / 10 for index in range(100)], {"max_frames": 10}, [11 * index for index in range(10)], False),
        ([index / 10 for index in range(100)], {"max_frames": 11}, [*range(0, 100, 10), 99], True),
        ([index / 10 for index in range(100)], {"fps": 0.25}, [0, 40, 80, 99], True),
        ([index / 10 for index in range(100)], {"max_seconds": 2}, [0, 10, 20], False),
        ([index / 10 for index in range(100)], {"max_seconds": 2.5}, [0, 10, 20, 25], True),
        ([0.0, 0.0, 0.0], {}, [2], False),
        ([0.0, 1e9], {"max_frames": 3}, [0], False),
        ([0.0, 1e9], {"max_frames": 3, "max_seconds": 1e9}, [0, 1], False),
        ([0.0, 1e12], {"fps": 1000, "max_seconds": 1e13}, [0, 1], False),
    ],
)
def test_frames_are_what_is_shown_at_evenly_spread_moments_and_the_last(
    times: list[float], sampling: dict[str, Any], places: list[int], closing: bool
) -> None:
    assert Sampling(**sampling).choose(times) == SampledFrames(places, closing)


@given(
    st.lists(st.floats(0, 10_000), min_size=1, max_size=60).map(sorted),
    st.floats(0.01, 60),
    st.integers(2, 40),
)
def test_the_last_frame_is_chosen_within_the_budget(times: list[float], fps: float, most: int) -> None:
    choice = Sampling(fps, most, 20_000).choose(times)
    assert len(choice.places) <= most
    assert choice.places == sorted(set(choice.places))
    assert times[choice.places[-1]] == pytest.approx(times[-1], abs=1e-3)


def test_times_are_those_of_the_video() -> None:
    content = video("mp4", "libx264")
    assert [frame.time_s for frame in sampled(content)] == [0, 1, 2]
    assert [frame.time_s for frame in sampled(content, max_frames=1)] == [0]
    assert [frame.time_s for frame in sampled(content, fps=RATE)] == [index / RATE for index in range(3 * RATE)]
    assert [frame.time_s for frame in sampled(animation("WEBP"), fps=0.5)] == [0, 2]


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("matroska", "libx265"), ("avi", "mpeg4")])
def test_jumping_gives_the_frames_that_decoding_everything_gives(container: str, codec: str) -> None:
    content = video(container, codec, bf="2" if codec == "mpeg4" else "3")
    every = {frame.time_s: frame for frame in sampled(content, fps=RATE)}
    assert len(every) == 3 * RATE
    for frame in sampled(content, fps=RATE / 7):
        np.testing.assert_array_equal(frame.pixels, every[frame.time_s].pixels)


def test_boxes_are_in_pixels_of_the_frame_as_displayed() -> None:
    (frame,) = sampled(video("mp4", "libx264", size=(400, 200), rotation=-90), max_frames=1)
    assert (frame.width, frame.height) == (200, 400)


def recording(frames: list[np.ndarray[Any, Any]], crf: int) -> list[Frame]:
    """What a video of these frames, ten a second, becomes."""
    images = [Scene(frame, ()) for frame in frames]
    content = video("mp4", "libx264", scenes=images, times=[index + 0.0 for index in range(len(images))], crf=str(crf))
    return sampled(content)


@pytest.mark.parametrize(("crf", "grain"), [(18, 8), (28, 4), (28, 8)])
def test_noise_and_coding_change_nothing(crf: int, grain: int) -> None:
    rng = np.random.default_rng(crf + grain)
    still = draw_scene(rng, replace(PLAIN, side=SIDE)).pixels.astype(float)
    noisy = [(still + rng.normal(0, grain, still.shape)).clip(0, 255).astype(np.uint8) for _ in range(12)]
    assert [frame.repeats for frame in recording(noisy, crf)] == [False] + [True] * 11


def test_the_smallest_object_is_a_change() -> None:
    """Of every design, on every ground, at the model's size; but for a few that can hardly be seen."""
    world, changes = World(), []
    kinds = itertools.product(world.designs, LABELS)
    for seed, (design, label) in enumerate(list(kinds) * 10):
        rng = np.random.default_rng(seed)
        ground = draw_ground(rng, draw_shape(rng, world), world.photographs)
        rows, columns = ground.shape[:2]
        variants = load_sprites(design)[label]
        sprite = variants[int(rng.integers(0, len(variants)))]
        scale = world.smallest * world.side / max(sprite.shape[:2])
        height, width = (max(6, round(side * scale)) for side in sprite.shape[:2])
        x, y = int(rng.integers(0, columns - width)), int(rng.integers(0, rows - height))
        canvas = ground.copy()
        paste(rng, canvas, sprite, (x, y, x + width, y + height), world.recoloured)
        before, after = (block_means(model_input(one.clip(0, 255).astype(np.uint8))) for one in (ground, canvas))
        changes.append(not near_identical(before, after))
    assert np.mean(changes) > 0.995


def test_repeated_frames_are_not_looked_at_again(pipeline: Pipeline) -> None:
    content = video("mp4", "libx264", scenes=[STREET] * 3 + [YARD])
    assert isinstance(pipeline.telemetry, Heard)
    before = pipeline.telemetry.times[Stage.ENCODE]
    (result,) = counted(pipeline, content)
    assert isinstance(result, DocumentResult)
    assert [frame_result.time_s for frame_result in result.frames] == [0, 1, 2, 3]
    assert pipeline.telemetry.times[Stage.ENCODE] - before == 2
    assert result.frames[0].detections == result.frames[2].detections != result.frames[3].detections


def test_slow_changes_add_up() -> None:
    ramp = [np.full((SIDE, SIDE, 3), 40 + 4 * index, np.uint8) for index in range(12)]
    repeats = [frame.repeats for frame in recording(ramp, 18)]
    assert not repeats[0]
    assert 3 <= repeats.count(False) <= 5


def test_pages_come_one_by_one_and_are_numbered_from_one() -> None:
    assert [(frame.page, frame.time_s) for frame in sampled(pages(5))] == [(page, None) for page in range(1, 6)]


def test_more_frames_than_places(pipeline: Pipeline) -> None:
    content = video("mp4", "libx264", rate=30)
    (result,) = counted(pipeline, content, sampling=Sampling(fps=30, max_frames=90))
    assert isinstance(result, DocumentResult)
    assert len(result.frames) == 90
    assert count_document(result.frames) == PEAK


def test_large_jpegs_are_counted_the_same_at_reduced_scale(pipeline: Pipeline) -> None:
    assert agreement(pipeline, 12) == 1


def agreement(pipeline: Pipeline, scenes: int) -> float:
    """The share of large JPEGs that are counted the same whether or not they are decoded at a reduced scale."""
    rng = np.random.default_rng(99)
    same = 0
    for _ in range(scenes):
        large = Image.fromarray(draw_scene(rng, replace(PLAIN, side=768, most=8)).pixels).resize((3000, 3000))
        buffer = io.BytesIO()
        large.save(buffer, "JPEG", quality=90)
        counts = []
        for reduced in (True, False):
            buffer.seek(0)
            (frame,) = open_frames(buffer, DecodeOptions(SIZE, 10**8, reduced=reduced), Sampling())
            assert (frame.width, frame.height) == (3000, 3000)
            counts.append(count_document([pipeline.scheduler.submit(frame, timeout=60).result(60)]))
        same += counts[0] == counts[1]
    return same / scenes


@pytest.mark.long
def test_the_share_of_large_jpegs_counted_the_same(pipeline: Pipeline) -> None:
    share = agreement(pipeline, 300)
    print(f"{share:.1%} of 300 large JPEGs are counted the same at reduced scale")
    assert share >= 0.99


def found(label: str, number: int) -> FrameResult:
    return FrameResult((Detection(label, (0, 0, 1, 1), 0.9),) * number)


def test_the_counting_rule() -> None:
    both = [found("cat", 2), FrameResult((*found("cat", 1).detections, *found("dog", 1).detections))]
    assert count_document([replace(one, time_s=0.0) for one in both]) == {"cat": 2, "dog": 1}
    assert count_document([replace(one, page=page) for page, one in enumerate(both, 1)]) == {"cat": 3, "dog": 1}
    assert count_document(both[:1]) == {"cat": 2}


def test_a_document_is_done_with_its_last_frame() -> None:
    first: Future[FrameResult] = Future()
    second: Future[FrameResult] = Future()
    whole = gather([Part(first, time_s=0.0), Part(first, time_s=1.0), Part(second, time_s=2.0)], incomplete=True)
    second.set_result(found("cat", 3))
    assert not whole.done()
    first.set_result(found("cat", 1))
    result = whole.result(0)
    assert (count_document(result.frames), len(result.frames), result.incomplete) == ({"cat": 3}, 3, True)


def test_a_frame_that_fails_fails_its_document_and_cancels_the_rest() -> None:
    parts: list[Future[FrameResult]] = [Future() for _ in range(3)]
    whole = gather([Part(part) for part in parts])
    parts[1].set_exception(ValueError("broken"))
    assert isinstance(whole.exception(0), ValueError)
    assert parts[0].cancelled()
    parts = [Future() for _ in range(2)]
    whole = gather([Part(part) for part in parts])
    parts[0].cancel()
    assert isinstance(whole.exception(0), CancelledError)


def test_a_document_given_up_gives_up_its_frames() -> None:
    parts: list[Future[FrameResult]] = [Future() for _ in range(2)]
    parts[0].set_running_or_notify_cancel()
    whole = gather([Part(part) for part in parts])
    assert whole.cancel()
    assert parts[1].cancelled()
    parts[0].set_result(found("cat", 1))  # nobody wants it, and nothing breaks
    assert whole.cancelled()


def test_a_still_picture_has_neither_page_nor_time() -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    (frame,) = sampled(buffer.getvalue())
    assert (frame.page, frame.time_s, frame.repeats) == (None, None, False)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_what_is_transparent_in_a_video_is_white(codec: str) -> None:
    nothing = Scene(np.zeros((SIDE, SIDE, 4), np.uint8), ())
    (frame,) = sampled(video("webm", codec, "yuva420p", scenes=[nothing], rate=1, **{"auto-alt-ref": "0"}))
    assert frame.pixels.min() > 250


def test_of_less_than_two_seconds_four_moments_are_looked_at() -> None:
    content = video("mp4", "libx264", rate=30, times=[index / 30 for index in range(46)])
    assert [frame.time_s for frame in sampled(content)] == pytest.approx([0, 0.5, 1, 1.5], abs=0.02)
    assert [frame.time_s for frame in sampled(content, fps=0.5)] == pytest.approx([0, 1.5], abs=0.02)  # the last, too
    assert len(sampled(content, max_frames=2)) == 2


def test_times_go_on_where_files_are_joined() -> None:
    assert [frame.time_s for frame in sampled(joined("mpegts", "mpeg2video"))] == pytest.approx([0, 1, 2], abs=0.1)


def test_of_jpegs_only_those_of_one_size_are_a_video() -> None:
    """Cameras put others behind a photo: a second view, a map of depth or light, or what is left of an older file."""
    one, other = (saved(picture(one=each), "JPEG", quality=90) for each in (YARD, STREET))
    small = saved(picture(one=YARD).resize((SIDE // 4, SIDE // 4)), "JPEG")
    several = io.BytesIO()
    picture(one=YARD).save(several, "MPO", save_all=True, append_images=[picture(one=STREET)])
    for still in (
        one,
        one + small,
        several.getvalue(),
        one + bytes(9000) + other,
        one + b"\xff\xd8\xff",
        one + other[:20],
    ):
        (frame,) = sampled(still)
        assert frame.time_s is None
    assert [frame.time_s for frame in sampled(one + other + one)] == pytest.approx([0, 0.04, 0.08])
