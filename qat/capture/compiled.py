"""A graph as a Python function of the module whose submodules and parameters it names."""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx

from qat.torch_private import Operator

_number = itertools.count()


class CompiledGraph:
    """A graph and its function. Neither is changed any more: copies share it, and a pickled one comes back.

    Args:
        graph: belongs to this object from now on.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph

    @cached_property
    def code(self) -> str:
        """The source of `forward`."""
        return self.graph.python_code("self").src

    @cached_property
    def forward(self) -> Callable[..., Any]:
        """The function: (module, *inputs) -> outputs."""
        python = self.graph.python_code("self")
        file = f"<graph {next(_number)}>"
        linecache.cache[file] = (len(python.src), None, python.src.splitlines(keepends=True), file)  # for tracebacks
        scope: dict[str, Any] = dict(python.globals)
        exec(compile(python.src, file, "exec"), scope)
        function: Callable[..., Any] = scope["forward"]
        return function

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledGraph:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_plain, (_plain(self.graph),)


@dataclass(frozen=True)
class _Reference:
    """A node, in the arguments of another one."""

    name: str


@dataclass(frozen=True)
class _Named:
    """A function that pickle does not find by its name: an operation of torch.ops, or one of torch.nn.functional."""

    path: str


class _PlainNode(NamedTuple):
    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any


def _plain(graph: fx.Graph) -> list[_PlainNode]:
    nodes = []
    for node in graph.nodes:
        args, kwargs = (fx.map_arg(values, lambda n: _Reference(n.name)) for values in (node.args, node.kwargs))  # type: ignore[arg-type,return-value]
        nodes.append(_PlainNode(node.name, node.op, _plain_function(node.target), args, kwargs))
    return nodes


def _plain_function(target: Any) -> Any:
    if isinstance(target, Operator):
        return _Named(str(target))
    if getattr(target, "__qualname__", "").startswith("boolean_dispatch"):
        return _Named(next(name for name, function in vars(F).items() if function is target))
    return target


def _function(target: Any) -> Any:
    if not isinstance(target, _Named):
        return target
    found: Any = torch.ops if "." in target.path else F
    for part in target.path.split("."):
        found = getattr(found, part)
    return found


def _from_plain(nodes: list[_PlainNode]) -> CompiledGraph:
    graph, made = fx.Graph(), dict[str, fx.Node]()

    def resolved(value: Any) -> Any:
        return made[value.name] if isinstance(value, _Reference) else value

    for plain in nodes:
        args, kwargs = (fx.node.map_aggregate(values, resolved) for values in (plain.args, plain.kwargs))
        made[plain.name] = graph.create_node(plain.op, _function(plain.target), args, kwargs, plain.name)
    return CompiledGraph(graph)
