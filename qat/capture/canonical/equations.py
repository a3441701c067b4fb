"""Products of two tensors in all their spellings as one equation, with a letter for each axis, as in torch.einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import fx, nn

from qat.operations import call_of

LETTERS = string.ascii_letters


class Factors(NamedTuple):
    """The call of a product. added: the summand of baddbmm. equation: that of einsum. dims: those of tensordot."""

    name: str
    first: fx.Node
    second: fx.Node
    added: fx.Node | None = None
    equation: str = ""
    dims: Any = None


class Equation(NamedTuple):
    """The axes of two factors and of their product, one letter each."""

    first: str
    second: str
    result: str


def factors_of(model: nn.Module, node: fx.Node) -> Factors | None:
    """The product of two tensors that a node computes; None if it is another operation, or has options that change it."""
    if node.op not in ("call_function", "call_method"):
        return None
    call = call_of(model, node)
    if call.name == "einsum":
        return _einsum(node)
    if call.name not in ("matmul", "mm", "mv", "inner", "tensordot", "baddbmm", "linear"):
        return None
    arguments = dict(call.arguments)
    if arguments.get("bias") is not None or arguments.get("out") is not None:
        return None
    tensors = list(arguments.values())
    added = tensors.pop(0) if call.name == "baddbmm" else None
    if added is not None and (arguments.get("beta", 1), arguments.get("alpha", 1)) != (1, 1):
        return None
    if len(tensors) < 2 or not all(isinstance(tensor, fx.Node) for tensor in tensors[:2]):
        return None
    return Factors(call.name, tensors[0], tensors[1], added, dims=arguments.get("dims"))


def equation_of(factors: Factors, first: int | None, second: int | None) -> Equation | None:
    """The equation of a product; None if it has none, or if it depends on an unknown number of axes.

    first, second: how many axes the factors have; None: unknown.
    """
    match factors.name:
        case "einsum":
            return _expanded(factors.equation, first, second)
        case "baddbmm":
            return Equation("abc", "acd", "abd")
        case "mm":
            return Equation("ab", "bc", "ac")
    if first is None or second is None or min(first, second) < 1:
        return None
    if factors.name in ("matmul", "mv"):
        return _matmul(first, second)
    if factors.name == "tensordot":
        return _tensordot(factors.dims, first, second)
    return Equation(LETTERS[1:first] + "a", LETTERS[first : first + second - 1] + "a", LETTERS[1 : first + second - 1])


def _einsum(node: fx.Node) -> Factors | None:
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or not all(isinstance(o, fx.Node) for o in operands):
        return None
    first, second = operands
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    return Factors("einsum", first, second, equation=equation.replace(" ", ""))


def _expanded(equation: str, first: int | None, second: int | None) -> Equation | None:
    """The equation of einsum with letters for its ellipsis, and with the implied result if it has no arrow."""
    inputs, arrow, result = equation.partition("->")
    parts = inputs.split(",")
    unused = [letter for letter in LETTERS if letter not in equation]
    lengths = [
        None if n is None else n - len(p.replace("...", "")) for p, n in zip(parts, (first, second), strict=True)
    ]
    if "..." in equation and any("..." in p and n is None for p, n in zip(parts, lengths, strict=True)):
        return None
    free = "".join(
        unused[: max([n for n, p in zip(lengths, parts, strict=True) if n is not None and "..." in p], default=0)]
    )
    if not arrow:
        once = sorted(c for c in set(inputs) - set(",.") if inputs.count(c) == 1)
        result = ("..." if "..." in inputs else "") + "".join(once)
    filled = [p.replace("...", free[len(free) - (n or 0) :] if n else "") for p, n in zip(parts, lengths, strict=True)]
    return Equation(filled[0], filled[1], result.replace("...", free))


def _matmul(first: int, second: int) -> Equation:
    batch = LETTERS[3 : 3 + max(first, second, 2) - 2]
    left, right = ("a" if first > 1 else ""), ("c" if second > 1 else "")
    of_first, of_second = (batch[len(batch) - n :] if (n := axes - 2) > 0 else "" for axes in (first, second))
    return Equation(f"{of_first}{left}b", f"{of_second}b{right}", f"{batch}{left}{right}")


def _tensordot(dims: Any, first: int, second: int) -> Equation | None:
    if isinstance(dims, int):
        dims = (range(first - dims, first), range(dims))
    if not isinstance(dims, Sequence) or len(dims) != 2:
        return None
    pairs = [[axis] if isinstance(axis, int) else list(axis) for axis in dims]
    if len(pairs[0]) != len(pairs[1]) or not all(isinstance(axis, int) for pair in pairs for axis in pair):
        return None
    ours, theirs = list(LETTERS[:first]), list(LETTERS[first : first + second])
    for a, b in zip(*pairs, strict=True):
        theirs[b] = ours[a]
    result = [c for c in ours if c not in theirs] + [c for c in theirs if c not in ours]
    return Equation("".join(ours), "".join(theirs), "".join(result))
