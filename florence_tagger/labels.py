"""Normalization of labels: white space, case and plurals are ignored, and aliases of a file are folded.

JSON is parsed by the standard library, YAML by PyYAML.
"""

import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from florence_tagger.errors import RequestError, SettingsError
from florence_tagger.plurals import singular
from florence_tagger.wording import json_words, system_words

YAML_ENDINGS = (".yaml", ".yml")
FORM = 'accepted is an object of lists of names, as in {"car": ["vehicle", "taxi"]}'


@lru_cache(maxsize=10_000)
def normalize(name: str) -> str:
    """Return the normal form of a name: case-folded, single spaces, the last word in the singular."""
    *words, last = name.casefold().split() or [""]
    return " ".join((*words, singular(last)))


@dataclass(frozen=True)
class Aliases:
    """A mapping from normalized names to the labels into which they are folded."""

    labels: Mapping[str, str] = field(default_factory=dict)

    def fold(self, name: str) -> str:
        """Return the label that a name stands for, the name itself if it is no alias."""
        return self.labels.get(normalize(name), name)


def name_classes(classes: Iterable[str], aliases: Aliases) -> dict[str, str]:
    """Return the names of the requested classes by their normalized labels.

    Raises:
        RequestError: two classes have the same label.
    """
    names: dict[str, str] = {}
    for name in classes:
        label = normalize(aliases.fold(name))
        if label in names:
            raise RequestError(f"classes has {names[label]!r} and {name!r}, which are one thing; one name is accepted.")
        names[label] = name
    return names


def read_aliases(path: Path | None) -> Aliases:
    """Read a file of aliases: for each label, a list of names that are folded into it.

    Args:
        path: of the file; None for no aliases.

    Raises:
        SettingsError: the file can't be read, has another form, or maps a name twice.
    """
    if path is None:
        return Aliases()
    try:
        return parse_aliases(parse_file(path))
    except OSError as exc:
        reason = f"it can't be read: {system_words(exc)}"
    except UnicodeDecodeError as exc:
        reason = f"it can't be read: {json_words(exc)}"
    except SettingsError as exc:
        reason = str(exc)
    raise SettingsError(f"FLORENCE_ALIASES={path}: {reason}.")


def parse_aliases(table: Any) -> Aliases:
    """Return the aliases of a table; raise SettingsError if it has another form, or maps a name twice."""
    labels: dict[str, str] = {}
    for label, name in alias_pairs(table):
        key = normalize(name)
        if key in labels:
            raise SettingsError(f"it maps {name!r} twice, to {labels[key]!r} and to {label!r}")
        labels[key] = label
    return Aliases(labels)


def alias_pairs(table: Any) -> list[tuple[str, str]]:
    """Return the pairs (label, name) of a table, each label with itself and with its aliases.

    Raises:
        SettingsError: the table has another form.
    """
    if not isinstance(table, dict):
        raise SettingsError(FORM)
    pairs = []
    for label, names in table.items():
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in (label, *names)):
            raise SettingsError(f"{label!r} has {str(names)[:50]!r}; {FORM}")
        normalized = normalize(label)  # a list may repeat the label in another form: {"people": ["person"]}
        pairs += [(label, label), *((label, name) for name in names if normalize(name) != normalized)]
    return pairs


def parse_file(path: Path) -> Any:
    """Return the value of a JSON or YAML file; raise SettingsError if it is neither, or an object has a key twice."""
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() in YAML_ENDINGS:
        return parse_yaml(text)
    try:
        return json.loads(text, object_pairs_hook=unique_dict)
    except (ValueError, RecursionError) as exc:
        raise SettingsError(f"{json_words(exc)}; {FORM}") from exc


def unique_dict(pairs: list[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
    """Return a dictionary of pairs; raise SettingsError if a key occurs twice."""
    values: dict[Hashable, Any] = {}
    for key, value in pairs:
        if key in values:
            raise SettingsError(f"it has {key!r} twice")
        values[key] = value
    return values


class UniqueLoader(yaml.SafeLoader):
    """PyYAML's safe loader with an error for duplicate keys, of which it would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping; raise SettingsError if a key occurs twice."""
        return unique_dict(
            [(self.construct_object(key, deep), self.construct_object(value, True)) for key, value in node.value]
        )


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text; raise SettingsError if it is not YAML."""
    try:
        return yaml.load(text, UniqueLoader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as exc:
        line = f" at line {exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise SettingsError(f"it stops being YAML{line}; {FORM}") from exc
    except (
        yaml.YAMLError,
        RecursionError,
        TypeError,
        ValueError,
    ) as exc:  # as for month 13
        raise SettingsError(f"it is no YAML; {FORM}") from exc
