"""The sizes for which a graph of torch.export holds, and their check in the graph."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor, fx

from qat.capture.exported.size_trials import MAX_TRIALS, Holds, trials_without
from qat.capture.graphs.arguments import Arguments
from qat.operations import check_sizes, value_of
from qat.torch_private import MappingKey, SequenceKey, tree_flatten_with_path

_SYMBOLS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%",
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip


class _UnknownError(Exception):
    """An expression that is not one of sizes."""


def check_sizes_of_inputs(graph: fx.Graph, guards: Iterable[str], arguments: Arguments, holds: Holds) -> None:
    """Let the graph check the sizes of its inputs, in place.

    Args:
        graph: has one input for each tensor in the arguments.
        guards: the conditions of torch.export.
        arguments: those of the call that the graph was made with. What they do not fulfil, because torch.export saw a batch of
            1 doubled, is not checked, unless the graph does not hold for them.
        holds: tries the graph with other sizes.
    """
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    found = [
        (_name(path), leaf) for path, leaf in tree_flatten_with_path(dict(arguments))[0] if isinstance(leaf, Tensor)
    ]
    names, tensors = [name for name, _ in found], tuple(leaf for _, leaf in found)
    texts = [re.sub(r"L\['(\w+)'\]", r"\1", guard) for guard in (*_assumed(names, nodes), *guards)]
    terms = {text: term for text in texts if (term := _term_of(text, names)) is not None}
    groups: dict[tuple[int, ...], dict[str, Any]] = {}
    for text, term in terms.items():
        certain = _is_depended_on(term)
        if value_of(term, tensors) if certain else _does_not_hold(term, tensors, terms.values(), holds):
            used = tuple(sorted(set(_tensors_of(term))))
            groups.setdefault(used, {})[_shown(text)] = _renumbered(term, used)
    for used, conditions in reversed(groups.items()):
        with graph.inserting_after(nodes[-1]):
            graph.call_function(
                check_sizes, (tuple(conditions.items()), tuple(names[i] for i in used), *(nodes[i] for i in used))
            )


def _name(path: tuple[Any, ...]) -> str:
    """A tensor in the arguments, as it is written in Python: caches[0]["key"]."""
    (argument, *steps) = path
    written = (
        f"[{s.key!r}]" if isinstance(s, MappingKey) else f"[{s.idx}]" if isinstance(s, SequenceKey) else f".{s.name}"
        for s in steps
    )
    return "".join((argument.key, *written))


def _assumed(names: list[str], nodes: list[fx.Node]) -> Iterator[str]:
    """The numbers of axes, the sizes that are numbers in the graph, and that the free ones are not 1."""
    for name, node in zip(names, nodes, strict=True):
        yield f"{name}.ndim == {node.meta['val'].ndim}"
        for axis, size in enumerate(node.meta["val"].shape):
            yield f"{name}.size()[{axis}] " + (f"== {size}" if isinstance(size, int) else ">= 2")


def _term_of(text: str, names: list[str]) -> Any:
    """The condition as a term; None if it is not one of sizes."""
    try:
        return _term(ast.parse(text, mode="eval").body, names)
    except _UnknownError:
        return None


def _term(node: ast.AST, names: list[str]) -> Any:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
            return -number
        case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
            if type(op) in _SYMBOLS:
                return _SYMBOLS[type(op)], _term(left, names), _term(right, names)
        case ast.Subscript(value=ast.Call(func=ast.Attribute(value=x, attr="size")), slice=ast.Constant(value=axis)):
            if (name := ast.unparse(x)) in names:
                return "size", names.index(name), axis
        case ast.Attribute(value=x, attr="ndim"):
            if (name := ast.unparse(x)) in names:
                return "ndim", names.index(name)
    raise _UnknownError


def _does_not_hold(term: Any, tensors: tuple[Tensor, ...], terms: Iterable[Any], holds: Holds) -> bool:
    """Whether the graph computes something else than forward where the condition is not met."""
    trials = islice(trials_without(term, tensors, terms), MAX_TRIALS)
    return not all(any(map(holds, shapes)) for shapes in trials)


def _is_depended_on(term: Any) -> bool:
    """Whether the graph does not hold without the condition, whatever forward computes.

    torch.export also notes that sizes are not 1, that two are unlike, and that memory is not contiguous: mostly, its graph
    computes the same there.
    """
    symbol, first, second = term
    if symbol == "!=":
        return isinstance(first, tuple) and first[0] == "%" and isinstance(first[2], int)
    excludes_one = (symbol, second) in ((">", 1), (">=", 2))
    return symbol == "==" or not (excludes_one or _multiplies_sizes(first) or _multiplies_sizes(second))


def _multiplies_sizes(term: Any) -> bool:
    if isinstance(term, int) or term[0] in ("size", "ndim"):
        return False
    return (term[0] == "*" and not any(isinstance(x, int) for x in term[1:])) or any(map(_multiplies_sizes, term[1:]))


def _tensors_of(term: Any) -> list[int]:
    """The numbers of the tensors whose sizes a term reads."""
    if isinstance(term, int):
        return []
    return [term[1]] if term[0] in ("size", "ndim") else [*_tensors_of(term[1]), *_tensors_of(term[2])]


def _renumbered(term: Any, used: tuple[int, ...]) -> Any:
    """The term with the positions of tensors in `used` as their numbers."""
    if isinstance(term, int):
        return term
    symbol, first, *rest = term
    if symbol in ("size", "ndim"):
        return symbol, used.index(first), *rest
    return symbol, _renumbered(first, used), _renumbered(rest[0], used)


def _shown(text: str) -> str:
    """The condition as it is written in Python."""
    return ast.unparse(ast.parse(text)).replace(".size()", ".shape")
