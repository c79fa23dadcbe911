"""Ten times what the service can do: refused at once, and what is accepted is right and no slower to come by."""

import pytest

from benchmarks.load import Load, measure


def check(peak: Load, overload: Load) -> None:
    assert peak.other == overload.other == {}, "right, or 503 with Retry-After"
    assert peak.right == peak.offered
    assert overload.offered > 5 * peak.right * overload.seconds / peak.seconds
    assert overload.refused > overload.right > 0
    print(peak, overload, sep="\n")


def test_overload_is_refused_and_the_rest_is_right() -> None:
    """Eight seconds of a slow model, so that a busy machine can send ten times of it: how fast is for the long test."""
    check(*measure(delay=0.2, seconds=8, times=10))


@pytest.mark.long
def test_overload_for_a_minute_costs_little() -> None:
    """Ratios alone: how many milliseconds it is on this machine is printed, and told in docs/operations.md."""
    peak, overload = measure(delay=0.05, seconds=60, times=11.2)
    check(peak, overload)
    assert overload.per_second >= 0.85 * peak.per_second
    assert peak.answered_ms is not None
    assert overload.refused_ms is not None
    assert overload.refused_ms[0] < peak.answered_ms[0] / 4
