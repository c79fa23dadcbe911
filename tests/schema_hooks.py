"""Hooks of schemathesis: its check that valid requests are accepted, with rules that JSON Schema can't express.

A number in a string has the range of the number, `num_labels` and `num_classes` are equal if both are given, all
classes differ after normalization, and together they fit the length of a prompt's text.
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
    """Return the value of a number or of a string with a number; None for other values."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def within_rules(body: Any) -> bool:
    """Return whether a body conforms to the rules."""
    if not isinstance(body, dict):
        return True
    numbers = {name: number for name in RANGES if (number := number_in(body.get(name))) is not None}
    in_range = all(
        RANGES[name][0] <= number <= RANGES[name][1] for name, number in numbers.items() if isinstance(body[name], str)
    )
    if isinstance(classes := body.get("classes"), list) and not are_valid_classes(classes):
        return False
    return in_range and len({numbers[name] for name in ("num_labels", "num_classes") if name in numbers}) < 2


def are_valid_classes(classes: list[Any]) -> bool:
    """Return whether classes differ, and are short enough for a prompt's text."""
    names = [normalize(name) for name in classes if isinstance(name, str)]
    max_length = MAX_TEXT // 3  # before normalization, names may be longer
    return len(set(names)) == len(names) and len(SEPARATOR.join(names)) <= max_length


@schemathesis.check
def acceptance_within_rules(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """Apply schemathesis' positive_data_acceptance to requests that conform to the rules."""
    return positive_data_acceptance(ctx, response, case) if within_rules(case.body) else None
