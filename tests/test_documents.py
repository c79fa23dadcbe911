"""README.md, CONTRIBUTING.md and docs/: every command is run, and every sample answer is compared.

Of the blocks of code those of the kind `sh` are commands and those of the kind `python` a program, one for each
document; a block `json` or `text` behind one is what it prints. Code within a line that begins as a command does is
one, too.

Commands are run in the order of the documents, each once, in a folder that has what their reader has: the repository, a
checkpoint by the names that they have for one, some pictures. What is about that checkpoint, which takes longest, is
run by a shell of its own beside the one for all else. A service is where they say one is. What can't be run so, or
takes too long, is in `INSTEAD` with what is checked of it.

What differs from run to run is not compared: numbers in JSON that have a fraction may differ by a hundredth of them,
of memory the form alone counts, and a model's hash is any.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import click
import pytest
import requests
from markdown_it import MarkdownIt
from markdown_it.token import Token

from florence_tagger.config import Settings
from tests.conftest import CHECKPOINT, ROOT, SCENES, RunningServer, start_server, stop_server

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "ov_models" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
KEPT = (".git", ".venv", "build", "ov_models")  # of the repository, from the folder that commands are run in
SERVICE = "http://localhost:5011"
KEY = "secret"
PROGRAMS = {"florence_tagger": "florence_tagger.cli", "convert": "convert.__main__"}  # behind `python -m`
PROGRAM = re.compile(r"(?:\w+=\S+ )*(?:\.venv/bin/|python -m |make \w|docker \w|pip |hf |apt-get |curl )")
SECONDS = 550  # for all commands, on a machine that may be busy; below pytest's own timeout
END = "\f"  # of what a command prints


@dataclass(frozen=True)
class Block:
    """Code in a document, and the answer that is shown behind it."""

    place: str
    kind: str
    text: str
    answer: "Block | None" = None

    @property
    def commands(self) -> list[str]:
        """The commands of a shell's block, each as it stands there."""
        commands, begun = [], ""
        for line in self.text.splitlines(keepends=True):
            begun += line
            if not begun.endswith("\\\n") and is_complete(begun):
                commands.append(begun)
                begun = ""
        assert not begun, f"{self.place} does not end: {begun}"
        return commands

    def __str__(self) -> str:
        return self.place


def is_complete(command: str) -> bool:
    """Whether a shell would not wait for more."""
    return subprocess.run(["bash", "-n"], input=command, text=True, capture_output=True, check=False).returncode == 0


def plain(command: str) -> str:
    """A command in a line, without comments."""
    return " ".join(re.sub(r"(?m)\s+# .*$", "", command).replace("\\\n", " ").split())


