"""Modules whose classes are made at run time, and which can still be copied and pickled: unpickling makes the class again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

ClassFactory = Callable[..., type[nn.Module]]


def with_class(module: nn.Module, make: ClassFactory, *arguments: Any) -> None:
    """Give `module` the class `make(type(module), *arguments)`, a subclass of its own, in place.

    Args:
        module: any module.
        make: an importable function, which is pickled by its name; returns a new class each time.
        arguments: of `make`, pickled with the module.
    """
    base = type(module)
    made = make(base, *arguments)
    made.recipe_of_class = (base, make, arguments)  # type: ignore[attr-defined]
    made.__reduce_ex__ = _reduce  # type: ignore[method-assign,assignment]
    if not hasattr(base, "__deepcopy__"):
        made.__deepcopy__ = _deepcopy  # type: ignore[attr-defined]
    if not hasattr(base, "__copy__"):
        made.__copy__ = _copy  # type: ignore[attr-defined]
    module.__class__ = made


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    steps = []
    cls: Any = type(module)
    while "recipe_of_class" in vars(cls):
        cls, make, arguments = cls.recipe_of_class
        steps.append((make, arguments))
    return _rebuild, (cls, steps[::-1]), module.__getstate__()


def _rebuild(cls: type[nn.Module], steps: list[tuple[ClassFactory, tuple[Any, ...]]]) -> nn.Module:
    module = cls.__new__(cls)
    for make, arguments in steps:
        with_class(module, make, *arguments)
    return module


def _copy(module: nn.Module) -> nn.Module:
    duplicate = type(module).__new__(type(module))
    duplicate.__setstate__(copy.copy(module.__getstate__()))
    return duplicate


def _deepcopy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy with the same class, which need not be made again."""
    cls = type(module)
    duplicate = cls.__new__(cls)
    memo[id(module)] = duplicate
    duplicate.__setstate__(copy.deepcopy(module.__getstate__(), memo))
    return duplicate
