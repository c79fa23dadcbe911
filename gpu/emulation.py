"""Emulated Intel GPU: OpenVINO's real GPU plugin on Intel's OpenCL runtime for CPUs, behind the OpenCL layer `layer.c`.

`python -m gpu.emulation COMMAND ...` sets up the emulated GPU under `build/` and runs a command on it.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import click

from deploy.debian import ROOT

LAYER_SOURCE = Path(__file__).with_name("layer.c")
# What the runtime compiles for on CPUs with AVX512-FP16. For these themselves its compiler crashes on kernels of
# calibrated graphs ("Cannot emit physreg copy instruction"), and its erf of halves errs by 3.4 units in the last place.
# Without the instructions it computes in f32 and rounds, as Intel's compiler for GPUs does for erf.
TARGET = "skx"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
HEADER = Path("/usr/include/CL/cl_layer.h")
PACKAGES = {"cc": "gcc", HEADER.name: "opencl-headers"}  # Debian packages by the program or header that they provide


class SetupError(Exception):
    """Failed setup of the emulated GPU or the driver; the message names what is missing."""


@dataclass(frozen=True)
class Counters:
    """Work of the device since the start of the process; see `struct counters` in layer.c.

    Attributes:
        kernels: number of kernels run.
        waits: number of calls in which the host waited for the device.
        copies: number of transfers in any direction.
        host_to_device, device_to_host, within_device: bytes transferred.
    """

    kernels: int
    waits: int
    copies: int
    host_to_device: int
    device_to_host: int
    within_device: int

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(self)))


def read_counters() -> Counters:
    """Return the counters of this process, which must run on the emulated GPU."""
    values = (ctypes.c_uint64 * len(fields(Counters)))()
    ctypes.CDLL(os.environ["OPENCL_LAYERS"]).emulated_gpu_counters(ctypes.byref(values))
    return Counters(*values)


def is_emulated() -> bool:
    """Return True if this process runs on the emulated GPU."""
    return "EMULATED_GPU_KERNELS" in os.environ


def set_up(folder: Path = ROOT / "build" / "emulated-gpu") -> Mapping[str, str]:
    """Set up the emulated GPU in a folder, unless it exists, and return the environment variables that it needs.

    Raises:
        SetupError: a package of the system is missing and can't be installed, or one of PyPI can't be installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runtime, layer = folder / "venv", folder / "layer.so"
    if is_outdated(folder / "installed", REQUIREMENTS):
        install_runtime(runtime)
        (folder / "installed").touch()
    if is_outdated(layer, LAYER_SOURCE):
        build_layer(layer)
    target = {"CL_CONFIG_CPU_TARGET_ARCH": TARGET} if computes_in_f16() else {}
    kernels = folder / f"kernels-{TARGET}" if target else folder / "kernels"
    for path in (folder / "vendors", kernels):
        path.mkdir(exist_ok=True)
    (folder / "vendors" / "cpu.icd").write_text(f"{runtime / 'lib' / 'libintelocl.so'}\n")
    return {
        "OCL_ICD_VENDORS": str(folder / "vendors"),
        "LD_LIBRARY_PATH": str(runtime / "lib"),
        "LD_PRELOAD": str(runtime / "lib" / "libtbb.so.12"),  # instead of OpenVINO's, which is older
        "OPENCL_LAYERS": str(layer),
        "EMULATED_GPU_KERNELS": str(kernels),
        **target,
    }


def computes_in_f16() -> bool:
    """Return True if this CPU has AVX512-FP16."""
    return "avx512_fp16" in Path("/proc/cpuinfo").read_text()


def is_outdated(target: Path, source: Path) -> bool:
    """Return True if a target is missing or older than its source."""
    return not target.exists() or target.stat().st_mtime < source.stat().st_mtime


def install_runtime(runtime: Path) -> None:
    """Install Intel's OpenCL runtime for CPUs from PyPI in a separate virtual environment."""
    print("Installing Intel's OpenCL runtime for CPUs (830 MB, once)", file=sys.stderr, flush=True)
    venv.create(runtime, with_pip=True, clear=True)
    pip = (runtime / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    try:
        subprocess.run((*pip, "-r", REQUIREMENTS), check=True)
    except subprocess.CalledProcessError as exc:
        raise SetupError(f"Intel's OpenCL runtime can't be installed from PyPI: {exc}") from exc


def build_layer(layer: Path) -> None:
    """Compile the layer with Debian's compiler and headers; install them if missing and run as root."""
    missing = [PACKAGES["cc"]] * (shutil.which("cc") is None) + [PACKAGES[HEADER.name]] * (not HEADER.exists())
    if missing:
        install_packages(missing)
    part = layer.with_suffix(f".{os.getpid()}")
    subprocess.run(("cc", "-O2", "-shared", "-fPIC", "-o", part, LAYER_SOURCE), check=True)
    part.rename(layer)


def install_packages(names: list[str]) -> None:
    """Install Debian packages.

    Raises:
        SetupError: they can't be installed; the message has the command that installs them.
    """
    command = f"apt-get install {' '.join(names)}"
    if os.geteuid() or shutil.which("apt-get") is None:
        raise SetupError(f"The emulated GPU needs {', '.join(names)}: sudo {command}")
    print(f"Installing {', '.join(names)}", file=sys.stderr, flush=True)
    try:
        subprocess.run(("apt-get", "-qq", "update"), check=True)
        subprocess.run(("apt-get", "-qq", "install", "--no-install-recommends", *names), check=True, stdout=sys.stderr)
    except subprocess.CalledProcessError as exc:
        raise SetupError(f"The emulated GPU needs {', '.join(names)}, and `{command}` fails: {exc}") from exc


def run_on_emulated_gpu(discrete: bool = False) -> None:
    """Restart this process on the emulated GPU, unless it runs there: its libraries are loaded at the start.

    Args:
        discrete: emulate a discrete GPU, which has separate memory.

    Raises:
        SetupError: see `set_up`, or the process runs on an emulated GPU of the other kind.
    """
    if is_emulated():
        if discrete != (os.environ.get("EMULATED_GPU_DISCRETE") == "1"):
            raise SetupError("This process has another emulated GPU already: start it without one.")
        return
    environment = {**os.environ, **set_up(), "EMULATED_GPU_DISCRETE": str(int(discrete))}
    os.execve(sys.executable, (sys.executable, *sys.orig_argv[1:]), environment)  # noqa: S606 - the command of this process


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(command: tuple[str, ...]) -> None:
    """Run a command on the emulated GPU."""
    try:
        environment = set_up()
    except SetupError as exc:
        raise click.ClickException(str(exc)) from exc
    os.execvpe(command[0], command, {**os.environ, **environment})  # noqa: S606 - a command of the caller


if __name__ == "__main__":
    main()
