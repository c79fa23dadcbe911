"""The Debian that the serving image stands on, as the Dockerfile names it: its suite, and Intel's driver in it."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIRROR = "http://deb.debian.org/debian"
# A package mirror may lag behind: lists are good for a week by their own word.
STALE_MIRROR = 'Acquire::Check-Valid-Until "false";\n'


def suite(dockerfile: str) -> str:
    """Return the name of the suite that the image is based on."""
    return only(r"^ARG BASE=debian:(\w+)-slim$", dockerfile)


def driver_packages(dockerfile: str) -> tuple[str, ...]:
    """Return the packages of the GPU's driver, the loader of OpenCL drivers first."""
    installed = only(r"install --yes --no-install-recommends (\S+) \$\{DRIVERS\}", dockerfile)
    return (installed, *only(r'^ARG DRIVERS="([^"]+)"$', dockerfile).split())


def only(pattern: str, text: str) -> str:
    """Return the group of the one match of a pattern.

    Raises:
        ValueError: there is none, or more than one.
    """
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return str(found)
