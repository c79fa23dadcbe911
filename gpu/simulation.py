"""Intel's GPU driver without a GPU: the image's packages, unpacked, and the driver's own simulation of a chip.

The driver compiles for the chip as it would on one, with the same compiler (IGC); nothing is computed, and what is
read back means nothing. No package is installed and nobody has to be root: apt loads the packages with lists of its
own below `build/`, and their dynamic loader starts this Python, whose libc is older than what the driver is linked to.
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
OPENCL = "intel-opencl-icd"  # the package whose version the driver is known by
RECORD = "driver.json"  # of what was unpacked, written when all is complete
# Of Intel's compute-runtime (shared/source/debug_settings/debug_variables_base.inl): read these variables; send
# commands to a simulated stream (1 is AUB) that nothing writes to a file.
SIMULATION = {
    "NEOReadDebugKeys": "1",
    "SetCommandStreamReceiver": "1",
    "UseAubStream": "0",
    "UseExternalAllocatorForSshAndDsh": "0",
    # Nobody writes timestamps: the driver, which waits for those of a queue on Battlemage, would wait for ever.
    "EnableTimestampWaitForQueues": "0",
}
# Compiled kernels are not kept below the home folder: times are those of a first start.
NO_CACHE = {"NEO_CACHE_PERSISTENT": "0"}


@dataclass(frozen=True)
class Chip:
    """A chip that the driver can compile for.

    Attributes:
        name: the driver's.
        product: as it is sold, and its architecture.
        configuration: slices x sub-slices of each x execution units of each, of a common model.
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
    """The driver, unpacked.

    Attributes:
        folder: has `tree`, the files of the packages.
        versions: of the packages, by their names.
    """

    folder: Path
    versions: dict[str, str]

    @property
    def version(self) -> str:
        """The driver's own version."""
        return self.versions[OPENCL]

    @property
    def libraries(self) -> Path:
        """The folder of its shared libraries."""
        return self.folder / "tree" / LIBRARIES

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs this Python on the driver's libraries."""
        loader = str(self.libraries / "ld-linux-x86-64.so.2")
        inherited = os.environ.get("LD_LIBRARY_PATH", "")
        paths = ":".join(filter(None, (str(self.libraries), inherited)))
        return [loader, "--library-path", paths, "--argv0", sys.executable, sys.executable, *arguments]

    def environment(self, chip: Chip) -> dict[str, str]:
        """Return the environment in which the driver simulates a chip."""
        simulated = {"ProductFamilyOverride": chip.name, "HardwareInfoOverride": chip.configuration}
        only = {"OCL_ICD_VENDORS": str(self.libraries / "intel-opencl" / "libigdrcl.so")}
        return {**os.environ, **SIMULATION, **NO_CACHE, **only, **simulated}


def set_up_driver(folder: Path = BUILD / "driver") -> Driver:
    """Load and unpack the driver that the Dockerfile names, unless it is there, in the versions of today.

    Raises:
        SetupError: this machine can't load or run it.
    """
    dockerfile = (ROOT / "Dockerfile").read_text()
    wanted = [suite(dockerfile), *driver_packages(dockerfile)]
    record = folder / RECORD
    if not record.is_file() or json.loads(record.read_text())["wanted"] != wanted:
        check_machine()
        shutil.rmtree(folder, ignore_errors=True)
        versions = unpack(download(folder, *wanted), folder)
        record.write_text(json.dumps({"wanted": wanted, "versions": versions}, indent=1) + "\n")
    driver = Driver(folder, json.loads(record.read_text())["versions"])
    check_libc(driver.versions["libc6"])
    return driver


def check_machine() -> None:
    """Raise a SetupError where packages can't be loaded, or the driver does not run."""
    if platform.machine() != "x86_64":
        raise SetupError(f"Intel's driver is for x86_64, this machine is {platform.machine()}.")
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    missing += [] if KEYRING.exists() else [KEYRING_PACKAGE]
    if missing:
        raise SetupError(f"The driver comes from Debian by apt, which takes the packages {', '.join(missing)} here.")


def check_libc(version: str) -> None:
    """Raise a SetupError where this Python wants a newer libc than the driver's suite has."""
    own = platform.libc_ver()[1]
    if as_numbers(own) > as_numbers(version):
        raise SetupError(f"This machine's libc {own} is newer than the {version} of the driver's suite.")


def as_numbers(version: str) -> tuple[int, ...]:
    """Return the release of a version, "2.43-7" being (2, 43)."""
    return tuple(int(part) for part in version.partition("-")[0].split("."))


def download(folder: Path, suite_name: str, *packages: str) -> list[Path]:
    """Load packages of a suite and all that they depend on; apt checks them against Debian's keys."""
    apt = folder / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()  # nothing is installed: dependencies are loaded, too
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
    """Run apt-get with the configuration in a folder; a SetupError has its own words."""
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    run = subprocess.run(["apt-get", "-qq", *arguments], env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SetupError(f"apt-get {arguments[0]} from {MIRROR} failed: {run.stderr.strip()}")


def unpack(packages: Sequence[Path], folder: Path) -> dict[str, str]:
    """Unpack packages, and return their versions by their names."""
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
