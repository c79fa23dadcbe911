"""`count`: many files at once, on the real model and service, as a user runs it."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from florence_tagger.count import client
from florence_tagger.count.client import client_of
from florence_tagger.count.paths import InputFile, find_files, read_list
from florence_tagger.count.records import FileRecord, ResumeFile
from florence_tagger.count.runner import places_in
from florence_tagger.errors import DocumentError, NotReadyError, SettingsError, TaggerError
from florence_tagger.media.drawing import COLOURS, colours_of
from tests.conftest import ROOT, SCENES, TRUTH, RunningServer, content_for, start_server, stop_server
from tests.test_video_writer import frames_of
from tests.variants import SIDE
from tests.videos import PEAK, video

COMMAND = [sys.executable, "-m", "florence_tagger", "count"]
SCENE = (SCENES / "scene00.png").read_bytes()


def count(*arguments: str | Path, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Runs the command; nothing it writes to may be a traceback."""
    result = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | variables,
        check=False,
        timeout=300,
    )
    assert b"Traceback" not in result.stderr, result.stderr.decode()
    return result


def write_folder(folder: Path, good: int, broken: int) -> dict[str, dict[str, int] | None]:
    """Writes so many files, none the same bytes as another; what each has, None for the broken ones."""
    truth: dict[str, dict[str, int] | None] = {}
    scenes = sorted(TRUTH)
    for index in range(good):
        scene = SCENES / scenes[index % len(scenes)]
        path = folder / f"box{index % 3}" / f"{index:03}{scene.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(scene.read_bytes() + b"." * index)
        truth[str(path)] = TRUTH[scene.name]
    for index, content in zip(range(broken), endless_damage(), strict=False):
        path = folder / f"box{index % 3}" / f"{index:03}-broken.png"
        path.write_bytes(content)
        truth[str(path)] = None
    return dict(sorted(truth.items()))


def endless_damage() -> Iterator[bytes]:
    """Files that are none, in six ways."""
    while True:
        yield b""
        yield SCENE[:2000]
        yield SCENE[:20]
        yield b"%PDF-1.7\n"
        yield b"no picture"
        yield SCENE[:3000] + bytes(len(SCENE) - 3000)


def check_results(results: list[dict[str, Any]], truth: dict[str, dict[str, int] | None]) -> None:
    assert [one["file"] for one in results] == list(truth)
    for one in results:
        assert set(one) == {"file", "content", "error"}
        counts = truth[one["file"]]
        if counts is None:
            assert one["content"] == []
            assert one["error"].startswith("The ")
        else:
            assert one == {"file": one["file"], "content": content_for(counts), "error": None}


