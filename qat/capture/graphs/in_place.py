"""Operations that overwrite their first argument."""

from __future__ import annotations

import operator

from torch import Tensor, fx, nn

_FILLING = ("copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_")
"""Methods that overwrite a tensor whatever it held, and have no other form."""


def works_in_place(model: nn.Module, node: fx.Node) -> bool:
    """Whether `node` overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name in _FILLING or (name.endswith("_") and callable(getattr(Tensor, name.removesuffix("_"), None)))
    return node.target is operator.iadd or bool(node.kwargs.get("inplace"))


def make_out_of_place(model: nn.Module, node: fx.Node) -> None:
    """Make an operation that overwrites its first argument write a new tensor instead."""
    if node.op == "call_module":
        model.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
    elif node.op == "call_method":
        if node.target not in _FILLING:
            node.target = str(node.target).removesuffix("_")
    elif node.target is operator.iadd:
        node.target = operator.add
    else:
        node.kwargs = {**node.kwargs, "inplace": False}


def overwritten_and_read_again(model: nn.Module, graph: fx.Graph) -> fx.Node | None:
    """The first tensor that is read after it was overwritten, which a site between it and its readers would break; or None."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "output" and node.all_input_nodes and works_in_place(model, node):
            changed = node.all_input_nodes[0]
            if any(order[user] > order[node] for user in changed.users):
                return changed
    return None


def overwriting_buffers(model: nn.Module, graph: fx.Graph) -> dict[fx.Node, str]:
    """Operation -> the name of the parameter or buffer that it overwrites: a counter, a moving statistic."""
    changing = [n for n in graph.nodes if n.op != "output" and n.all_input_nodes and works_in_place(model, n)]
    owners = {node: _seen_through(model, node.all_input_nodes[0]) for node in changing}
    return {node: str(owner.target) for node, owner in owners.items() if owner.op == "get_attr"}


def _seen_through(model: nn.Module, node: fx.Node) -> fx.Node:
    """The tensor whose memory this one shares: as `x.data`, as `x.detach()`, as the result of an in-place operation."""
    while node.all_input_nodes:
        is_data = node.target is getattr and node.args[1] == "data"
        if not is_data and node.target != "detach" and not works_in_place(model, node):
            return node
        node = node.all_input_nodes[0]
    return node
