"""Names of things -> the label that is meant: white space, case and plurals aside, and by the aliases of a file.

JSON is read by the standard library, YAML by PyYAML.
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
    """Return what names of one thing have in common: no case, single spaces, the last word in the singular."""
    *words, last = name.casefold().split() or [""]
    return " ".join((*words, singular(last)))


@dataclass(frozen=True)
class Aliases:
    """The labels that names are folded into, by the normalized names."""

    labels: Mapping[str, str] = field(default_factory=dict)

    def fold(self, name: str) -> str:
        """Return the label that a name stands for, the name itself if it is no alias."""
        return self.labels.get(normalize(name), name)


def name_classes(classes: Iterable[str], aliases: Aliases) -> dict[str, str]:
    """Return the classes that are asked for by the normalized labels that they stand for.

    Raises:
        RequestError: two of them stand for the same.
    """
    names: dict[str, str] = {}
    for name in classes:
        label = normalize(aliases.fold(name))
        if label in names:
            raise RequestError(f"classes has {names[label]!r} and {name!r}, which are one thing; one name is accepted.")
        names[label] = name
    return names


def read_aliases(path: Path | None) -> Aliases:
    """Read a file of aliases: for each label, a list of names that are folded into it; none where there is no file.

    Raises:
        SettingsError: the file can't be read, has another form, or maps a name twice.
    """
    if path is None:
        return Aliases()
    try:
        return aliases_in(parse(path))
    except OSError as exc:
        reason = f"it can't be read: {system_words(exc)}"
    except UnicodeDecodeError as exc:
        reason = f"it can't be read: {json_words(exc)}"
    except SettingsError as exc:
        reason = str(exc)
    raise SettingsError(f"FLORENCE_ALIASES={path}: {reason}.")


def aliases_in(table: Any) -> Aliases:
    """Return the aliases of a table; SettingsError where it has another form, or maps a name twice."""
    labels: dict[str, str] = {}
    for label, name in pairs_of(table):
        key = normalize(name)
        if key in labels:
            raise SettingsError(f"it maps {name!r} twice, to {labels[key]!r} and to {label!r}")
        labels[key] = label
    return Aliases(labels)


def pairs_of(table: Any) -> list[tuple[str, str]]:
    """Return each label of a table with itself and with each of its aliases; SettingsError where that can't be."""
    if not isinstance(table, dict):
        raise SettingsError(FORM)
    pairs = []
    for label, names in table.items():
        if not isinstance(names, list) or not all(isinstance(one, str) and one.strip() for one in (label, *names)):
            raise SettingsError(f"{label!r} has {str(names)[:50]!r}; {FORM}")
        own = normalize(label)  # a list may have another form of the label: {"people": ["person"]}
        pairs += [(label, label), *((label, name) for name in names if normalize(name) != own)]
    return pairs


def parse(path: Path) -> Any:
    """Return the value of a JSON or YAML file; SettingsError where it is neither, or an object has a key twice."""
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() in YAML_ENDINGS:
        return parse_yaml(text)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:
        raise SettingsError(f"{json_words(exc)}; {FORM}") from exc


def unique(pairs: list[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
    """Return an object of pairs; SettingsError where one key is there twice."""
    found: dict[Hashable, Any] = {}
    for key, value in pairs:
        if key in found:
            raise SettingsError(f"it has {key!r} twice")
        found[key] = value
    return found


class UniqueLoader(yaml.SafeLoader):
    """PyYAML's safe loader; of a key that is there twice it would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping whose keys are there once."""
        return unique(
            [(self.construct_object(key, deep), self.construct_object(value, True)) for key, value in node.value]
        )


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text; SettingsError where it is none."""
    try:
        return yaml.load(text, UniqueLoader)  # noqa: S506 - it is a safe loader
    except yaml.MarkedYAMLError as exc:
        line = f" at line {exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise SettingsError(f"it stops being YAML{line}; {FORM}") from exc
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as exc:  # as for a date in month 13
        raise SettingsError(f"it is no YAML; {FORM}") from exc
