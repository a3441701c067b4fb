"""Classes that a policy names: from a name or a class to plain data, and from plain data to the class and its options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar

from qat.estimators import Estimator
from qat.messages import with_article
from qat.observers import Observer
from qat.quantizers import LookupTableQuantizer, Quantizer, ScaledFloat

T = TypeVar("T")

Part = str | Mapping[str, Any] | type
"""A class and its options: "LSQ", "my.module.MyQuantizer", the class MyQuantizer itself, or, with options,
{"_target_": "Percentile", "percentile": 99.9}, whose `_target_` may be a class, too."""

PlainPart = str | Mapping[str, Any]
"""A `Part` as plain data: classes are replaced by their names."""

_PACKAGES: dict[type, str] = {
    Quantizer: "qat.quantizers",
    Observer: "qat.observers",
    Estimator: "qat.estimators",
}
"""Where a name without a module is looked up."""

_permitted: ContextVar[Mapping[str, Any] | None] = ContextVar("permitted", default=None)
"""What names may stand for while a policy from a file is read; None: anything that can be imported."""

_GIVEN_BY_POLICY = ("spec", "shape", "observer")
"""Arguments of quantizers and observers that are not options."""


@contextmanager
def only_known_classes(allow: Iterable[Any] = ()) -> Iterator[None]:
    """Inside the `with` block, a name stands for a class of this project or one of `allow`, and nothing is imported."""
    known = {import_path(x): x for x in allow}
    for package in map(importlib.import_module, _PACKAGES.values()):
        for name in package.__all__:
            found = getattr(package, name)
            known |= {f"{package.__name__}.{name}": found, import_path(found): found}
    token = _permitted.set(known)
    try:
        yield
    finally:
        _permitted.reset(token)


def import_path(named: Any) -> str:
    """The path by which a class or a function can be imported."""
    return f"{named.__module__}.{named.__qualname__}" if hasattr(named, "__qualname__") else repr(named)


def plain_part(part: Part, base: type) -> PlainPart:
    """`part` with every class replaced by its name: a short name inside this project, else an import path.

    >>> plain_part({"_target_": Quantizer, "estimator": Estimator}, Quantizer)
    {'_target_': 'Quantizer', 'estimator': 'Estimator'}

    Raises:
        ValueError: a class cannot be imported by its path.
    """
    if isinstance(part, type):
        return _name(part, base)
    if not isinstance(part, Mapping):
        return part
    named: dict[str, Any] = {}
    if isinstance(target := part.get("_target_"), type):
        named["_target_"] = _name(target, base)
    if base is Quantizer and isinstance(estimator := part.get("estimator"), type | Mapping):
        named["estimator"] = plain_part(estimator, Estimator)
    return {**part, **named} if named else part


def resolve_quantizer(part: Part) -> tuple[type[Quantizer], dict[str, Any]]:
    """The quantizer's class and its options. An option `estimator`, itself a `Part`, becomes a new estimator.

    Raises:
        ValueError: see `resolve`.
    """
    cls, options = resolve(part, Quantizer)
    if "estimator" in options:
        estimator, estimator_options = resolve(options["estimator"], Estimator)
        options["estimator"] = construct(estimator, **estimator_options)
    return cls, options


def resolve(part: Part, base: type) -> tuple[Any, dict[str, Any]]:
    """The class that `part` names, and its options. Only subclasses of `base` are accepted.

    Raises:
        ValueError: there is no such class, or it has no such option.
    """
    noun = with_article(base.__name__.lower())
    if not isinstance(part, str | Mapping | type):
        raise ValueError(f"{part!r} is not {noun}: write the name of a class, or {{_target_: NAME, ...}}.")
    part = plain_part(part, base)
    options = {} if isinstance(part, str) else dict(part)
    name = part if isinstance(part, str) else str(options.pop("_target_", ""))
    if not name:
        raise ValueError(f"{part!r} does not name {noun}: add _target_, the name of its class.")
    found = _imported(name, _PACKAGES[base])
    if not (isinstance(found, type) and issubclass(found, base)):
        known = ", ".join(_subclasses(base))
        raise ValueError(f"{name!r} is not {noun}: write one of {known}, or the import path of your own class.")
    _check_options(found, options)
    return found, options


def construct(cls: type[T], *arguments: Any, **options: Any) -> T:
    """An object of `cls`.

    Raises:
        ValueError: the class does not work with these options.
    """
    try:
        return cls(*arguments, **options)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{cls.__name__} cannot be built with {options}: {error}.") from error


def _name(cls: type, base: type) -> str:
    """The name by which `_imported` finds the class."""
    package = _PACKAGES[base]
    if _imported(cls.__name__, package) is cls:
        return cls.__name__
    path = import_path(cls)
    if _imported(path, package) is not cls:
        raise ValueError(
            f"{path} cannot be imported by this path, as a policy in a checkpoint needs: define the class at the top level of "
            "a module."
        )
    return path


def _imported(name: str, package: str) -> Any:
    """What `name` stands for: an import path, or a name in `package`. None if there is no such thing."""
    module, _, attribute = name.rpartition(".")
    if (permitted := _permitted.get()) is not None:
        path = name if module else f"{package}.{name}"
        if module and path not in permitted:
            raise ValueError(
                f"{name} is not a class of qat, and a file may name no others: if you trust it, import it and pass the class "
                f"itself, allow=[{attribute}]."
            )
        return permitted.get(path)
    try:
        return getattr(importlib.import_module(module or package), attribute, None)
    except ImportError:
        return None


def _subclasses(base: type) -> list[str]:
    """Names of the project's own subclasses of `base` that a policy can use."""
    package = importlib.import_module(_PACKAGES[base])
    exported = {name: getattr(package, name) for name in package.__all__}
    classes = {name: value for name, value in exported.items() if isinstance(value, type) and issubclass(value, base)}
    return [name for name, cls in classes.items() if cls not in (base, LookupTableQuantizer, ScaledFloat)]


def _check_options(cls: type, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that the class does not take."""
    parameters = _parameters(cls)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [name for name in parameters if name not in _GIVEN_BY_POLICY]
    for option in options:
        if option not in known:
            raise ValueError(f"{option!r} is not an option of {cls.__name__}; it has {', '.join(known) or 'none'}.")


@lru_cache
def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls).parameters
