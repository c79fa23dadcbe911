"""The serving image's Debian suite and packages of Intel's GPU driver, read from the Dockerfile."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIRROR = "http://deb.debian.org/debian"
# For package mirrors that lag behind: package lists expire after a week.
STALE_MIRROR = 'Acquire::Check-Valid-Until "false";\n'


def suite(dockerfile: str) -> str:
    """Return the name of the image's Debian suite."""
    return only(r"^ARG BASE=debian:(\w+)-slim$", dockerfile)


def driver_packages(dockerfile: str) -> tuple[str, ...]:
    """Return the packages of the GPU driver, with the loader of OpenCL drivers first."""
    installed = only(r"install --yes --no-install-recommends (\S+) \$\{DRIVERS\}", dockerfile)
    return (installed, *only(r'^ARG DRIVERS="([^"]+)"$', dockerfile).split())


def only(pattern: str, text: str) -> str:
    """Return the group of a pattern's only match.

    Raises:
        ValueError: there is no match, or more than one.
    """
    (match,) = re.findall(pattern, text, re.MULTILINE)
    return str(match)
