"""What an operator asks when something is wrong: versions, devices, why not the GPU, model files, a test picture."""

import logging
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from florence_tagger import __version__
from florence_tagger.config import SAMPLES, Settings
from florence_tagger.counting import count_detections
from florence_tagger.errors import TaggerError
from florence_tagger.florence.devices import CORE, choose_device, find_devices
from florence_tagger.florence.manifest import ModelManifest, check_hashes, load_manifest
from florence_tagger.florence.model import Florence2, load_model
from florence_tagger.labels import read_aliases
from florence_tagger.media.images import open_picture

logger = logging.getLogger(__name__)

SAMPLE = SAMPLES / "street.png"
LIBRARIES = ("openvino", "numpy", "pillow", "av", "tokenizers", "flask", "gunicorn")
RENDER_NODES = Path("/dev/dri")
OPENCL_VENDORS = Path("/etc/OpenCL/vendors")
DRIVER_HINT = "install intel-opencl-icd and libze-intel-gpu1 (Debian, Ubuntu), in the container, too"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        ok: True is well, False is a fault, None is for information.
    """

    what: str
    ok: bool | None
    text: str


def check_installation(settings: Settings, core: Any = CORE) -> Iterator[Check]:
    """Looks at everything a service with these settings needs, the quickest first."""
    yield Check("florence_tagger", None, f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield Check("libraries", None, ", ".join(f"{name} {version(name)}" for name in LIBRARIES))
    yield from check_devices(settings, core)
    try:
        aliases = read_aliases(settings.aliases)
        if settings.aliases is not None:
            yield Check("aliases", True, f"{settings.aliases} folds {len(aliases.labels)} names")
    except TaggerError as exc:
        yield Check("aliases", False, str(exc))
    try:
        folder = load_manifest(settings.model_dir)
        check_hashes(folder)
        yield Check("model files", True, f"{folder.path}: {folder.name}, {folder.precision}, {folder.sha256[:12]}")
        yield from try_model(folder, settings, core)
    except TaggerError as exc:
        yield Check("model", False, str(exc))
    except Exception:  # a driver that fails is what this command is for
        logger.exception("the model could not be tried")
        yield Check("model", False, "it can't be tried: OpenVINO or a driver reports an error, and the log has it")


def check_devices(settings: Settings, core: Any = CORE) -> Iterator[Check]:
    """What OpenVINO sees, what these settings would use, and what stands in the way of a GPU."""
    found = find_devices(core)
    for device in found:
        yield Check(device.name, None, f"{device.full_name}; {', '.join(device.capabilities)}")
    try:
        chosen = choose_device(settings.device, [device.name for device in found])
        fallback = f", and {chosen[1]} for what does not compile there" if len(chosen) > 1 else ""
        yield Check("in use", True, f"{chosen[0]}{fallback} (FLORENCE_DEVICE={settings.device})")
    except TaggerError as exc:
        yield Check("in use", False, str(exc))
    if not any(device.name.startswith("GPU") for device in found):
        for reason in gpu_obstacles():
            yield Check("no GPU", None, reason)


def gpu_obstacles(nodes: Path = RENDER_NODES, vendors: Path = OPENCL_VENDORS) -> list[str]:
    """Why OpenVINO may not see an Intel GPU, as far as files tell."""
    render = sorted(nodes.glob("renderD*")) if nodes.is_dir() else []
    if not render:
        return [f"{nodes} has no render node: no GPU, or the container was started without --device {nodes}"]
    reasons = [
        f"{node} may not be opened: add the user to its group (id {node.stat().st_gid}; --group-add in a container)"
        for node in render
        if not os.access(node, os.R_OK | os.W_OK)
    ]
    if not (vendors.is_dir() and any(vendors.glob("*intel*"))):
        reasons.append(f"{vendors} names no Intel driver: {DRIVER_HINT}")
    return reasons or ["render node and driver are there: is it an Intel GPU, and is the driver new enough for it?"]


def try_model(folder: ModelManifest, settings: Settings, core: Any = CORE) -> Iterator[Check]:
    """Loads the model, tests its device, and counts what is in a sample picture."""
    started = time.perf_counter()
    florence2 = load_model(folder, settings, core)
    loading = time.perf_counter() - started
    if florence2.device_test is not None:
        yield Check("self-test", florence2.device_test.passed, str(florence2.device_test))
    yield try_picture(florence2, settings, loading)


def try_picture(florence2: Florence2, settings: Settings, loading: float) -> Check:
    """Counts what is in a sample picture."""
    folder, started = florence2.folder, time.perf_counter()
    frame = open_picture(SAMPLE.read_bytes(), folder.image_size, settings.max_pixels)
    counts = count_detections(florence2.detect(frame).detections)
    seconds = time.perf_counter() - started
    places = ", ".join(f"{name} on {device}" for name, device in florence2.devices.items())
    said = f"{SAMPLE.name} has {counts}, in {seconds:.2f} s; loaded in {loading:.1f} s; {places}"
    if set(florence2.devices.values()) == {"CPU"}:
        return Check("test picture", True, said)
    exact = load_model(folder, settings.model_copy(update={"device": "CPU", "precision": "f32"}))
    expected = count_detections(exact.detect(frame).detections)
    same = counts == expected
    return Check("test picture", same, said + ("; the CPU says the same" if same else f"; the CPU says {expected}"))
