"""A torch.fx graph as plain tuples, which pickle and copy without recursion over its nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.node import map_aggregate

from qat.torch_private import Operator


@dataclass(frozen=True)
class NodeName:
    """Stands for the node of this name among the arguments of another."""

    name: str


@dataclass(frozen=True)
class _FunctionName:
    """A function that pickle does not find by its name: an operation of torch.ops, or one of torch.nn.functional."""

    path: str


@dataclass(frozen=True)
class _MemoryFormat:
    """A torch.memory_format, which torch.save cannot pickle."""

    name: str


class NodeRecord(NamedTuple):
    """One node, with a `NodeName` for each node that it reads."""

    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any


def record_graph(graph: fx.Graph) -> list[NodeRecord]:
    """The nodes in order."""

    def named(argument: Any) -> Any:
        if isinstance(argument, torch.memory_format):
            return _MemoryFormat(str(argument).removeprefix("torch."))
        return NodeName(argument.name) if isinstance(argument, fx.Node) else argument

    return [
        NodeRecord(
            node.op,
            node.name,
            _recorded(node.target),
            map_aggregate(node.args, named),
            map_aggregate(node.kwargs, named),
        )
        for node in graph.nodes
    ]


def graph_of_record(records: list[NodeRecord]) -> fx.Graph:
    """The graph again, with the same names."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def node_of(argument: Any) -> Any:
        if isinstance(argument, _MemoryFormat):
            return getattr(torch, argument.name)
        return nodes[argument.name] if isinstance(argument, NodeName) else argument

    for op, name, target, args, kwargs in records:
        arguments = map_aggregate(args, node_of), map_aggregate(kwargs, node_of)
        nodes[name] = graph.create_node(op, _function(target), *arguments, name)
    return graph


def _recorded(target: Any) -> Any:
    if isinstance(target, Operator):
        return _FunctionName(str(target))
    if getattr(target, "__qualname__", "").startswith("boolean_dispatch"):
        return _FunctionName(next(name for name, function in vars(F).items() if function is target))
    return target


def _function(target: Any) -> Any:
    if not isinstance(target, _FunctionName):
        return target
    found: Any = torch.ops if "." in target.path else F
    for part in target.path.split("."):
        found = getattr(found, part)
    return found
