"""What may import what, and what the serving side must never load."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "florence_tagger"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Each place may import from those of lower rank; stages have one rank, so that they can't import each other.
RANKS = {
    "bounds": 0,
    "kalman": 0,
    "errors": 0,
    "wording": 0,
    "schemas": 0,
    "config": 1,
    "prompts": 1,
    "plurals": 0,
    "geometry": 1,
    "association": 1,
    "labels": 1,
    "rules": 1,
    "telemetry": 1,
    "context": 1,
    "tiling": 2,
    "stitching": 2,
    "media": 3,
    "florence": 3,
    "scheduler": 3,
    "cache": 3,
    "counting": 3,
    "tracking": 3,
} | {
    "admission": 4,
    "refinement": 4,
    "pipeline": 5,
    "object_counter": 4,
    "client": 5,
    "assembly": 6,
    "tagger": 7,
    "web": 7,
    "bench": 7,
    "doctor": 7,
    "settings_table": 7,
    "count": 8,
    "cli": 9,
    "__main__": 10,
}

# Each foreign library has one owner, of one module or two.
OWNERS = {
    "openvino": (
        "bench/roofline.py",
        *(f"florence/{name}.py" for name in ("devices", "device_memory", "graphs", "packed_graph")),
        *(f"florence/{name}.py" for name in ("packed_decoder", "stateful_decoder")),
    ),
    "tokenizers": ("florence/tokenizer.py",),
    "PIL": ("media",),
    "cv2": ("media/similarity.py",),
    "pillow_heif": ("media/images.py",),
    "tifffile": ("media/samples.py",),
    "av": (
        "media/video.py",
        "media/timeline.py",
        "media/playback.py",
        "media/sandbox/child.py",
        "media/video_writer.py",
    ),
    "puremagic": ("media/formats.py",),
    "pydantic": ("web/routes/openapi.py", "config.py", "web/parameters.py", "web/request.py", "web/envelope.py"),
    "annotated_types": ("web/parameters.py",),
    "pydantic_settings": ("config.py",),
    "httpx": ("client.py",),
    "flask": ("web",),
    "werkzeug": ("web",),
    "gunicorn": ("web/server.py", "web/worker.py", "web/punctual.py", "web/body.py", "web/logs.py"),
    "pythonjsonlogger": ("web/logs.py",),
    "psutil": ("web/envelope.py", "web/metrics.py", "bench/processes.py"),
    "click": ("cli.py",),
    "rich": ("count/writers.py", "count/progress.py", "bench/measurements.py"),
    "cachetools": ("cache.py",),
    "lap": ("association.py",),
    "yaml": ("labels.py",),
    "prometheus_client": ("web/metrics.py",),
}


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield f"{node.module}.{node.names[0].name}" if node.module == "florence_tagger" else str(node.module)


def place_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imports_of(path):
        root = module.partition(".")[0]
        assert root not in {"convert", "training", "benchmarks", "tests"}
        if root in OWNERS:
            owners = {PACKAGE / owner for owner in OWNERS[root]}
            assert owners & {path, *path.parents}, f"{root} has an owner"
        if root == "florence_tagger" and (other := place_of(module)) in RANKS and own in RANKS:
            assert other == own or RANKS[other] < RANKS[own], f"{own} imports {other}"


FOLDERS = ("florence_tagger", "convert", "training", "benchmarks", "gpu", "deploy")
NO_VERB = re.compile(r"(What|Whether|How|Of|The|A|An|Those|Each|All|Where|That)\b")


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_of_functions_begin_with_a_verb(folder: str) -> None:
    """Ruff's D401 knows the verbs, and takes other words for something that it can't judge."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and NO_VERB.match(ast.get_docstring(node) or "")
        if not any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    assert found == []


def test_module_names_are_unique() -> None:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "__" not in path.name]
    names = Counter(path.name for path in paths)
    assert [name for name, times in names.items() if times > 1] == []


def test_openvino_has_one_core() -> None:
    ours = (
        path
        for folder in ("florence_tagger", "convert", "training", "benchmarks", "gpu")
        for path in (ROOT / folder).rglob("*.py")
        if path != ROOT / "gpu" / "reproduce.py"  # which stands by itself
    )
    assert [path for path in ours if re.search(r"\bCore\(", path.read_text())] == [PACKAGE / "florence" / "devices.py"]


def run_fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return result.stdout.strip()


def test_the_whole_package_is_free_of_torch() -> None:
    code = (
        "import pkgutil, importlib, sys, florence_tagger\n"
        "names = [m.name for m in pkgutil.walk_packages(florence_tagger.__path__, 'florence_tagger.')]\n"
        "[importlib.import_module(name) for name in names if not name.endswith('__main__')]\n"
        "print(len(names), {'torch', 'transformers', 'optimum', 'huggingface_hub'} & set(sys.modules))"
    )
    number, _, loaded = run_fresh(code).partition(" ")
    assert int(number) == len(MODULES) - 1
    assert loaded == "set()"


def test_the_server_loads_openvino_only_in_its_worker() -> None:
    assert run_fresh("import sys, florence_tagger.web.server; print('openvino' in sys.modules)") == "False"


def test_import_of_the_package_does_nothing() -> None:
    code = (
        "import sys, threading, logging; before = set(sys.modules)\n"
        "import florence_tagger\n"
        "print(sorted(set(sys.modules) - before), threading.active_count(), logging.getLogger().handlers)"
    )
    assert run_fresh(code) == "['florence_tagger'] 1 []"
