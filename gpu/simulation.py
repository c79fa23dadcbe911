"""Intel's GPU driver without a GPU: the packages of the container image, unpacked, and the driver's simulated chips.

The driver compiles with the same compiler (IGC) as on a real chip, but computes nothing, and values read back are
undefined. No package is installed and root is not required: apt downloads the packages with separate lists below
`build/`, and their dynamic loader starts this Python, whose libc is older than the one that the driver is linked to.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.debian import MIRROR, ROOT, STALE_MIRROR, driver_packages, suite
from gpu.emulation import SetupError

BUILD = ROOT / "build" / "gpu-compile"
TOOLS = {"apt-get": "apt", "dpkg-deb": "dpkg"}
KEYRING, KEYRING_PACKAGE = Path("/usr/share/keyrings/debian-archive-keyring.gpg"), "debian-archive-keyring"
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
OPENCL = "intel-opencl-icd"  # the package whose version is the driver's version
RECORD = "driver.json"  # record of the unpacked packages, written last
# Variables of Intel's compute-runtime (shared/source/debug_settings/debug_variables_base.inl): enable debug variables,
# and send commands to a simulated stream (1 is AUB) that is not written to a file.
SIMULATION = {
    "NEOReadDebugKeys": "1",
    "SetCommandStreamReceiver": "1",
    "UseAubStream": "0",
    "UseExternalAllocatorForSshAndDsh": "0",
    # The simulation does not write timestamps; the driver, which waits for a queue's on Battlemage, would wait forever.
    "EnableTimestampWaitForQueues": "0",
}
# Compiled kernels are not cached in the home folder, so that times are those of a first start.
NO_CACHE = {"NEO_CACHE_PERSISTENT": "0"}


@dataclass(frozen=True)
class Chip:
    """Chip that the driver can compile for.

    Attributes:
        name: the driver's name of the chip.
        product: name of the product, and its architecture.
        configuration: slices x sub-slices per slice x execution units per sub-slice of a common model.
    """

    name: str
    product: str
    configuration: str


CHIPS = (
    Chip("tgllp", "Tiger Lake (Xe-LP)", "1x6x16"),
    Chip("mtl", "Meteor Lake (Xe-LPG)", "2x4x16"),
    Chip("dg2", "Arc A (Xe-HPG)", "8x4x16"),
    Chip("lnl", "Lunar Lake (Xe2-LPG)", "2x4x8"),
    Chip("bmg", "Battlemage, Arc B (Xe2-HPG)", "5x4x8"),
    Chip("ptl", "Panther Lake (Xe3-LPG)", "2x6x8"),
)


@dataclass(frozen=True)
class Driver:
    """Unpacked driver.

    Attributes:
        folder: folder with `tree`, the files of the packages.
        versions: version of each package by name.
    """

    folder: Path
    versions: dict[str, str]

    @property
    def version(self) -> str:
        """Version of the driver."""
        return self.versions[OPENCL]

    @property
    def libraries(self) -> Path:
        """Folder of the shared libraries."""
        return self.folder / "tree" / LIBRARIES

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs this Python with the driver's libraries."""
        loader = str(self.libraries / "ld-linux-x86-64.so.2")
        inherited = os.environ.get("LD_LIBRARY_PATH", "")
        paths = ":".join(filter(None, (str(self.libraries), inherited)))
        return [loader, "--library-path", paths, "--argv0", sys.executable, sys.executable, *arguments]

    def environment(self, chip: Chip) -> dict[str, str]:
        """Return the environment in which the driver simulates a chip."""
        simulated_chip = {"ProductFamilyOverride": chip.name, "HardwareInfoOverride": chip.configuration}
        vendors = {"OCL_ICD_VENDORS": str(self.libraries / "intel-opencl" / "libigdrcl.so")}
        return {**os.environ, **SIMULATION, **NO_CACHE, **vendors, **simulated_chip}


def set_up_driver(folder: Path = BUILD / "driver") -> Driver:
    """Download and unpack the driver packages of the Dockerfile in their latest versions, unless they exist.

    Raises:
        SetupError: this machine can't download or run the driver.
    """
    dockerfile = (ROOT / "Dockerfile").read_text()
    requested = [suite(dockerfile), *driver_packages(dockerfile)]
    record = folder / RECORD
    if not record.is_file() or json.loads(record.read_text())["wanted"] != requested:
        check_machine()
        shutil.rmtree(folder, ignore_errors=True)
        versions = unpack(download(folder, *requested), folder)
        record.write_text(json.dumps({"wanted": requested, "versions": versions}, indent=1) + "\n")
    driver = Driver(folder, json.loads(record.read_text())["versions"])
    check_libc(driver.versions["libc6"])
    return driver


def check_machine() -> None:
    """Raise SetupError if packages can't be downloaded, or the driver does not run on this machine."""
    if platform.machine() != "x86_64":
        raise SetupError(f"Intel's driver is for x86_64, this machine is {platform.machine()}.")
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    missing += [] if KEYRING.exists() else [KEYRING_PACKAGE]
    if missing:
        raise SetupError(f"The driver comes from Debian by apt, which takes the packages {', '.join(missing)} here.")


def check_libc(version: str) -> None:
    """Raise SetupError if this Python requires a newer libc than `version`, that of the driver's suite."""
    local_version = platform.libc_ver()[1]
    if parse_version(local_version) > parse_version(version):
        raise SetupError(f"This machine's libc {local_version} is newer than the {version} of the driver's suite.")


def parse_version(version: str) -> tuple[int, ...]:
    """Return the release of a version: (2, 43) for "2.43-7"."""
    return tuple(int(part) for part in version.partition("-")[0].split("."))


def download(folder: Path, suite_name: str, *packages: str) -> list[Path]:
    """Download packages of a suite and their dependencies, verified by apt with Debian's keys."""
    apt = folder / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()  # empty, so that apt downloads all dependencies
    (apt / "sources.list").write_text(f"deb [arch=amd64 signed-by={KEYRING}] {MIRROR} {suite_name} main\n")
    (apt / "apt.conf").write_text(
        f'Dir::State "{apt}/state";\nDir::State::status "{apt}/status";\nDir::Cache "{apt}/cache";\n'
        f'Dir::Etc::sourcelist "{apt}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        'APT::Update::Error-Mode "any";\nAPT::Architecture "amd64";\nAPT::Install-Recommends "false";\n'
        f'APT::Sandbox::User "";\nAcquire::Languages "none";\n{STALE_MIRROR}'
    )
    run_apt(apt, "update")
    run_apt(apt, "install", "--yes", "--download-only", *packages)
    return sorted((apt / "cache" / "archives").glob("*.deb"))


def run_apt(apt: Path, *arguments: str) -> None:
    """Run apt-get with the configuration in a folder.

    Raises:
        SetupError: apt-get failed; the message has its error output.
    """
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    process = subprocess.run(
        ["apt-get", "-qq", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise SetupError(f"apt-get {arguments[0]} from {MIRROR} failed: {process.stderr.strip()}")


def unpack(packages: Sequence[Path], folder: Path) -> dict[str, str]:
    """Unpack packages, and return the version of each by name."""
    versions = {}
    for package in packages:
        subprocess.run(["dpkg-deb", "--extract", package, folder / "tree"], check=True)
        name, version = (field(package, name) for name in ("Package", "Version"))
        versions[name] = version
    shutil.rmtree(folder / "apt")
    return versions


def field(package: Path, name: str) -> str:
    """Return a field of a package's control file."""
    command = ["dpkg-deb", "--field", str(package), name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
