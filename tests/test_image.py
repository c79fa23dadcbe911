"""What the Dockerfile says; `make image-check` builds it."""

import re

import pytest

from deploy.debian import driver_packages, only, suite
from tests.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVING = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[-1]


def test_the_last_stage_serves_as_an_unprivileged_user() -> None:
    assert SERVING.startswith("python AS serve\n")
    assert re.search(r"^USER [1-9]\d*$", SERVING, re.MULTILINE)
    assert "\nEXPOSE 5011\n" in SERVING
    assert "\nHEALTHCHECK " in SERVING
    assert '\nVOLUME ["/models", "/cache"]\n' in SERVING


def test_nothing_of_conversion_gets_into_the_serving_stage() -> None:
    assert "convert" not in SERVING
    assert "torch" not in (ROOT / "requirements.txt").read_text().partition("\n")[2]


def test_the_driver_may_be_left_out() -> None:
    assert re.search(r"^ARG DRIVERS=\"[^\"]*intel-opencl-icd[^\"]*libze-intel-gpu1[^\"]*\"$", SERVING, re.MULTILINE)
    assert "${DRIVERS}" in SERVING


def test_the_base_and_the_driver_are_read_from_it() -> None:
    assert f"debian:{suite(DOCKERFILE)}-slim" in DOCKERFILE
    packages = driver_packages(DOCKERFILE)
    assert {"ocl-icd-libopencl1", "intel-opencl-icd", "libze-intel-gpu1"} <= set(packages)
    assert all(package in SERVING for package in packages)


@pytest.mark.parametrize("text", ["", "ARG A=1\nARG A=2\n"])
def test_a_dockerfile_that_does_not_name_it_once(text: str) -> None:
    with pytest.raises(ValueError, match="to unpack"):
        only(r"^ARG A=(\d)$", text)