def interrupted(folder: Path, record: Path, lines: int) -> None:
    """Runs `count --resume`, and interrupts it as Ctrl-C does once so many files are done."""
    command = [*COMMAND, str(folder), "--resume", str(record), "--num-labels", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (record.exists() and record.read_bytes().count(b"\n") >= lines):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1, told
    assert b"Error: Interrupted; " in told
    assert b"Traceback" not in told


@pytest.mark.parametrize(
    ("good", "broken"), [(36, 6), pytest.param(270, 30, marks=pytest.mark.long)], ids=["some", "many"]
)
def test_a_folder_is_counted_and_gone_on_with(tmp_path: Path, good: int, broken: int) -> None:
    truth = write_folder(tmp_path / "files", good, broken)
    (tmp_path / "files" / "notes.txt").write_text("not of an allowed extension")
    whole = count(tmp_path / "files", "--jsonl", "--num-labels", 0)
    assert whole.returncode == 1
    assert f"{broken} of {good + broken} files could not be counted." in whole.stderr.decode()
    check_results([json.loads(line) for line in whole.stdout.splitlines()], truth)

    record = tmp_path / "out.jsonl"
    interrupted(tmp_path / "files", record, 3)
    begun = record.read_bytes()
    assert 3 <= begun.count(b"\n") < good + broken
    record.write_bytes(begun + b'{"file": "half a li')  # as where the run was killed
    rest = count(tmp_path / "files", "--resume", record, "--num-labels", 0, "--json")
    assert rest.returncode == 1
    assert sorted(record.read_bytes().splitlines()) == sorted(whole.stdout.splitlines())
    assert record.read_bytes().startswith(begun)
    check_results(json.loads(rest.stdout), truth)


def test_a_file_that_never_comes_holds_up_neither_the_others_nor_the_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    record, command = tmp_path / "out.jsonl", [*COMMAND, str(tmp_path / "pipe.png"), "tests/scenes/scene00.png"]
    process = subprocess.Popen([*command, "--resume", str(record)], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (record.exists() and record.read_bytes().endswith(b"\n")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, told.count(b"\n")) == (1, 1), told
    assert b"Error: Interrupted; " in told
    (line,) = record.read_text().splitlines()
    assert json.loads(line)["content"] == content_for(TRUTH["scene00.png"])


def test_forms(tmp_path: Path) -> None:
    (tmp_path / "a [red].png").write_bytes(SCENE)
    (tmp_path / "b\x1b[31m.png").write_bytes(b"none")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "c.png")
    good = ", ".join(f"{n} {label}" for label, n in sorted(TRUTH["scene00.png"].items()))
    table = count(tmp_path).stdout.decode().replace(f"{tmp_path}/", "").splitlines()
    assert table[0].split("  ")[0] == "a [red].png"
    assert table[0].endswith(f"  {good}")
    assert table[1].startswith("b\\x1b[31m.png  The file is not a picture or video")
    assert table[2].endswith("  nothing")
    rows = count(tmp_path, "--csv", "--num-labels", 1).stdout.decode().splitlines()
    (label, n), *_ = sorted(TRUTH["scene00.png"].items(), key=lambda one: (-one[1], one[0]))
    assert rows[0] == "file,label,count,error"
    assert rows[1] == f"{tmp_path}/a [red].png,{label},{n},"
    assert ',,,"The file is not' in rows[2]
    assert rows[3] == f"{tmp_path}/c.png,,0,"
    assert json.loads(count(tmp_path, "--json").stdout)[2] == {
        "file": f"{tmp_path}/c.png",
        "content": [],
        "error": None,
    }
    assert json.loads(count(tmp_path / "c.png", "--json", "--min-score", 1).stdout)[0]["content"] == []


def test_names_of_any_bytes_and_lists_on_the_standard_input(tmp_path: Path) -> None:
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff\n.png")
    Path(odd).write_bytes(SCENE)
    listed = os.fsencode(odd) + b"\0" + bytes(tmp_path / "none.png") + b"\0"
    result = count("-", "--jsonl", stdin=listed)
    assert result.returncode == 1
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["file"] == odd
    assert first["content"]
    assert second["error"] == "The file can't be read: No such file or directory."
    assert b"\\udcff\\n.png" in count("-", stdin=listed).stdout
    assert read_list(b"a\n\nb c\n") == ["a", "b c"]
    assert read_list(b"\xef\xbb\xbfa.png\r\n\r\nb c.png\r\n") == ["a.png", "b c.png"], "as Windows writes lists"
    assert read_list(b"a\r\0b\0") == ["a\r", "b"]


def test_a_file_is_counted_once_however_it_is_written(tmp_path: Path) -> None:
    scene, record = "tests/scenes/scene00.png", tmp_path / "out.jsonl"
    first = count(scene, f"./{scene}", ROOT / scene, "--json", "--resume", record)
    assert [one["file"] for one in json.loads(first.stdout)] == [scene]
    again = count(ROOT / scene, "--json", "--resume", record)
    assert [one["file"] for one in json.loads(again.stdout)] == [str(ROOT / scene)]
    assert len(record.read_bytes().splitlines()) == 1, "it was not counted again"
    nameless = count("", "--json")
    assert (nameless.returncode, json.loads(nameless.stdout)[0]["error"]) == (1, "There is no file without a name.")


def test_paths_mean_files(tmp_path: Path) -> None:
    for name in ("a.JPG", "z/b.mp4", "z/.hidden.png", ".git/c.png", "z/d.txt", "e.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lost.png").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")

    def found(*paths: str) -> list[str]:
        return [one.name.removeprefix(f"{tmp_path}/") for one in find_files([f"{tmp_path}/{path}" for path in paths])]

    assert found("") == ["a.JPG", "e.tif", "lost.png", "z/b.mp4"]
    assert found("z/d.txt", "e.tif", "") == ["z/d.txt", "e.tif", "a.JPG", "lost.png", "z/b.mp4"]
    assert found("**/*.mp4") == ["z/b.mp4"]
    assert find_files(["no*.png"]) == [InputFile("no*.png", "No file matches the pattern.")]
    assert find_files(["x" * 300]) == [InputFile("x" * 300)]


@pytest.mark.parametrize("system", ["@eaDir", "@EADIR", "@__thumb", ".@__thumb", ".thumbnails", "__MACOSX", "._x"])
def test_what_systems_make_is_left_out_of_folders_and_patterns(tmp_path: Path, system: str) -> None:
    """Wherever it is in a folder, but for what is named itself; a file of a resource fork is hidden, too."""
    for folder in ("", "in", system, f"in/{system}", f"{system}/deep", "eaDir"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in ("a.jpg", "._a.jpg"):
            (tmp_path / folder / name).touch()

    def found(path: str) -> set[str]:
        return {one.name.removeprefix(f"{tmp_path}/") for one in find_files([f"{tmp_path}/{path}"])}

    kept = {"a.jpg", "in/a.jpg", "eaDir/a.jpg"}
    assert found("") == found("**") == found("**/*.jpg") == kept
    assert found("*") == kept
    assert found("in/*") == {"in/a.jpg"}
    assert found(system) == {f"{system}/a.jpg", f"{system}/deep/a.jpg"}
    assert found(f"{system}/*.jpg") == {f"{system}/a.jpg"}
    assert found("in/._a.jpg") == {"in/._a.jpg"}


@pytest.mark.parametrize(
    ("closed", "code", "written", "said"),
    [
        (">&-", 2, "", "Error: The standard output is closed: counts can't be written."),
        (">&- 2>&-", 2, "", ""),
        ("2>&-", 0, "tests/scenes/scene02.png  ", ""),
        ("<&-", 0, "tests/scenes/scene02.png  ", ""),
        ("<&- 2>&-", 0, "tests/scenes/scene02.png  ", ""),
        ("- <&-", 2, "", "Error: The standard input is closed: no list of paths can be read from it."),
    ],
)
def test_standard_streams_that_are_closed(closed: str, code: int, written: str, said: str, tmp_path: Path) -> None:
    """No file that is opened afterwards takes the place of one: the record has its line and nothing else."""
    record = tmp_path / "out.jsonl"
    command = f"{' '.join(COMMAND)} tests/scenes/scene02.png --resume {record} {closed}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert result.stdout.startswith(written)
    assert bool(result.stdout) == bool(written)
    assert result.stderr.startswith(said)
    assert bool(result.stderr) == bool(said)
    lines = record.read_text().splitlines() if record.exists() else []
    assert [json.loads(line)["error"] for line in lines] == ([None] if code == 0 else [])


def test_all_labels_are_told_unless_fewer_are_wanted() -> None:
    """picnic.jpg has seven, of which an answer of the service has five by default."""
    picture = ROOT / "florence_tagger" / "web" / "samples" / "picnic.jpg"
    (whole,) = json.loads(count(picture, "--json").stdout)
    assert [label for one in whole["content"] for label in one] == [
        *("apple", "backpack", "banana", "book", "cup", "dog", "person"),
    ]
    (three,) = json.loads(count(picture, "--json", "--num-labels", "3").stdout)
    assert three["content"] == [{"apple": 3}, {"banana": 2}, {"cup": 4}]


def test_every_drawing_has_a_place_of_its_own() -> None:
    names = ["/a/../b.jpg", "a/../b.jpg", "a/_/b.jpg", "a/_/b.jpg.2", "b.jpg", "b.png"]
    places = places_in(Path("out"), names)
    assert list(places) == names
    assert [str(one) for one in places.values()][:3] == [
        "out/a/_/b.jpg.png",
        "out/a/_/b.jpg.2.png",
        "out/a/_/b.jpg.3.png",
    ]
    assert len(set(places.values())) == len(names)
    assert all(one.is_relative_to("out") and ".." not in one.parts for one in places.values())


def test_drawings_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(SCENE)
    drawn = tmp_path / "drawn"
    (tmp_path / "also").symlink_to(drawn)
    for paths in (
        [str(tmp_path)],
        [f"{tmp_path}/**"],
        [f"{tmp_path}/**/*.png"],
        [f"{tmp_path}/*/../a.png", str(tmp_path)],
    ):
        result = count(*paths, "--annotate", drawn, "--jsonl")
        assert {Path(json.loads(line)["file"]).name for line in result.stdout.splitlines()} == {"a.png"}, paths
        assert list(drawn.rglob("a.png.png"))
    (picture, *_) = map(str, drawn.rglob("a.png.png"))
    assert find_files([picture, str(tmp_path)], drawn)[0] == InputFile(picture), "it is named"
    for folder in (tmp_path, tmp_path / "drawn" / ".."):
        refused = count(tmp_path, "--annotate", folder)
        assert refused.returncode == 2
        assert b"is counted; the drawings in it would be" in refused.stderr


def test_a_name_too_long_to_draw_costs_one_drawing(tmp_path: Path) -> None:
    long = "x" * 250 + ".png"
    for name in (long, "z.png"):
        (tmp_path / name).write_bytes(SCENE)
    result = count(tmp_path, "--annotate", tmp_path / "drawn", "--json")
    assert result.returncode == 0
    assert len(json.loads(result.stdout)) == 2
    assert b"x.png: not drawn: File name too long" in result.stderr
    assert [one.name for one in (tmp_path / "drawn").rglob("*.png")] == ["z.png.png"]


def test_failed_files_are_tried_again_if_that_is_wanted(tmp_path: Path) -> None:
    record, picture, clip = tmp_path / "out.jsonl", tmp_path / "a.png", tmp_path / f"{'b' * 250}.mp4"
    picture.write_bytes(b"not yet")
    clip.write_bytes(video("mp4", "libx264"))
    options = ["--resume", record, "--annotate", tmp_path / "drawn", "--json", "--num-labels", 0]
    first = count(picture, clip, *options)
    assert first.returncode == 1
    picture.write_bytes(SCENE)
    again = count(picture, clip, *options)
    assert (again.returncode, again.stdout) == (1, first.stdout), "they stay failed"
    assert b"not drawn: File name too long" in again.stderr, "what is to be known of the counts is kept"
    retried = count(picture, clip, *options, "--retry-failed")
    assert retried.returncode == 0
    assert json.loads(retried.stdout)[0]["content"] == content_for(TRUTH["scene00.png"])
    assert len(record.read_bytes().splitlines()) == 3
    assert count(picture, clip, *options).stdout == retried.stdout, "the last line counts"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["."], "There is no picture or video in ."),
        (["-"], "There is no picture or video in -."),
        (["x.png", "--prompt", "CAPTION"], "There is no task CAPTION; accepted are OD, "),
        (["x.png", "--prompt", "OPEN_VOCABULARY_DETECTION"], "needs text"),
        (["x.png", "--min-score", "2"], "0<=x<=1"),
        (["x.png", "--model", "/nowhere"], "There is no model folder /nowhere."),
        (["x.png", "--device", "NPU.7"], "Device NPU.7 is not there"),
        (["x.png", "--server", "http://127.0.0.1:1"], "can't be reached: "),
        (["x.png", "--server", "localhost"], "is no URL of a service"),
        (["x.png", "--annotate", "/proc/x"], "/proc/x can't be made"),
        (["x.png", "--resume", "/dev/zero"], "/dev/zero is no file that can be gone on from"),
        (["x.png", "--min-score", "nan"], "min_score is nan; accepted is"),
        (["x.png", "--resume", "/nowhere/x.jsonl"], "/nowhere/x.jsonl can't be written: No such file"),
        (["x.png", "--server", "http://127.0.0.1:1/größe"], "can't be reached: "),
        (["x.png", "--server", "http://a..b"], "can't be reached: "),
        (["x.png", "--server", "http://127.0.0.1:1/a b"], "can't be reached: "),
        (["x.png", "--server", "http://[::1"], "is no URL of a service"),
        (["x.png", "--server", "http://localhost:5011?key=1"], "is no URL of a service"),
        (["x.png", "--server", "http://me@localhost:5011"], "is no URL of a service"),
        (["x.png", "--server", "http://localhost", "--device", "CPU"], "the service has its own"),
        (["x.png", "--server", "http://localhost", "--model", "m"], "the service has its own"),
        (["x.png", "--retry-failed"], "--retry-failed is for --resume"),
        (["x.png", "--json", "--csv"], "Only one of --json, --jsonl and --csv"),
        (["x.png", "--text", "car"], "--text is for tasks that look for it: OPEN_VOCABULARY_DETECTION, CAPTION"),
        ([], "Missing argument"),
    ],
)
def test_where_nothing_can_be_done(tmp_path: Path, arguments: Sequence[str], reason: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*COMMAND, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


def test_a_record_is_read_and_what_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    result = FileRecord("a.png", [{"car": 7}])
    record = ResumeFile(path)
    record.add(result)
    record.close()
    with closing(ResumeFile(path)) as again:
        assert again.done == {Path("a.png").absolute(): result}
    for line in (
        "{}",
        "[1]",
        "no",
        '{"file": 1, "content": [], "error": null}',
        '{"file": "", "content": [1], "error": ""}',
    ):
        path.write_text(f"{line}\n")
        with pytest.raises(SettingsError, match="no result of `count`"):
            ResumeFile(path)
        assert path.read_text() == f"{line}\n"


def test_drawings(tmp_path: Path, server: RunningServer) -> None:
    files, drawn = tmp_path / "files", tmp_path / "drawn"
    files.mkdir()
    (files / "a.png").write_bytes(SCENE)
    (files / "b.mp4").write_bytes(video("mp4", "libx264"))
    first, second = (Image.open(SCENES / name).convert("RGB") for name in ("scene08.png", "scene00.png"))
    first.save(files / "c.tif", save_all=True, append_images=[second])
    result = count(files, "--annotate", drawn, "--json", "--num-labels", 0)
    assert (result.returncode, result.stderr) == (0, b"")
    assert [one["content"] for one in json.loads(result.stdout)] == [
        content_for(TRUTH["scene00.png"]),
        content_for(PEAK),
        content_for(TRUTH["scene00.png"]),
    ]
    names = ("a.png.png", "b.mp4.webm", "c.tif.png")
    picture, clip, pages = (drawn / files.relative_to("/") / name for name in names)
    assert sorted(one for one in drawn.rglob("*") if one.is_file()) == [picture, clip, pages]
    with Image.open(picture) as image, Image.open(pages) as page:
        assert image.size == second.size
        assert image.convert("RGB").tobytes() != second.tobytes()
        assert page.convert("RGB").tobytes() == image.convert("RGB").tobytes(), "the page that has most"
    times, frames, _ = frames_of(clip)
    assert (times, {frame.shape for frame in frames}) == ([0.0, 1.0, 2.0], {(SIDE, SIDE, 3)})
    clip.unlink()
    count(files / "b.mp4", "--annotate", drawn, "--json", "--server", server.url)
    assert frames_of(clip)[0] == times
    other = count(files / "b.mp4", "--annotate", drawn, "--json", "--server", server.url, FLORENCE_VIDEO_FPS="3")
    assert b"not drawn: the service looks at other frames" in other.stderr
    assert not clip.exists(), "no part of a drawing is left"
    labels = [f"thing {index}" for index in range(len(COLOURS))]
    assert set(colours_of(labels).values()) == set(COLOURS)
    assert len(colours_of([*labels, "another"])) == len(COLOURS) + 1


def on_terminal(*arguments: str, stdout: bool, **variables: str) -> tuple[str, str]:
    """What the command writes to a terminal as its standard error, and to its output, a terminal too or a pipe."""
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "100"} | variables
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=ROOT, env=environment, stderr=theirs, stdout=theirs if stdout else subprocess.PIPE
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            shown += chunk
        piped = process.stdout.read().decode() if process.stdout else ""
    os.close(ours)
    return shown.decode(), piped


