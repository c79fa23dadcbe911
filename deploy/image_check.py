"""Build of the serving image with buildah, on a base made by debootstrap, and checks of it: `make image-check`.

Needs root, and Debian. The base has the content of the Dockerfile's `debian:*-slim` but is not that image. The service
runs in separate namespaces, with a read-only root and without a network. A second image, built with `DRIVERS=`, shows
the size of the GPU driver. All processes that the check starts end with it, also on SIGTERM.
"""

import argparse
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.debian import MIRROR, ROOT, STALE_MIRROR, suite

BUILD = ROOT / "build" / "image"
BASE, IMAGE, WITHOUT_DRIVER = "localhost/base", "localhost/florence_tagger", "localhost/florence_tagger-cpu"
TOOLS = {"buildah": "buildah", "debootstrap": "debootstrap", "ip": "iproute2", "unshare": "util-linux"}
EXPECTED = {"backpack": 5, "car": 4, "person": 3}  # the bundled model's counts in the sample picture
STARTING_SECONDS = 120
STOPPING_SECONDS = 40
OMITTED_BY_SLIM = (
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)
COUNT = """
import json, sys, urllib.request
url, headers = "http://127.0.0.1:5011/process", {"Content-Type": "application/json"}
request = urllib.request.Request(url, sys.stdin.buffer.read(), headers)
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""
# Imports all extension modules except those of OpenVINO's frontends, which are left out, and of absent tkinter.
LOAD_MODULES = """
import importlib, pathlib, sysconfig
packages, loaded = pathlib.Path(sysconfig.get_path("purelib")), 0
for path in sorted(packages.rglob("*.so")):
    module = path.relative_to(packages).with_name(path.name.split(".")[0])
    if module.parts[0].endswith(".libs") or module.parts[:2] in (("openvino", "libs"), ("openvino", "frontend")):
        continue
    if module.name != "_imagingtk":
        importlib.import_module(".".join(module.parts))
        loaded += 1
print(loaded)
"""
# Loads OpenVINO's GPU plugin and the driver's libraries, without a GPU.
LOAD_DRIVER = """
import ctypes, openvino, pathlib
openvino.Core().get_versions("GPU")
folders = list(pathlib.Path("/usr/lib").glob("*-linux-gnu"))
names = ("intel-opencl/libigdrcl.so", "libze_intel_gpu.so.1", "libigc.so.2", "libigdfcl.so.2", "libOpenCL.so.1")
for name in names:
    ctypes.CDLL(str(next(path / name for path in folders if (path / name).exists())))
