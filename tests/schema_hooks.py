"""Loaded by schemathesis: its check that good requests are taken, with the rules that JSON Schema has no words for.

A number in a string has the range of the number, `num_labels` and `num_classes` are equal where both are given, and no
two classes are the same thing or, for a task that takes a text, more than it may be.
"""

from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from florence_tagger.labels import normalize
from florence_tagger.prompts import MAX_TEXT, SEPARATOR

RANGES = {
    "num_labels": (0, 10_000),
    "num_classes": (0, 10_000),
    "min_score": (0, 1),
    "merge_iou": (0, 1),
    "tiles": (1, 6),
    "video_fps": (1e-320, 1),
    "video_max_frames": (1, 32),
    "video_max_seconds": (1e-320, 3600),
}


def number_in(value: Any) -> float | None:
    """The number that a value is or that a string says; None where there is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def within_rules(body: Any) -> bool:
    """Whether a body keeps to the rules."""
    if not isinstance(body, dict):
        return True
    numbers = {name: number for name in RANGES if (number := number_in(body.get(name))) is not None}
    in_range = all(
        RANGES[name][0] <= number <= RANGES[name][1] for name, number in numbers.items() if isinstance(body[name], str)
    )
    if isinstance(classes := body.get("classes"), list) and not are_apart(classes):
        return False
    return in_range and len({numbers[name] for name in ("num_labels", "num_classes") if name in numbers}) < 2


def are_apart(classes: list[Any]) -> bool:
    """Whether classes are different things, and few enough to be a text."""
    names = [normalize(one) for one in classes if isinstance(one, str)]
    return (
        len(set(names)) == len(names) and len(SEPARATOR.join(names)) <= MAX_TEXT // 3
    )  # as they came, they may be longer


@schemathesis.check
def acceptance_within_rules(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """schemathesis' positive_data_acceptance, of requests that keep to the rules."""
    return positive_data_acceptance(ctx, response, case) if within_rules(case.body) else None
