"""Arguments of forward without tensors (None, numbers, flags, texts), whose values a graph has fixed, and their checks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from qat.operations.sizes import check_sizes

PLAIN = (type(None), bool, int, float, complex, str)
"""Types of such arguments, nested or not."""


def check_fixed_argument(value: Any, fixed: Any, name: str) -> None:
    """Check that an argument has the value that the graph was made with; nothing else in a graph reads it.

    Raises:
        ValueError: the value is not the one that the graph was made with.
    """
    if not _same(value, fixed):
        given = "a tensor" if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"{name} is {given}, and the graph was made with {name}={fixed!r}: prepare the model with example_inputs of this "
            "call."
        )


def check_given_argument(value: Any, name: str) -> None:
    """Check that an argument with tensors was given: it comes after optional ones, so Python gives it a default, None.

    Raises:
        ValueError: the call lacks it.
    """
    if value is None:
        raise ValueError(f"{name} is missing, and the graph was made with one: call the model with {name}.")


CHECKS = (check_fixed_argument, check_given_argument, check_sizes)
"""Functions in graphs that check arguments and compute nothing."""


def is_fixed(argument: fx.Node) -> bool:
    """Whether this input of a graph is such an argument."""
    return all(user.target in (check_fixed_argument, check_sizes) for user in argument.users)


def _same(value: Any, fixed: Any) -> bool:
    if isinstance(fixed, dict):
        return (
            isinstance(value, dict)
            and value.keys() == fixed.keys()
            and all(_same(value[k], x) for k, x in fixed.items())
        )
    if isinstance(fixed, list | tuple):
        kind = list if isinstance(fixed, list) else tuple
        return isinstance(value, kind) and len(value) == len(fixed) and all(map(_same, value, fixed))
    return type(value) is type(fixed) and bool(value == fixed)
