"""Operations that overwrite a tensor, and the other names under which its memory is read."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qat.nn import is_identity_in_evaluation
from qat.operations import is_of_torch, operation_name
from qat.torch_private import Operator

_FILLING = ("copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_")
"""Methods that overwrite a tensor whatever it held, and have no other form."""
OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.imatmul: operator.matmul,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}
"""x += y -> x + y."""
_VIEWS = frozenset(
    ("view", "view_as", "reshape", "reshape_as", "flatten", "ravel", "unflatten", "permute", "transpose", "movedim", "t",
     "adjoint", "squeeze", "unsqueeze", "expand", "expand_as", "broadcast_to", "select", "narrow", "slice", "getitem",
     "diagonal", "unfold", "as_strided", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "hsplit", "vsplit",
     "dsplit", "detach", "alias", "contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda",
     "real", "imag", "view_as_real", "view_as_complex", "atleast_1d", "atleast_2d", "atleast_3d", "dropout", "dropout1d",
     "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
)  # fmt: skip
"""Operations whose results may lie in the memory of their first argument."""
_VIEWING_ATTRIBUTES = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))
_SIZES = frozenset(("shape", "ndim", "dtype", "device", "size", "dim", "numel", "is_floating_point"))
"""What is read of a tensor beside its values: attributes and methods."""


def overwritten(model: nn.Module, node: fx.Node) -> fx.Node | None:
    """The tensor that `node` overwrites; None if it overwrites none."""
    if node.op in ("placeholder", "get_attr", "output") or not node.all_input_nodes:
        return None
    if isinstance(out := node.kwargs.get("out"), fx.Node):
        return out
    return node.all_input_nodes[0] if works_in_place(model, node) else None


def works_in_place(model: nn.Module, node: fx.Node) -> bool:
    """Whether `node` overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name in _FILLING or (name.endswith("_") and callable(getattr(Tensor, name.removesuffix("_"), None)))
    return node.target in OPERATORS or _other_form(node) is not None or bool(node.kwargs.get("inplace"))


def make_out_of_place(model: nn.Module, node: fx.Node) -> None:
    """Make an operation that overwrites its first argument write a new tensor instead."""
    if node.op == "call_module":
        model.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
    elif node.op == "call_method":
        if node.target not in _FILLING:
            node.target = str(node.target).removesuffix("_")
    elif node.target in OPERATORS:
        node.target = OPERATORS[node.target]
    elif (other := _other_form(node)) is not None:
        node.target = other
    else:
        node.kwargs = {**node.kwargs, "inplace": False}


def keep_inputs(model: nn.Module, graph: fx.Graph) -> None:
    """Write x += y as x + y, and what else overwrites an input of the graph likewise, in place.

    Who has a batch may use it again. Parameters and buffers are overwritten as before.
    """
    owners = _owners(model, graph)
    for node, owner in owners.items():
        if node.target in OPERATORS:
            if owner.op != "get_attr":
                node.target = OPERATORS[node.target]
        elif owner.op == "placeholder" and "out" not in node.kwargs:
            make_out_of_place(model, node)


def overwritten_and_read_again(model: nn.Module, graph: fx.Graph) -> fx.Node | None:
    """The first tensor that is read after it was overwritten, under its own name or as a view; or None.

    A site between it and its readers would break it.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    memory = {node: _memory(model, node) for node in graph.nodes}
    for node in graph.nodes:
        if (changed := overwritten(model, node)) is None:
            continue
        others = [n for n in graph.nodes if memory[n][-1] is memory[changed][-1] and node not in memory[n]]
        if any(order[user] > order[node] and not _reads_size(user) for n in others for user in n.users):
            return changed
    return None


def overwriting_buffers(model: nn.Module, graph: fx.Graph) -> dict[fx.Node, str]:
    """Operation -> the name of the parameter or buffer that it overwrites: a counter, a moving statistic."""
    return {node: str(owner.target) for node, owner in _owners(model, graph).items() if owner.op == "get_attr"}


def _owners(model: nn.Module, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Operation -> the node whose memory it overwrites."""
    changing = {node: changed for node in graph.nodes if (changed := overwritten(model, node)) is not None}
    return {node: _memory(model, changed)[-1] for node, changed in changing.items()}


def _memory(model: nn.Module, node: fx.Node) -> list[fx.Node]:
    """The tensor, and those in whose memory it lies: that it is a view of, or the result of an in-place operation on."""
    found = [node]
    while (source := overwritten(model, node) or _viewed(model, node)) is not None:
        found.append(source)
        node = source
    return found


def _viewed(model: nn.Module, node: fx.Node) -> fx.Node | None:
    """The tensor that `node` is a view of; None if it has memory of its own."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        is_view = isinstance(module, nn.Flatten | nn.Unflatten) or is_identity_in_evaluation(module)
    elif node.target is getattr:
        is_view = node.args[1] in _VIEWING_ATTRIBUTES
    else:
        is_view = isinstance(node.target, Operator) and node.target.is_view
        is_view |= node.op in ("call_function", "call_method") and operation_name(node) in _VIEWS
    return node.all_input_nodes[0] if is_view and node.all_input_nodes else None


def _reads_size(node: fx.Node) -> bool:
    return (node.args[1] if node.target is getattr else node.target) in _SIZES


def _other_form(node: fx.Node) -> Callable[..., Any] | None:
    """torch.relu for torch.relu_, aten.relu for aten.relu_; None if this is no function that overwrites its argument."""
    if isinstance(target := node.target, Operator):
        name, _, overload = target.name().removeprefix("aten::").partition(".")
        packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
        return getattr(packet, overload or "default", None)
    name = str(getattr(target, "__name__", ""))
    if node.op != "call_function" or not name.endswith("_") or not is_of_torch(target):
        return None
    return getattr(F, name[:-1], None) or getattr(torch, name[:-1], None)