"""
# Sets up a root as a container engine does, then starts a process; `$0` is the root, the arguments are the command.
ENTER = """
set -e
ip link set lo up
mount --make-rprivate /
mount --bind "$0" "$0"
mount -t proc proc "$0/proc"
mount -t sysfs -o ro sysfs "$0/sys"
mount -t tmpfs tmpfs "$0/dev"
for name in null zero random urandom; do touch "$0/dev/$name"; mount --bind "/dev/$name" "$0/dev/$name"; done
mkdir "$0/dev/shm"
mount -t tmpfs tmpfs "$0/dev/shm"
mount -t tmpfs tmpfs "$0/tmp"
mount -t tmpfs -o mode=0755,uid=10001,gid=10001 tmpfs "$0/cache"
mount -o remount,bind,ro "$0"
exec chroot --userspec=10001:10001 "$0" "$@"
"""


class Report:
    """A printed report of findings."""

    def __init__(self) -> None:
        self.failures = 0

    def check(self, holds: bool, finding: str) -> None:
        """Print a finding that must hold, and count it as a failure if it does not."""
        print(f"{'ok      ' if holds else 'NOT HELD'} {finding}", flush=True)
        self.failures += not holds

    def note(self, finding: str) -> None:
        """Print a finding without a requirement."""
        print(f"         {finding}", flush=True)


def run(*command: str | Path) -> str:
    """Run a command in separate namespaces and return its output; CalledProcessError if it fails.

    The namespaces end all processes of the command and release all its mounts when it ends.
    """
    unshare = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    return subprocess.run((*unshare, *command), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def buildah(*arguments: str | Path) -> str:
    """Run buildah with a separate store, whose driver vfs works on every file system; return the output."""
    store = ("--storage-driver", "vfs", "--root", BUILD / "store", "--runroot", BUILD / "run")
    return run("buildah", *store, *arguments)


def make_base(base_suite: str, stale_mirror: bool) -> None:
    """Make the base image, as slim as Debian's own, with this machine's additional certificates."""
    tree = BUILD / "base"
    shutil.rmtree(tree, ignore_errors=True)
    # The script of sid makes every recent suite, and older versions of debootstrap have it, too.
    script = "/usr/share/debootstrap/scripts/sid"
    run("debootstrap", "--variant=minbase", base_suite, tree, MIRROR, script)
    for name in OMITTED_BY_SLIM:
        shutil.rmtree(tree / name, ignore_errors=True)
        (tree / name).mkdir()
    (tree / "etc/dpkg/dpkg.cfg.d/slim").write_text("".join(f"path-exclude /{name}/*\n" for name in OMITTED_BY_SLIM[:3]))
    certificates = Path("usr/local/share/ca-certificates")
    if (Path("/") / certificates).is_dir():
        shutil.copytree(Path("/") / certificates, tree / certificates, dirs_exist_ok=True)
    if stale_mirror:
        (tree / "etc/apt/apt.conf.d/stale-mirror").write_text(STALE_MIRROR)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, tree, "/")
    buildah("commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(tree)


def build(image: str, *options: str) -> None:
    """Build the serving image from the Dockerfile, in Docker's format because OCI's has no HEALTHCHECK."""
    common = ("--isolation", "chroot", "--format", "docker", "--pull-never", "--build-arg", f"BASE={BASE}")
    buildah("bud", *common, *options, "--target", "serve", "--tag", image, ROOT)


def size_of(root: Path) -> int:
    """Return the total size of all files in bytes, each inode counted once."""
    files = {(entry.st_dev, entry.st_ino): entry.st_size for path in root.rglob("*") for entry in (path.lstat(),)}
    return sum(files.values())


def compressed_size_of(root: Path) -> int:
    """Return the bytes of the tree as a registry stores it, as a tar file with gzip -6; writes no file."""
    return int(run("sh", "-c", 'tar --create --directory="$0" . | gzip -6 | wc --bytes', root))


def check_sizes(report: Report, full: Path, without_driver: Path, max_mb: int) -> None:
    """Check the sizes of the image without the driver, unpacked, and of the full image, compressed."""
    unpacked, rest, pulled = size_of(full) / 1e6, size_of(without_driver) / 1e6, compressed_size_of(full) / 1e6
    driver = unpacked - rest
    report.check(
        rest <= max_mb, f"{rest:.0f} MB unpacked without the GPU's driver (built with DRIVERS=), at most {max_mb}"
    )
    report.check(pulled <= max_mb, f"{pulled:.0f} MB the whole as it is pulled (tar, gzip -6), at most {max_mb}")
    excess = f": OVER {max_mb} MB, because of the driver" if unpacked > max_mb else ""
    report.note(f"{unpacked:.0f} MB the whole unpacked, {driver:.0f} MB ({driver / unpacked:.0%}) of it driver{excess}")


def check_contents(report: Report, root: Path, config: dict[str, Any]) -> None:
    """Check the image's declarations and files."""
    report.check(config["User"] not in ("", "0", "root"), f"user {config['User']}")
    report.check("5011/tcp" in config["ExposedPorts"], "port 5011")
    report.check({"/cache", "/models"} <= set(config["Volumes"]), "volumes /cache and /models")
    report.check(bool(config.get("Healthcheck")), "a health check")
    packages = {path.name for path in root.glob("opt/venv/lib/python3*/site-packages/*")}
    report.check(
        "openvino" in packages and not packages & {"torch", "transformers", "pip"}, "OpenVINO, no torch, no pip"
    )
    report.check(not list(root.glob("usr/bin/*gcc*")), "no compiler")
    vendors = [path.read_text().strip() for path in root.glob("etc/OpenCL/vendors/*.icd")]
    report.check(any("igdrcl" in name for name in vendors), f"OpenCL driver: {', '.join(vendors)}")
    libraries = sorted(path.name for path in root.glob("usr/lib/*-linux-gnu/libze_*.so.1"))
    report.check(
        {"libze_intel_gpu.so.1", "libze_loader.so.1"} <= set(libraries), f"level-zero driver: {', '.join(libraries)}"
    )


