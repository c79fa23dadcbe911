"""What is installed, and the command's options in the documents."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from florence_tagger import __version__
from florence_tagger.config import DEFAULT_MODEL
from tests.conftest import ROOT

PARTS = ("florence_tagger", "convert", "pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md", "requirements.txt")


def run(command: list[str], place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=place, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this package, as `pip install .` builds it, with one more file of the page's."""
    place = tmp_path_factory.mktemp("source")
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, place / name)
    (place / "florence_tagger" / "web" / "page" / "deep").mkdir(parents=True, exist_ok=True)
    (place / "florence_tagger" / "web" / "page" / "deep" / "one.css").touch()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        "out",
        ".",
    ]
    built = run(command, place)
    assert built.returncode == 0, built.stderr
    (made,) = (place / "out").iterdir()
    return made


def test_the_wheel_has_the_package_alone_and_all_of_it(wheel: Path) -> None:
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert {name.parts[0] for name in names} == {"florence_tagger", f"florence_tagger-{__version__}.dist-info"}
    assert Path("florence_tagger/web/page/deep/one.css") in names
    files = [path.relative_to(ROOT) for path in (ROOT / "florence_tagger").rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    assert len(files) > 70
    assert set(files) <= names
    assert sum(info.file_size for info in zipfile.ZipFile(wheel).infolist()) < 10e6


def test_what_is_installed_runs_and_says_how_to_get_a_model(wheel: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(tmp_path / "site")]
    assert run([*command, str(wheel)], tmp_path).returncode == 0
    site = {"PYTHONPATH": str(tmp_path / "site")}
    script = str(tmp_path / "site" / "bin" / "florence-tagger")
    assert __version__ in run([script, "--version"], tmp_path, **site).stdout
    shown = run([script, "--help"], tmp_path, **site).stdout
    assert all(name in shown for name in ("count", "serve", "devices", "doctor", "benchmark"))
    sample = str(tmp_path / "site" / "florence_tagger" / "web" / "samples" / "street.png")
    for arguments in (["count", sample], ["serve"], ["doctor"]):
        without = run([script, *arguments], tmp_path, **site)
        assert without.returncode == (1 if arguments == ["doctor"] else 2)
        assert "set FLORENCE_MODEL_DIR to the folder of one" in without.stderr + without.stdout
        assert "Traceback" not in without.stderr
    counted = run([script, "count", sample], tmp_path, FLORENCE_MODEL_DIR=str(DEFAULT_MODEL), **site)
    assert counted.stdout == f"{sample}  5 backpack, 4 car, 3 person\n"


def test_the_version_is_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    places = [path for path in (ROOT / "florence_tagger").rglob("*.py") if f'"{__version__}"' in path.read_text()]
    assert places == [ROOT / "florence_tagger" / "__init__.py"]
    assert __version__ in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", [ROOT / "requirements.txt", *ROOT.glob("*/requirements.txt")], ids=str)
def test_requirements_locked_versions_are_within_their_ranges(path: Path) -> None:
    locked = {canonicalize_name(one.name): one.specifier for one in requirements_of(ROOT / "constraints.txt")}
    for requirement in requirements_of(path):
        exact = {bound.version for bound in requirement.specifier if bound.operator == "=="}
        versions = {bound.version for bound in locked.get(canonicalize_name(requirement.name), ())} or exact
        assert versions, f"{requirement} is neither locked nor exact"
        assert all(requirement.specifier.contains(version) for version in versions), requirement


def requirements_of(path: Path) -> list[Requirement]:
    """Return the requirements in a file for pip."""
    lines = (line.partition(" #")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_what_comes_from_others_is_named() -> None:
    told = (ROOT / "THIRD_PARTY.md").read_text().lower()
    lists = [ROOT / "requirements.txt", *ROOT.glob("*/requirements.txt")]
    lines = [line for path in lists for line in path.read_text().splitlines() if line and not line.startswith("#")]
    names = {re.split("[=<>~ ]", line)[0].lower() for line in lines}
    assert len(names) > 30
    known_as = {"av": "pyav", "torch": "pytorch", "opencv-python-headless": "opencv"}
    missing = {name for name in names if known_as.get(name, name) not in told}
    assert {name for name in missing if not name.startswith("types-")} == set()


def test_the_documents_have_the_command_s_options() -> None:
    section = (ROOT / "docs" / "command-line.md").read_text()
    told = set(re.findall(r"--[a-z][a-z-]+", section))
    shown = set(
        re.findall(r"--[a-z][a-z-]+", run([sys.executable, "-m", "florence_tagger", "count", "--help"], ROOT).stdout)
    )
    assert shown - {"--help"} == told
