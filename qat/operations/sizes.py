"""Conditions on the sizes of inputs, without which a graph does not hold: torch.export follows one call and its branches."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

OPERATORS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
"""The operators of terms."""


def check_sizes(conditions: tuple[tuple[str, Any], ...], names: tuple[str, ...], *tensors: Tensor) -> None:
    """Check that tensors have sizes for which the graph holds.

    Args:
        conditions: a text and a term each: ("x.shape[1] <= 16", ("<=", ("size", 0, 1), 16)).
        names: what the tensors are called in the texts.

    Raises:
        ValueError: they have not.
    """
    for text, term in conditions:
        if not value_of(term, tensors):
            shapes = [f"{name} has the shape {tuple(x.shape)}" for name, x in zip(names, tensors, strict=True)]
            raise ValueError(
                f"{' and '.join(shapes)}, and the graph was made for {text} alone: prepare the model with example_inputs of "
                "this size, or let forward depend on no size."
            )


def value_of(term: Any, tensors: tuple[Tensor, ...]) -> int:
    """The value of a term.

    It is a number, ("size", number of the tensor, axis), ("ndim", number of the tensor), or an operator and two terms.

    >>> value_of(("<=", ("size", 0, 1), 16), (Tensor(4, 20),))
    False
    """
    if isinstance(term, int):
        return term
    if term[0] == "ndim":
        return tensors[term[1]].ndim
    symbol, first, second = term
    if symbol == "size":
        return tensors[first].shape[second]
    return OPERATORS[symbol](value_of(first, tensors), value_of(second, tensors))
