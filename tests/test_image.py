"""What the Dockerfile says; `make image-check` builds it."""

import re

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
