"""An emulated Intel GPU: OpenVINO's real GPU plugin on Intel's OpenCL runtime for CPUs, behind a layer of ours.

`python -m gpu.emulation COMMAND ...` sets up what is needed under `build/` and runs a command with it.
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
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
HEADER = Path("/usr/include/CL/cl_layer.h")
PACKAGES = {"cc": "gcc", HEADER.name: "opencl-headers"}  # Debian's, by what they bring


class SetupError(Exception):
    """A GPU can't be made up for here; says what is missing."""


@dataclass(frozen=True)
class Counters:
    """What was asked of the device since the process began: see `struct counters` in layer.c.

    Attributes:
        kernels: that were run.
        waits: calls in which the host waited for the device.
        copies: transfers of any direction, each of any size.
        host_to_device, device_to_host, within_device: bytes of them.
    """

    kernels: int
    waits: int
    copies: int
    host_to_device: int
    device_to_host: int
    within_device: int

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(self)))


def read_counters() -> Counters:
    """Return the counters of this process, which runs on the emulated GPU."""
    values = (ctypes.c_uint64 * len(fields(Counters)))()
    ctypes.CDLL(os.environ["OPENCL_LAYERS"]).emulated_gpu_counters(ctypes.byref(values))
    return Counters(*values)


def is_emulated() -> bool:
    """Return whether this process has the emulated GPU."""
    return "EMULATED_GPU_KERNELS" in os.environ


def set_up(folder: Path = ROOT / "build" / "emulated-gpu") -> Mapping[str, str]:
    """Set up the emulated GPU in a folder, where it is not there already, and return the environment that it needs.

    Raises:
        SetupError: a package of the system is missing and can't be installed, or one of PyPI can't be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runtime, layer = folder / "venv", folder / "layer.so"
    if is_older(folder / "installed", REQUIREMENTS):
        install_runtime(runtime)
        (folder / "installed").touch()
    if is_older(layer, LAYER_SOURCE):
        build_layer(layer)
    for name in ("vendors", "kernels"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "vendors" / "cpu.icd").write_text(f"{runtime / 'lib' / 'libintelocl.so'}\n")
    return {
        "OCL_ICD_VENDORS": str(folder / "vendors"),
        "LD_LIBRARY_PATH": str(runtime / "lib"),
        "LD_PRELOAD": str(runtime / "lib" / "libtbb.so.12"),  # before OpenVINO's own, which is older
        "OPENCL_LAYERS": str(layer),
        "EMULATED_GPU_KERNELS": str(folder / "kernels"),
    }


def is_older(made: Path, source: Path) -> bool:
    """Return whether something has to be made, or made anew, from a file."""
    return not made.exists() or made.stat().st_mtime < source.stat().st_mtime


def install_runtime(runtime: Path) -> None:
    """Install Intel's OpenCL runtime for CPUs from PyPI, in an environment of its own."""
    print("Installing Intel's OpenCL runtime for CPUs (830 MB, once)", file=sys.stderr, flush=True)
    venv.create(runtime, with_pip=True, clear=True)
    pip = (runtime / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    try:
        subprocess.run((*pip, "-r", REQUIREMENTS), check=True)
    except subprocess.CalledProcessError as exc:
        raise SetupError(f"Intel's OpenCL runtime can't be installed from PyPI: {exc}") from exc


def build_layer(layer: Path) -> None:
    """Compile the layer, with Debian's compiler and headers, which root gets installed."""
    missing = [PACKAGES["cc"]] * (shutil.which("cc") is None) + [PACKAGES[HEADER.name]] * (not HEADER.exists())
    if missing:
        install_packages(missing)
    part = layer.with_suffix(f".{os.getpid()}")
    subprocess.run(("cc", "-O2", "-shared", "-fPIC", "-o", part, LAYER_SOURCE), check=True)
    part.rename(layer)


def install_packages(names: list[str]) -> None:
    """Install Debian packages; SetupError with the command for it where that is not possible."""
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
    """Start this process anew on the emulated GPU, where it is not yet: its libraries are chosen at the start.

    Args:
        discrete: the GPU has memory of its own, as a card has.

    Raises:
        SetupError: as `set_up`.
    """
    if is_emulated():
        if discrete != (os.environ.get("EMULATED_GPU_DISCRETE") == "1"):
            raise SetupError("This process has another emulated GPU already: start it without one.")
        return
    environment = {**os.environ, **set_up(), "EMULATED_GPU_DISCRETE": str(int(discrete))}
    os.execve(sys.executable, (sys.executable, *sys.orig_argv[1:]), environment)  # noqa: S606 - this very command


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
