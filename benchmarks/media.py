"""How fast files become frames, beside Pillow and ffmpeg, and what the decoder processes cost.

`python -m benchmarks.media` makes its own files and prints a table. ffmpeg must be installed for the comparison of
videos (`apt-get install ffmpeg`).
"""

import io
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from PIL import Image

from florence_tagger.assembly import start_decoder_pool
from florence_tagger.bench.measurements import find_pictures
from florence_tagger.bench.stages import machine
from florence_tagger.config import load_settings
from florence_tagger.media.frames import open_frames
from florence_tagger.media.images import to_jpeg
from florence_tagger.media.limits import DecodeOptions
from florence_tagger.media.sampling import Sampling
from florence_tagger.media.sandbox.pool import DecoderPool
from training.scenes import World, draw_scene

SIZE = (768, 768)  # the input of the published models
SECONDS, RATE = 60, 30
VIDEO_SIZE = (1920, 1080)

Row = tuple[str, str, str]


def median_ms(run: Callable[[], Any], others: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """The medians of two runs, one after the other in each round, ms."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for one, kept in zip((run, others), times, strict=True):
            started = time.perf_counter()
            one()
            kept.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])


def draft_and_resize(content: bytes) -> None:
    """What Pillow needs for a JPEG at twice the model's input or more, and from there to it."""
    picture = Image.open(io.BytesIO(content))
    picture.draft("RGB", (2 * SIZE[1], 2 * SIZE[0]))
    np.asarray(picture.convert("RGB").resize(SIZE[::-1], Image.Resampling.BICUBIC))


def photos(decoders: DecoderPool, rounds: int) -> Iterator[Row]:
    """A photo of twelve megapixels to the model's input."""
    with tempfile.TemporaryDirectory() as place:
        content = find_pictures(None, 1, Path(place))[0].read_bytes()

    whole, reduced = DecodeOptions(SIZE, 10**8), DecodeOptions(SIZE, 10**8, reduced=True)

    def here(file: bytes, limits: DecodeOptions = reduced) -> Callable[[], Any]:
        return lambda: list(open_frames(io.BytesIO(file), limits, Sampling()))

    def isolated(file: bytes) -> Callable[[], Any]:
        return lambda: list(decoders.frames(file, Sampling(), time.monotonic() + 60))

    ours, theirs = median_ms(isolated(content), lambda: draft_and_resize(content), rounds)
    what = "photo of 12 megapixels, beside Pillow with draft and resize"
    yield what, f"{ours / theirs:.2f}x", f"{ours:.1f} ms, {theirs:.1f} ms"
    ours, theirs = median_ms(isolated(content), here(content), rounds)
    yield "the same, beside decoding it in this process", f"{ours - theirs:+.1f} ms", f"{ours:.1f} ms, {theirs:.1f} ms"
    # What of that is isolation and not the luck of two processes' memory: as many bytes, but hardly any pixels.
    small = to_jpeg(np.zeros((*SIZE, 3), np.uint8))
    padded = small + bytes(len(content) - len(small))
    ours, theirs = median_ms(isolated(padded), here(padded), 10 * rounds)
    what = f"a file of that size ({len(content) / 1e6:.1f} MB) with few pixels, beside decoding it in this process"
    yield what, f"{ours - theirs:+.1f} ms", f"{ours:.1f} ms, {theirs:.1f} ms"
    large = to_jpeg(np.asarray(Image.open(io.BytesIO(content)).resize((8064, 6048))))
    slow, fast = median_ms(here(large, whole), here(large), max(rounds // 3, 1))
    yield "photo of 48 megapixels, whole beside reduced", f"{slow / fast:.1f}x", f"{slow:.1f} ms, {fast:.1f} ms"


def street() -> bytes:
    """A minute of 1080p in H.264: noisy scenes, one every five seconds, that drift."""
    rng = np.random.default_rng(0)
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height = VIDEO_SIZE
        stream.pix_fmt = "yuv420p"
        for index in range(SECONDS * RATE):
            if index % (5 * RATE) == 0:
                scene = np.asarray(Image.fromarray(draw_scene(rng, World(side=768)).pixels).resize(VIDEO_SIZE))
                grain = rng.integers(0, 9, scene.shape, np.uint8)
            moved = np.roll(scene // 2 + 60, index % 200, axis=1) + np.roll(grain, 37 * index, axis=0)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(moved)))
        output.mux(stream.encode())
    return target.getvalue()


def videos(decoders: DecoderPool, rounds: int, content: bytes) -> Iterator[Row]:
    """A minute of video to frames."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(content)
        file.flush()
        command = ["ffmpeg", "-v", "error", "-i", file.name, "-vf", "fps=1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]

        def extracted() -> None:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603

        for most in (SECONDS, Sampling().max_frames):

            def isolated(most: int = most) -> None:
                frames = list(decoders.frames(content, Sampling(max_frames=most), time.monotonic() + 300))
                if len(frames) != most:
                    raise RuntimeError(f"{len(frames)} frames instead of {most}")

            ours, theirs = median_ms(isolated, extracted, rounds)
            what = f"a minute of 1080p H.264 ({len(content) / 1e6:.0f} MB), {most} frames, beside `ffmpeg -vf fps=1`"
            yield what, f"{ours / theirs:.2f}x", f"{ours / 1e3:.2f} s, {theirs / 1e3:.2f} s"


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="Repetitions; medians are told.")
@click.option("--video", type=click.Path(path_type=Path), help="Where the video is kept between runs.")
def main(rounds: int, video: Path | None) -> None:
    """Measures and prints the table."""
    decoders = start_decoder_pool(load_settings(), SIZE)
    try:
        click.echo(f"| on {machine()} | result | measured |\n|---|---|---|")
        for row in photos(decoders, rounds):
            click.echo(f"| {' | '.join(row)} |")
        content = video.read_bytes() if video and video.exists() else street()
        if video:
            video.write_bytes(content)
        for row in videos(decoders, max(rounds // 5, 1), content):
            click.echo(f"| {' | '.join(row)} |")
    finally:
        decoders.close()


if __name__ == "__main__":
    main()
