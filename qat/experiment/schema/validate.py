"""Checks a whole configuration against the schema; the first mistake is one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from qat.experiment.schema.configuration import Configuration
from qat.experiment.schema.nodes import Off
from qat.experiment.schema.values import Section
from qat.experiment.schema.words import at, keys_of, sections_in, values_of
from qat.experiment.suggestion import unknown_key


def check_configuration(config: DictConfig) -> None:
    """Check every key of the configuration, also those that are handed to Lightning, torch and W&B.

    Keys that other keys refer to (`${mine}`) may have any name.

    Raises:
        ValueError: a key is unknown, or its value is not possible; the message says what to write instead.
    """
    content = _resolved(config)
    referred = set(references(OmegaConf.to_container(config, resolve=False)))
    for may_import in (False, True):
        mistakes = [
            (key, details)
            for key, details in _mistakes(content, may_import)
            if details["type"] != "extra_forbidden" or ".".join(map(str, key)) not in referred
        ]
        if mistakes:
            raise ValueError(_sentence(*_first(mistakes), content))


def _mistakes(content: Any, may_import: bool) -> list[tuple[list[str | int], Any]]:
    """The keys down to each mistake, and pydantic's details of it."""
    try:
        Configuration.model_validate(content, context={"may_import": may_import})
    except ValidationError as error:
        return [(_key(details, content), details) for details in error.errors(include_url=False)]
    return []


def _first(mistakes: list[tuple[list[str | int], Any]]) -> tuple[list[str | int], Any]:
    """The mistake to name: an unknown key, which explains others, or the first.

    A key that may have several types is a mistake in each of them; the deepest one comes from the type that fits best.
    """
    key, _ = next((m for m in mistakes if m[1]["type"] in ("extra_forbidden", "unknown")), mistakes[0])
    return max((m for m in mistakes if m[0][: len(key)] == key), key=lambda m: len(m[0]))


def _resolved(config: DictConfig) -> Any:
    for name in keys_of(Configuration):
        if OmegaConf.is_missing(config, name):
            raise ValueError(f"{name} has no value (???): write {name}=VALUE.")
        if name not in config:
            raise ValueError(f"{name} is missing: leave it in, a run needs it.")
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} has no value (???): write {error.full_key}=VALUE.") from None
    except OmegaConfBaseException as error:
        raise ValueError(_without_keys(config) or _unresolved(config) or str(error)) from None


def _without_keys(config: DictConfig) -> str:
    """What to say of a section that has a value in place of its keys, to which others refer."""
    content: Any = OmegaConf.to_container(config, resolve=False)
    for name, field in keys_of(Configuration).items():
        value, section = content[name], field.annotation
        if (
            isinstance(section, type)
            and issubclass(section, Section)
            and not (isinstance(value, dict) or "${" in str(value))
        ):
            return f"{name}={_written(value)} is not possible: write {values_of(section)}."
    return ""


def _unresolved(config: DictConfig) -> str:
    """A sentence about a key that cannot be resolved; "" if all can. The shortest is named: others may refer to it."""
    found: dict[str, str] = {}

    def look(part: Any) -> None:
        for key in part if OmegaConf.is_dict(part) else range(len(part)):
            try:
                value = part[key]
            except OmegaConfBaseException as error:
                found[str(error.full_key)] = str(error).split("\n")[0]
            else:
                if OmegaConf.is_config(value):
                    look(value)

    look(config)
    if not found:
        return ""
    name = min(found, key=lambda key: (key.count("."), len(key)))
    if "Recursive" in found[name]:
        return f"{name} refers to itself: write a value."
    return f"{name} refers to something that does not exist ({found[name]})."


def _key(details: Any, content: Any) -> list[str | int]:
    """The keys down to a mistake: pydantic's location without the names of types."""
    key: list[str | int] = []
    for step in details["loc"]:
        inside = (isinstance(content, Mapping) and step in content) or (
            isinstance(content, list) and isinstance(step, int) and step < len(content)
        )
        if inside:
            key.append(step)
            content = content[step]
    if details["type"] == "missing":
        key.append(details["loc"][-1])
    return [*key, *details.get("ctx", {}).get("key", [])]


def _sentence(key: list[str | int], details: Any, content: Any) -> str:
    name = ".".join(map(str, key))
    parent: tuple[Any, Any] = (None, ())
    container: Any = None
    here: tuple[Any, Any] = (Configuration, ())
    value = content
    for step in key:
        parent, container = here, value
        here = at(*parent, step, value)
        value = value.get(step) if isinstance(value, Mapping) else value[int(step)] if isinstance(value, list) else None
    context = details.get("ctx", {})
    if details["type"] == "wrong":
        return context["sentence"].replace("{key}", name).replace("{value}", _written(value))
    if details["type"] == "unknown":
        return unknown_key(name, [_sibling(name, k) for k in context["known"]], context["owner"])
    if details["type"] == "extra_forbidden":
        kind = next(iter(sections_in(*parent)), None)
        kind = next((item.kind(container) for item in parent[1] if hasattr(item, "kind")), kind)
        if kind is Off:
            group = name.rpartition(".")[0]
            return f"{name} is not possible with {group}=none: choose another with {group}=NAME."
        return unknown_key(name, [_sibling(name, k) for k in keys_of(kind or Configuration)])
    if details["type"] == "missing":
        beside = f" beside {', '.join(map(str, container))}" if isinstance(container, Mapping) and container else ""
        return f"{name} is missing{beside}: write {name}=VALUE, {values_of(*here)}."
    return f"{name}={_written(value)} is not possible: write {values_of(*here)}."


def _sibling(name: str, key: str) -> str:
    return f"{name.rpartition('.')[0]}.{key}".lstrip(".")


def _written(value: Any) -> str:
    """A value as in an error message.

    >>> _written(True), _written(None), _written("maybe"), _written(1e30)
    ('true', 'null', "'maybe'", '1e+30')
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def references(content: Any, key: tuple[str, ...] = ()) -> Iterator[str]:
    """The keys that `${...}` names in a configuration that is not resolved, and the keys above them."""
    if isinstance(content, Mapping):
        for name, inner in content.items():
            yield from references(inner, (*key, str(name)))
    elif isinstance(content, list):
        for i, inner in enumerate(content):
            yield from references(inner, (*key, str(i)))
    elif isinstance(content, str):
        for dots, name in re.findall(r"\$\{(\.*)([\w.]+)\}", content):
            path = [*key[: len(key) - len(dots)], *name.split(".")] if dots else name.split(".")
            yield from (".".join(path[: i + 1]) for i in range(len(path)))