def test_a_bar_is_for_terminals_and_colours_for_those_who_want_them() -> None:
    sample = str(SCENES / "scene00.png")
    shown, piped = on_terminal(sample, "nope.png", "--jsonl", stdout=False)
    assert "2/2" in shown
    assert "files/s" in shown
    assert "\x1b[3" in shown
    assert [json.loads(line)["file"] for line in piped.splitlines()] == [sample, "nope.png"]
    shown, _ = on_terminal(sample, "nope.png", stdout=True, NO_COLOR="1")
    assert "objects" in shown
    assert not any(f"\x1b[{code}" in shown for code in ("31", "32", "36", "38", "9"))
    quiet = count(sample)
    assert quiet.stderr == b""
    assert b"\x1b" not in quiet.stdout


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [*COMMAND, "tests/scenes/scene00.png"]
        result = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "Error: No space left on device.\n")
    (tmp_path / "tests").touch()  # a file where the drawings' folder would be
    drawn = count("tests/scenes/scene00.png", "tests/scenes/scene02.png", "--annotate", tmp_path)
    assert drawn.returncode == 2
    assert b"Not a directory" in drawn.stderr


def test_nobody_reads_on() -> None:
    command = f"{' '.join(COMMAND)} tests/scenes --jsonl | head -n 1"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


