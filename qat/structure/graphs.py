"""Graphs of torch.fx as plain data, and back. What torch.fx writes into source code is checked first."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from qat.structure.names import ATTRIBUTES, Names, check_method, find_function, name_of_function, path_of
from qat.structure.values import Describer, NotPlainError, Reader

OPERATIONS = ("placeholder", "get_attr", "call_module", "call_function", "call_method", "output")


def describe_graph(graph: fx.Graph, names: Names) -> list[Any]:
    """[operation, name, target, arguments, keyword arguments] of each node in order.

    Raises:
        NotPlainError: it calls a function that a file may not name, or with an argument that is not plain data.
    """
    describe = Describer(names, node=lambda value: value.name if isinstance(value, fx.Node) else None)
    return [_described(node, describe) for node in graph.nodes]


def _described(node: fx.Node, describe: Describer) -> list[Any]:
    target: Any = node.target
    if node.op == "call_function":
        target = name_of_function(node.target)
        if target is None:
            raise NotPlainError(f"{node.name} calls {path_of(node.target)}, which a file may not name")
    try:
        _target(node.op, str(target), node.args)
    except ValueError as error:
        raise NotPlainError(f"{node.name}: {error}") from error
    args = [describe(list(node.args), node.name), describe(dict(node.kwargs), node.name)]
    return [node.op, node.name, str(target), *args]


def build_graph(nodes: Any, names: Names) -> fx.Graph:
    """The graph.

    Raises:
        ValueError: it is not a description, or calls what a file may not name.
    """
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}

    def node_of(name: str) -> fx.Node:
        if name not in made:
            raise ValueError(f"node {name!r} is read before it is made")
        return made[name]

    read = Reader(names, node=node_of)
    for described in nodes:
        op, name, target, args, kwargs = described
        arguments, named = tuple(read(args)), read(kwargs)
        if op not in OPERATIONS or not _is_identifier(name) or name in made:
            raise ValueError(f"{described!r:.80} is not a node")
        if not all(isinstance(key, str) and _is_identifier(key) for key in named):
            raise ValueError(f"{list(named)!r:.80} are not names of arguments")
        made[name] = graph.create_node(op, _target(op, target, arguments), arguments, named, name)
    graph.lint()
    return graph


def _target(op: str, target: str, args: Sequence[Any]) -> Any:
    if op == "call_function":
        function = find_function(target)
        if function is getattr and not (len(args) in (2, 3) and args[1] in ATTRIBUTES):
            raise ValueError(f"getattr of {args[1:2]!r:.80} is not an attribute of tensors that a file may read")
        return function
    if op == "call_method":
        check_method(target)
        return target
    if op == "placeholder":
        if not _is_identifier(target.removeprefix("**").removeprefix("*")):
            raise ValueError(f"{target!r:.80} is not the name of an input")
        return target
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", target, flags=re.ASCII):
        raise ValueError(f"{target!r:.80} is not the name of a module or a tensor")
    return target


def _is_identifier(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