def tokens_of(document: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(document.read_text())


def blocks_of(document: Path) -> list[Block]:
    """The blocks of a document, those that are answers with the ones they answer."""
    found: list[Block] = []
    asks = False  # whether the last block in this section has its answer to come
    for token in tokens_of(document):
        if token.type == "heading_open":
            asks = False
        elif token.type in ("fence", "code_block"):
            line = (token.map or [0])[0] + 1
            block = Block(f"{document.relative_to(ROOT)}:{line}", token.info, token.content)
            if asks and block.kind in ("json", "text"):
                found[-1] = replace(found[-1], answer=block)
                asks = False
            else:
                found.append(block)
                asks = block.kind in ("sh", "python")
    return found


def inline_code(document: Path) -> Iterator[str]:
    """The code within lines of a document."""
    for token in tokens_of(document):
        yield from (part.content for part in token.children or () if part.type == "code_inline")


BLOCKS = {document: blocks_of(document) for document in DOCUMENTS}
SHELL = [block for blocks in BLOCKS.values() for block in blocks if block.kind == "sh"]
PYTHON = {
    document: program for document, blocks in BLOCKS.items() if (program := [b for b in blocks if b.kind == "python"])
}


def all_commands() -> dict[str, str]:
    """Each command by its plain form, in the order of the documents."""
    commands: dict[str, str] = {}
    for document, blocks in BLOCKS.items():
        for block in blocks:
            if block.kind == "sh":
                commands |= {plain(one): one for one in block.commands if plain(one) not in commands}
        commands |= {one: one for one in inline_code(document) if PROGRAM.match(one) and one not in commands}
    return commands


Check = Callable[[str, Path], None]  # of a command, in the folder for commands


def is_made(command: str, place: Path) -> None:
    """`make` has the target, and knows how to make it."""
    *variables, target = shlex.split(command.partition("make ")[2])
    assert not variables
    run = subprocess.run(["make", "-n", target], cwd=place, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def is_accepted(command: str, place: Path) -> None:
    """The program, a module of ours, takes these options, and the variables are settings."""
    words = shlex.split(command)
    while "=" in words[0]:
        assert words.pop(0).partition("=")[0] in SETTINGS
    assert words[:2] == [".venv/bin/python", "-m"]
    takes(import_module(PROGRAMS.get(words[2], words[2])).main, words[3:], place)


def takes(program: click.Command, arguments: list[str], place: Path) -> None:
    """A command takes these arguments, said in the folder for commands."""
    while isinstance(program, click.Group):
        program = program.commands[arguments[0]]
        arguments = arguments[1:]
    with chdir(place):
        program.make_context("program", arguments)


def are_tests(command: str, place: Path) -> None:
    """There are such tests."""
    words = shlex.split(command)
    assert words[:3] == [".venv/bin/python", "-m", "pytest"]
    options = argparse.ArgumentParser(exit_on_error=False)
    options.add_argument("-m")
    options.add_argument("-k", default="")
    options.add_argument("-rP", action="store_true")
    options.add_argument("path", type=Path)
    given = options.parse_args(words[3:])
    text = (place / given.path).read_text()
    assert given.k in text
    assert given.m is None or f"@pytest.mark.{given.m}" in text


def is_of_the_image(command: str, place: Path) -> None:
    """The Dockerfile has the stage, the argument, the port and the folders; the program of the stage takes the rest."""
    given = DOCKER.parse_args(shlex.split(command)[1:])
    if given.verb == "build":
        assert given.t in IMAGES
        assert given.target in (None, *STAGES)
        assert all(
            one.partition("=")[0] in re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE) for one in given.build_arg
        )
    elif given.verb == "run":
        stage = STAGES[IMAGES[given.image]]
        assert all(f"EXPOSE {one.partition(':')[2]}\n" in stage for one in given.p)
        assert all(f'"{one.split(":")[1]}"' in stage for one in given.v)
        assert {one.partition("=")[0] for one in given.e} <= {"HOME", "HF_HOME", *SETTINGS}
        if given.words:
            takes(import_module(PROGRAMS["convert"]).main, given.words, place)


def docker() -> argparse.ArgumentParser:
    """Docker's command line, as far as the documents use it."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    build, run, stop = (verbs.add_parser(verb) for verb in ("build", "run", "stop"))
    for option in ("-t", "--target"):
        build.add_argument(option)
    build.add_argument("--build-arg", action="append", default=[])
    build.add_argument("folder")
    for option in ("-p", "-v", "-e"):
        run.add_argument(option, action="append", default=[])
    for option in ("--rm", "--read-only"):
        run.add_argument(option, action="store_true")
    for option in ("--tmpfs", "--device", "--group-add", "--user"):
        run.add_argument(option)
    run.add_argument("image")
    run.add_argument("words", nargs=argparse.REMAINDER)
    stop.add_argument("-t")
    return parser


DOCKER = docker()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = {text.split()[2]: text for text in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]}
IMAGES = {"florence_tagger": "serve", "florence_tagger-convert": "convert"}
SETTINGS = {f"FLORENCE_{name.upper()}" for name in Settings.model_fields}


def is_an_option_of_hf(command: str, place: Path) -> None:
    """The client of the hub has the options; the hub itself is not asked."""
    program, verb, *words = shlex.split(command)
    help_text = subprocess.run(
        [place / ".venv" / "bin" / program, verb, "--help"], capture_output=True, check=True
    ).stdout
    assert all(word.encode() in help_text for word in words if word.startswith("--"))


def is_tested(command: str, place: Path, path: str, name: str) -> None:
    """Another test does it."""
    assert f"def {name}(" in (place / path).read_text()


def is_of_the_system(command: str, place: Path) -> None:
    """Nothing of ours: it would change the machine."""


CONVERT = ".venv/bin/python -m convert"
VERIFY = f"{CONVERT}.verify --checkpoint training/florence-2-tiny --ir ov_models/florence-2-tiny --images scenes"
CPU = "docker run --rm -p 5011:5011 --read-only --tmpfs /tmp -v florence_cache:/cache"
INSTEAD: dict[str, Check] = {
    **dict.fromkeys(
        (
            *(
                "make run",
                "make test",
                "make test-long",
                "make check",
                "make format",
                "make model",
                "make configuration",
            ),
            *("make train", "make evaluate", "make lock", "make setup-dev", "make image-check"),
            *("make gpu-check", "make gpu-compile"),
            "FLORENCE_MODEL_DIR=ov_models/florence-2-base make run",
            "FLORENCE_API_KEY=secret make run",
        ),
        is_made,
    ),
    **dict.fromkeys(
        (
            ".venv/bin/python -m florence_tagger serve",
            ".venv/bin/python -m florence_tagger benchmark",
            ".venv/bin/python -m florence_tagger benchmark --model ov_models/florence-2-base",
            ".venv/bin/python -m florence_tagger benchmark --device CPU --json cpu.json",
            ".venv/bin/python -m florence_tagger benchmark --device GPU --json gpu.json",
            "FLORENCE_DEVICE=GPU .venv/bin/python -m florence_tagger doctor",
            f"{CONVERT} --model Florence-2-base --output ov_models/florence-2-base",  # as with a name of the hub
            f"{CONVERT} --model florence-community/Florence-2-base --output ov_models/florence-2-base-int8 "
            "--precision int8 --calibration pictures",  # tests/test_precision.py does it
            VERIFY,
            f"{VERIFY} --inference-precision default",
            f"{VERIFY} --device GPU --inference-precision default",
            ".venv/bin/python -m training.scenes --output scenes --count 200 --seed 20261124",
            ".venv/bin/python -m benchmarks.random_checkpoint --geometry large --output large",
            ".venv/bin/python -m benchmarks.media",
            ".venv/bin/python -m benchmarks.gpu",  # tests/test_gpu.py
            ".venv/bin/python -m gpu.emulation COMMAND",
            ".venv/bin/python -m gpu.check --only scenes",  # builds kernels for minutes; tests/test_gpu.py
            ".venv/bin/python -m gpu.plugin_faults",
            ".venv/bin/python -m gpu.compile --geometry bundled --chip lnl --chip tgllp",  # tests/test_gpu_compile.py
            ".venv/bin/python -m benchmarks.load --seconds 60",
            ".venv/bin/python -m benchmarks.overhead",
            ".venv/bin/python -m benchmarks.throughput --model DIR",
            ".venv/bin/python -m benchmarks.step --model DIR",
            ".venv/bin/python -m benchmarks.scores",
            ".venv/bin/python -m benchmarks.classes",  # tests/test_classes.py, of fewer scenes
            ".venv/bin/python -m benchmarks.distinct",
            ".venv/bin/python -m benchmarks.distinct --curve --clips 30",
            ".venv/bin/python -m benchmarks.distinct --clips 50 --seed 20261201",
            ".venv/bin/python -m benchmarks.tiles",
            ".venv/bin/python -m training.gallery --output counted.jpg --count 12 --width 1220",
            ".venv/bin/python -m training.gallery --output beyond.jpg --count 6 --unseen",
        ),
        is_accepted,
    ),
    **dict.fromkeys(
        (
            ".venv/bin/python -m pytest -m long -rP tests/test_precision.py",
            ".venv/bin/python -m pytest -rP tests/test_operations.py",
            ".venv/bin/python -m pytest -rP tests/test_graphs.py -k activations",
            ".venv/bin/python -m pytest -rP tests/test_quantization.py",
            ".venv/bin/python -m pytest -rP tests/test_page.py -k light_and_closed",
        ),
        are_tests,
    ),
    **dict.fromkeys(
        (
            "docker build -t florence_tagger .",
            "docker build --build-arg DRIVERS= -t florence_tagger .",
            "docker build --target convert -t florence_tagger-convert .",
            f"{CPU} florence_tagger",
            f'{CPU} --device /dev/dri --group-add "$(stat -c %g /dev/dri/renderD128)" florence_tagger',
            'docker run --rm -v "$PWD/models:/models" --user "$(id -u)" -e HOME=/tmp -e HF_HOME=/tmp '
            "florence_tagger-convert --model florence-community/Florence-2-base --output /models/florence-2-base",
            "docker stop",
            "docker stop -t 35",
        ),
        is_of_the_image,
    ),
    "hf download florence-community/Florence-2-base --local-dir Florence-2-base": is_an_option_of_hf,
    "pip install .": partial(
        is_tested, path="tests/test_package.py", name="test_what_is_installed_runs_and_says_how_to_get_a_model"
    ),
    "cp training/run/checkpoint/* training/florence-2-tiny/": partial(
        is_tested, path="tests/test_training.py", name="test_training_goes_on_where_it_ended"
    ),
    "apt-get install ffmpeg": is_of_the_system,
}
COMMANDS = all_commands()
RUN = {name: text for name, text in COMMANDS.items() if name not in INSTEAD}
# Exit codes that are not 0, as the documents say.
ENDS = {
    ".venv/bin/python -m florence_tagger count --json florence_tagger/web/samples/street.png tests/scenes/truth.png": 1,
}
# Blocks of text that are nobody's answer, by their first words.
ILLUSTRATIONS = ("florence_tagger/   what serves",)


@dataclass(frozen=True)
class Printed:
    """What a command printed, and its exit code."""

    output: str
    error: str
    code: int


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that commands are run in. What it has of the repository are links; what they write is new in it."""
    place = tmp_path_factory.mktemp("reader")
    for path in ROOT.iterdir():
        if path.name not in KEPT:
            (place / path.name).symlink_to(path)
    (place / ".venv").symlink_to(sys.prefix)
    (place / "ov_models").mkdir()
    (place / "ov_models" / "florence-2-tiny").symlink_to(ROOT / "ov_models" / "florence-2-tiny")
    (place / "florence-community").mkdir()
    (place / "pictures").mkdir()
    for name in ("florence-community/Florence-2-base", "Florence-2-base"):
        (place / name).symlink_to(CHECKPOINT)
    for name in ("scene00.png", "scene01.jpg", "scene02.png"):
        shutil.copy(SCENES / name, place / "pictures" / name)
    return place


@pytest.fixture(scope="module")
def server_with_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_server(tmp_path_factory.mktemp("with_key") / "log.txt", "--api-key", KEY)
    yield running
    assert stop_server(running) == 0, running.log.read_text()


@pytest.fixture(scope="module")
def printed(place: Path, server: RunningServer, server_with_key: RunningServer) -> dict[str, Printed]:
    """What each of the commands printed that can be run as they are."""
    assert shutil.which("curl"), "these tests need curl: apt-get install curl"

    def served(text: str) -> str:
        return text.replace(SERVICE, server_with_key.url if "X-API-Key" in text else server.url)

    real = {name for name in RUN if "Florence-2-base" in name or "florence-2-base" in name}
    shells = [{name: served(text) for name, text in RUN.items() if (name in real) is one} for one in (True, False)]
    with ThreadPoolExecutor(len(shells)) as pool:
        first, second = pool.map(partial(run_all, place), shells)
    return first | second


def run_all(place: Path, commands: dict[str, str]) -> dict[str, Printed]:
    """What commands print, run by a shell one after the other."""
    script = [f"{text}\nprintf '{END}%s{END}' $?; printf '{END}' >&2" for text in commands.values()]
    run = subprocess.run(
        ["bash", "-c", "\n".join(["set -o pipefail", *script])],
        cwd=place,
        env={name: value for name, value in os.environ.items() if not name.startswith("FLORENCE_")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    outputs, errors = run.stdout.split(END), run.stderr.split(END)
    return {
        name: Printed(output, error, int(code))
        for name, output, code, error in zip(commands, outputs[::2], outputs[1::2], errors, strict=False)
    }


@pytest.mark.parametrize("name", RUN)
def test_commands_that_can_be_run(name: str, printed: dict[str, Printed]) -> None:
    assert printed[name].code == ENDS.get(name, 0), printed[name].error
    assert "Traceback" not in printed[name].error


@pytest.mark.parametrize("name", INSTEAD)
def test_commands_that_are_checked_otherwise(name: str, place: Path) -> None:
    assert name in COMMANDS, "no document has it any more"
    INSTEAD[name](name, place)


@pytest.mark.parametrize("block", [block for block in SHELL if block.answer], ids=str)
def test_commands_answer_as_is_shown(block: Block, printed: dict[str, Printed]) -> None:
    assert block.answer
    compare(block.answer, "".join(printed[plain(command)].output for command in block.commands))


@pytest.mark.parametrize("document", PYTHON, ids=lambda path: path.name)
def test_programs_answer_as_is_shown(document: Path, place: Path, server: RunningServer) -> None:
    blocks = PYTHON[document]
    program = f"print({END!r}, end='')\n".join(block.text for block in blocks).replace(SERVICE, server.url)
    run = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for block, output in zip(blocks, run.stdout.split(END), strict=True):
        if block.answer:
            compare(block.answer, output)
        else:
            assert not output


def compare(shown: Block, output: str) -> None:
    """An answer as it is shown, beside what was really said."""
    if shown.kind == "json":
        assert json.loads(output) == alike(json.loads(shown.text))
    else:
        assert masked(output) == masked(shown.text)


def alike(value: Any) -> Any:
    """What is equal to all values that may stand in the place of one in JSON."""
    if isinstance(value, dict):
        return {name: WRITERS.get(name) or alike(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [alike(inner) for inner in value]
    return pytest.approx(value, rel=0.01) if isinstance(value, float) else value


@dataclass(frozen=True, eq=False)
class Form:
    """Equal to all texts of a form."""

    pattern: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and re.fullmatch(self.pattern, other) is not None

    __hash__ = None  # type: ignore[assignment]


WRITERS = {"memory_used": Form(r"\d+\.\d"), "ram_used": Form(r"\d+\.\d\d")}


def masked(text: str) -> str:
    """A text without the hashes of models."""
    return re.sub(r"\b[0-9a-f]{12}\b", "(hash)", text)


def test_every_block_says_what_it_is() -> None:
    for block in (block for blocks in BLOCKS.values() for block in blocks):
        assert block.kind in ("sh", "python") or block.text.startswith(ILLUSTRATIONS), f"{block} is of no known kind"


def test_every_document_is_named_by_the_readme() -> None:
    named = linked(ROOT / "README.md")
    assert {document for document in DOCUMENTS if document.parent == ROOT / "docs"} <= named


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_documents_name_is_there(document: Path) -> None:
    assert all(path.exists() for path in linked(document)), sorted(p for p in linked(document) if not p.exists())
    files = {
        name
        for name in inline_code(document)
        if re.fullmatch(r"\.?\w[\w.-]*/[\w./-]+\.(?:py|md|svg|json|txt|html)", name)
    }
    bases = (ROOT, ROOT / "florence_tagger")
    assert [name for name in sorted(files) if not any((base / name).exists() for base in bases)] == []


def linked(document: Path) -> set[Path]:
    """The files of this repository that a document links to or shows."""
    parts = [part for token in tokens_of(document) for part in token.children or ()]
    targets = [str(part.attrs.get("href") or part.attrs.get("src") or "") for part in parts]
    return {
        (document.parent / target.partition("#")[0]).resolve()
        for target in targets
        if target and not target.startswith(("http:", "https:", "#"))
    }


class Busy(BaseHTTPRequestHandler):
    """A service that has no room when it is asked for the first time."""

    asked: list[float]  # when
    url: str  # of the service that has room

    def do_POST(self) -> None:
        self.asked.append(time.monotonic())
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if len(self.asked) == 1:
            self.send_response(503)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        answer = requests.post(f"{self.url}/process", data=body, timeout=60).content
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass


def test_the_program_waits_for_a_busy_service(place: Path, server: RunningServer) -> None:
    first = PYTHON[ROOT / "docs" / "clients.md"][0]
    Busy.asked, Busy.url = [], server.url
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as busy:
        Thread(target=busy.serve_forever, daemon=True).start()
        program = first.text.replace(SERVICE, f"http://127.0.0.1:{busy.server_port}")
        run = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False)
        busy.shutdown()
    assert first.answer
    assert (run.stdout, run.stderr) == (first.answer.text, "")
    refused, accepted = Busy.asked
    assert accepted - refused >= 1
