"""The speed of decoding files to frames, compared with Pillow and ffmpeg, and the cost of the decoder processes.

`python -m benchmarks.media` makes its own files and prints a table. The comparison of videos needs ffmpeg
(`apt-get install ffmpeg`).
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
from florence_tagger.context import RequestContext
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


def median_ms(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Return the median milliseconds of two functions, called in turn in each round."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, milliseconds in zip((first, second), times, strict=True):
            started = time.perf_counter()
            function()
            milliseconds.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])


def draft_and_resize(content: bytes) -> None:
    """Decode a JPEG with Pillow at twice the model's input size or more, and resize it to the input size."""
    picture = Image.open(io.BytesIO(content))
    picture.draft("RGB", (2 * SIZE[1], 2 * SIZE[0]))
    np.asarray(picture.convert("RGB").resize(SIZE[::-1], Image.Resampling.BICUBIC))


def photos(decoders: DecoderPool, rounds: int) -> Iterator[Row]:
    """Yield the rows of photos that are decoded and resized to the model's input size."""
    with tempfile.TemporaryDirectory() as directory:
        content = find_pictures(None, 1, Path(directory))[0].read_bytes()

    full, reduced = DecodeOptions(SIZE, 10**8), DecodeOptions(SIZE, 10**8, reduced=True)

    def in_process(file: bytes, options: DecodeOptions = reduced) -> Callable[[], Any]:
        return lambda: list(open_frames(io.BytesIO(file), options, Sampling()))

    def sandboxed(file: bytes) -> Callable[[], Any]:
        return lambda: list(decoders.frames(file, Sampling(), RequestContext.within(60)))

    sandbox, pillow = median_ms(sandboxed(content), lambda: draft_and_resize(content), rounds)
    name = "photo of 12 megapixels, beside Pillow with draft and resize"
    yield name, f"{sandbox / pillow:.2f}x", f"{sandbox:.1f} ms, {pillow:.1f} ms"
    sandbox, local = median_ms(sandboxed(content), in_process(content), rounds)
    name = "the same, beside decoding it in this process"
    yield name, f"{sandbox - local:+.1f} ms", f"{sandbox:.1f} ms, {local:.1f} ms"
    # The cost of isolation alone, without random effects of two processes' memory: as many bytes, but few pixels.
    small = to_jpeg(np.zeros((*SIZE, 3), np.uint8))
    padded = small + bytes(len(content) - len(small))
    sandbox, local = median_ms(sandboxed(padded), in_process(padded), 10 * rounds)
    name = f"a file of that size ({len(content) / 1e6:.1f} MB) with few pixels, beside decoding it in this process"
    yield name, f"{sandbox - local:+.1f} ms", f"{sandbox:.1f} ms, {local:.1f} ms"
    large = to_jpeg(np.asarray(Image.open(io.BytesIO(content)).resize((8064, 6048))))
    slow, fast = median_ms(in_process(large, full), in_process(large), max(rounds // 3, 1))
    yield "photo of 48 megapixels, whole beside reduced", f"{slow / fast:.1f}x", f"{slow:.1f} ms, {fast:.1f} ms"


def encode_video() -> bytes:
    """Return a minute of 1080p in H.264: noisy scenes that drift, a new one every five seconds."""
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
            shifted = np.roll(scene // 2 + 60, index % 200, axis=1) + np.roll(grain, 37 * index, axis=0)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(shifted)))
        output.mux(stream.encode())
    return target.getvalue()


def videos(decoders: DecoderPool, rounds: int, content: bytes) -> Iterator[Row]:
    """Yield the rows of a minute of video that is decoded to frames."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(content)
        file.flush()
        command = ["ffmpeg", "-v", "error", "-i", file.name, "-vf", "fps=1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]

        def run_ffmpeg() -> None:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603

        for num_frames in (SECONDS, Sampling().max_frames):

            def sandboxed(num_frames: int = num_frames) -> None:
                frames = list(decoders.frames(content, Sampling(max_frames=num_frames), RequestContext.within(300)))
                if len(frames) != num_frames:
                    raise RuntimeError(f"{len(frames)} frames instead of {num_frames}")

            sandbox, ffmpeg = median_ms(sandboxed, run_ffmpeg, rounds)
            size = f"{len(content) / 1e6:.0f} MB"
            name = f"a minute of 1080p H.264 ({size}), {num_frames} frames, beside `ffmpeg -vf fps=1`"
            yield name, f"{sandbox / ffmpeg:.2f}x", f"{sandbox / 1e3:.2f} s, {ffmpeg / 1e3:.2f} s"


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="Repetitions; medians are told.")
@click.option("--video", type=click.Path(path_type=Path), help="Where the video is kept between runs.")
def main(rounds: int, video: Path | None) -> None:
    """Measure and print the table."""
    decoders = start_decoder_pool(load_settings(), SIZE)
    try:
        click.echo(f"| on {machine()} | result | measured |\n|---|---|---|")
        for row in photos(decoders, rounds):
            click.echo(f"| {' | '.join(row)} |")
        content = video.read_bytes() if video and video.exists() else encode_video()
        if video:
            video.write_bytes(content)
        for row in videos(decoders, max(rounds // 5, 1), content):
            click.echo(f"| {' | '.join(row)} |")
    finally:
        decoders.close()


if __name__ == "__main__":
    main()