def test_a_service_counts_the_same(server: RunningServer, tmp_path: Path) -> None:
    write_folder(tmp_path, 12, 6)
    (tmp_path / "video.mp4").write_bytes(video("mp4", "libx264"))
    first, second = Image.open(SCENES / "scene00.png").convert("RGB"), Image.open(SCENES / "scene02.png").convert("RGB")
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[second])
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    here, there = (count(tmp_path, "--json", *more) for more in ([], ["--server", server.url]))
    assert here.stdout == there.stdout
    assert here.stderr == there.stderr
    assert (here.returncode, there.returncode) == (1, 1)


def test_the_key_of_a_service(tmp_path: Path) -> None:
    running = start_server(tmp_path / "log.txt", "--api-key", "gehéim")
    sample = SCENES / "scene00.png"
    refused = count(sample, "--server", running.url)
    assert refused.returncode == 2
    assert b"X-API-Key" in refused.stderr
    treated = count(sample, "--server", f"{running.url}/", "--json", FLORENCE_API_KEY="gehéim")
    assert treated.returncode == 0
    assert json.loads(treated.stdout)[0]["content"]
    assert stop_server(running) == 0


@contextmanager
def answering(*answers: tuple[int, Any]) -> Iterator[str]:
    """A server that gives these answers, one after the other; its URL."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = left.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def untreated(reason: str) -> dict[str, Any]:
    return {"data": [], "error": "", "list_id_not_treated": [{"file": reason}]}


def test_a_service_that_is_busy_is_waited_for_and_odd_answers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.01)
    detections = [{"label": "car", "score": 0.5, "box": [0, 0, 9, 9], "frame": 3, "time_s": 1.5}]
    frames = [{"frame": place, "time_s": 0.5 * place} for place in range(5)]
    good = {"data": [{"source": {"detections": detections, "frames": frames}}], "list_id_not_treated": []}
    with answering(
        (503, {"error": "busy"}), (503, {"error": "busy"}), (200, good), (413, {"error": "too large"})
    ) as url:
        there = client_of(url, "", 10)
        frame_results = there.detect(b"x", "OD", "", 0).frames
        found = [(len(one.detections), one.time_s) for one in frame_results]
        assert found == [(0, 0), (0, 0.5), (0, 1), (1, 1.5), (0, 2)]
        with pytest.raises(DocumentError, match="too large"):
            there.detect(b"x", "OD", "", 0)
    odd = [(200, {}), (200, [1]), (500, "x"), (200, untreated("damaged")), (200, untreated("The service is stopping."))]
    with answering(*odd) as url:
        there = client_of(url, "", 10)
        for _ in range(3):
            with pytest.raises(TaggerError, match="gave no answer of florence_tagger's"):
                there.detect(b"x", "OD", "", 0)
        with pytest.raises(DocumentError, match="damaged"):
            there.detect(b"x", "OD", "", 0)
        with pytest.raises(NotReadyError):  # a run that goes on later tries the file again
            there.detect(b"x", "OD", "", 0)


def test_a_client_that_is_closed_waits_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        there = client_of(f"http://127.0.0.1:{silent.getsockname()[1]}", "", 60)
        waiting = pool.submit(there.detect, b"x", "OD", "", 0.0)
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(100)
            started = time.monotonic()
            there.close()
            assert isinstance(waiting.exception(), TaggerError)
        assert time.monotonic() - started < 10
    with pytest.raises(TaggerError, match="closed"):
        there.check()


@given(st.from_regex(r"https?://[^\x00]{0,30}", fullmatch=True))
@settings(deadline=None)
def test_odd_urls_are_told(url: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError("nobody is asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", refuse)
        with pytest.raises(TaggerError):
            client_of(url, "", 10).check()