class Container:
    """The service, running in the image's root file system."""

    def __init__(self, root: Path, config: dict[str, Any]) -> None:
        self._root, self._environment = root, ("env", "-i", f"--chdir={config['WorkingDir']}", *config["Env"])
        enter = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, str(root))
        self.process = subprocess.Popen((*enter, *self._environment, *config["Cmd"]))

    def init_pid(self) -> int:
        """Return the host's id of the container's first process, or 0 before it starts."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def run(self, command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in the container as the image's user."""
        enter = ("nsenter", "--target", str(self.init_pid()), "--mount", "--net", "--pid")
        in_root = ("chroot", "--userspec=10001:10001", str(self._root), *self._environment, *command)
        return subprocess.run((*enter, *in_root), input=stdin, capture_output=True, text=True, check=False)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the service and all its descendants."""
        pids = [self.init_pid()]
        while pids:
            pid = pids.pop()
            os.kill(pid, number)
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def check_service(report: Report, root: Path, config: dict[str, Any], driver: bool) -> None:
    """Check the service in the image, with or without a GPU driver."""
    health = config["Healthcheck"]["Test"][1:]  # without the leading CMD
    container = Container(root, config)
    try:
        started = time.monotonic()
        healthy = False
        while not healthy and container.process.poll() is None and time.monotonic() - started < STARTING_SECONDS:
            time.sleep(0.5)
            healthy = container.run(health).returncode == 0
        report.check(healthy, f"healthy after {time.monotonic() - started:.1f} s, by the image's own command")
        if not healthy:
            return
        report.check(container.run(["id", "-u"]).stdout.strip() == "10001", "runs as 10001")
        report.check(container.run(["touch", "/app/file"]).returncode != 0, "the root is read-only")
        check_counts(report, container)
        devices = container.run(["python", "-m", "florence_tagger", "devices"])
        report.check(devices.returncode == 0 and "in use: CPU" in devices.stdout, "`devices` finds the CPU")
        modules = container.run(["python", "-c", LOAD_MODULES])
        report.check(modules.returncode == 0, f"extension modules load: {modules.stdout.strip() or modules.stderr}")
        if driver:
            loaded = container.run(["python", "-c", LOAD_DRIVER])
            report.check(
                loaded.returncode == 0, f"OpenVINO's GPU plugin and the driver's libraries load{loaded.stderr}"
            )
        cached = container.run(["find", "/cache/openvino", "-name", "*.blob"]).stdout.split()
        report.check(bool(cached), f"{len(cached)} compiled graphs in the cache")
        container.signal_all(signal.SIGSTOP)
        report.check(container.run(health).returncode != 0, "unhealthy while the service is stopped")
        container.signal_all(signal.SIGCONT)
        report.check(container.run(health).returncode == 0, "healthy when it goes on")
        os.kill(container.init_pid(), signal.SIGTERM)
        report.check(container.process.wait(STOPPING_SECONDS) == 0, "SIGTERM ends it with 0")
    finally:
        container.process.kill()


def check_counts(report: Report, container: Container) -> None:
    """Check the counts of a picture sent over HTTP."""
    picture = (ROOT / "florence_tagger/web/samples/street.png").read_bytes()
    document = {"id": "street", "source": {"content": base64.b64encode(picture).decode()}}
    answer = container.run(["python", "-c", COUNT], json.dumps({"documents": [document]}))
    data = json.loads(answer.stdout)["data"] if answer.returncode == 0 else []
    counts = {label: count for result in data for item in result["source"]["content"] for label, count in item.items()}
    report.check(counts == EXPECTED, f"counts street.png over HTTP: {counts or answer.stderr}")


def check_images(report: Report, max_mb: int) -> None:
    """Check both images, in working containers."""
    roots = [Path(buildah("mount", buildah("from", "--pull-never", image))) for image in (IMAGE, WITHOUT_DRIVER)]
    config = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
    check_sizes(report, roots[0], roots[1], max_mb)
    check_contents(report, roots[0], config)
    check_service(report, roots[0], config, driver=True)
    report.note("Without the driver:")
    check_service(report, roots[1], config, driver=False)


def main() -> int:
    """Run all checks, and print their proofs and limits; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = suite((ROOT / "Dockerfile").read_text())
    parser.add_argument("--suite", default=default, help="Debian suite of the base")
    parser.add_argument("--stale-mirror", action="store_true", help="accept a package mirror whose lists have expired")
    parser.add_argument("--keep-image", action="store_true", help="check the images that were built last")
    parser.add_argument("--most-mb", type=int, default=700, help="largest size without the driver, and compressed")
    arguments = parser.parse_args()
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        print(f"This needs root and Debian's packages {', '.join(TOOLS.values())}: apt-get install {' '.join(missing)}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    BUILD.mkdir(parents=True, exist_ok=True)
    report = Report()
    try:
        if not arguments.keep_image:
            make_base(arguments.suite, arguments.stale_mirror)
            build(IMAGE)
            build(WITHOUT_DRIVER, "--build-arg", "DRIVERS=")
        check_images(report, arguments.most_mb)
    finally:
        shutil.rmtree(BUILD / "base", ignore_errors=True)
        buildah("rm", "--all")
    print(
        "\nProved by building the Dockerfile's serving target with buildah and running it in namespaces: the lines "
        f"above, {report.failures} of which did not hold.\nNot proved: that the published base image is as Debian "
        f"{arguments.suite} by debootstrap is, Docker's own engine, the target convert, and anything on a GPU: "
        "its driver's libraries load, no GPU is asked for."
    )
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
