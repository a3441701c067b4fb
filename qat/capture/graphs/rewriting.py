"""Small changes of graphs, and parts of them that depend on parameters alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx, nn

from qat.capture.graphs.compiled import CompiledGraph

_PARAMETRIZATIONS = ".parametrizations."
"""Part of the names of modules of torch.nn.utils.parametrize, which are called without arguments."""


def replace_by_module(node: fx.Node, name: str, arguments: tuple[Any, ...]) -> fx.Node:
    """Put a call of the module `name` in the place of `node`."""
    with node.graph.inserting_before(node):
        call = node.graph.call_module(name, arguments)
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    node.graph.erase_node(node)
    return call


def erase_unused(nodes: Iterable[fx.Node]) -> None:
    """Erase those of `nodes` that nothing reads, and the nodes that only they read."""
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if not node.users and node.op not in ("placeholder", "call_module", "output") and node in node.graph.nodes:
            todo += node.all_input_nodes
            node.graph.erase_node(node)


def owner_of(node: Any) -> str | None:
    """The name of the module that owns a parameter or buffer, parametrized or not; None for any other value."""
    return _owner_and_attribute(node)[0] if isinstance(node, fx.Node) and _is_tensor_of_module(node) else None


def attribute_of(node: fx.Node) -> str:
    """The name of a parameter or buffer in its module."""
    return _owner_and_attribute(node)[1]


def _is_tensor_of_module(node: fx.Node) -> bool:
    return node.op == "get_attr" or (
        node.op == "call_module" and _PARAMETRIZATIONS in f".{node.target}" and not node.args
    )


def _owner_and_attribute(node: fx.Node) -> tuple[str, str]:
    path = f".{node.target}".replace(_PARAMETRIZATIONS, ".") if node.op == "call_module" else f".{node.target}"
    owner, _, attribute = path.rpartition(".")
    return owner.removeprefix("."), attribute


def parameter_nodes(node: fx.Node, parameters: set[str]) -> list[fx.Node] | None:
    """The nodes that compute `node` from parameters and buffers alone, in graph order, it itself last; None if there are none.

    Args:
        node: a node.
        parameters: the names of all parameters, of which one at least must take part.
    """
    found: dict[fx.Node, None] = {}
    todo = [node]
    while todo:
        current = todo.pop()
        if current in found:
            continue
        if current.op not in ("call_function", "call_method") and not _is_tensor_of_module(current):
            return None
        if not current.all_input_nodes and not _is_tensor_of_module(current):
            return None  # a random number, a range
        found[current] = None
        todo += current.all_input_nodes
    if not any(n.op == "call_module" or n.target in parameters for n in found):
        return None
    return [n for n in node.graph.nodes if n in found]


def lookup(nodes: Sequence[fx.Node], owner: str, transposed: bool = False) -> _Lookup:
    """The last of `nodes` as a function of the module `owner`.

    Args:
        nodes: what `parameter_nodes` returned; the names of all parameters begin with that of the owner.
        owner: the name of a module.
        transposed: swap the two axes of the result.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op in ("get_attr", "call_module") and owner:
            copies[node].target = str(node.target).removeprefix(f"{owner}.")
    result = copies[nodes[-1]]
    graph.output(graph.call_method("t", (result,)) if transposed else result)
    graph.lint()
    return _Lookup(CompiledGraph(graph))


def common_owner(nodes: Sequence[fx.Node]) -> str:
    """The name of the innermost module around all parameters among `nodes`."""
    paths = [str(owner_of(n)).split(".") for n in nodes if _is_tensor_of_module(n)]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


class _Lookup:
    """A tensor, computed from the parameters of a module."""

    def __init__(self, compiled: CompiledGraph) -> None:
        self.compiled = compiled

    def __call__(self, owner: nn.Module) -> Any:
        return self.compiled.forward(owner)
