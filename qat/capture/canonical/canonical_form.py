"""The canonical graph: every convolution, linear layer, embedding, BatchNorm and dropout is a call of a module."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from qat.capture.canonical.dropout_rates import DROPOUTS, DropoutRates
from qat.capture.canonical.layers import layers_as_modules
from qat.capture.graphs.in_place import keep_inputs
from qat.capture.graphs.rewriting import erase_unused, owner_of, replace_by_module
from qat.nn import is_batch_norm, is_identity_in_evaluation, is_layer, is_quantized, recast
from qat.nn.padding import padding_of_every_side
from qat.torch_private import BatchNorm

ADDED_DROPOUT = "dropout_of_graph_"
"""Prefix of the names of added dropout modules."""


def make_canonical(model: nn.Module, graph: fx.Graph, training: fx.Graph | None, rates: DropoutRates | None) -> bool:
    """Rewrite the graph of evaluation, and add or recast the modules that the new calls need, in place.

    Args:
        training: the graph of the same forward in training, if there is one: it says which flags follow `model.training`.
        rates: of dropout in training, if they are known.

    Returns:
        Whether modules were recast, so that from now on only the graph, and not the user's forward, is right.
    """
    keep_inputs(model, graph)
    transposes_as_methods(graph)
    dropouts_as_modules(model, graph, rates)
    _positional_arguments(model, graph)
    norms_as_modules(model, graph)
    recast_norms = batch_norms_as_modules(model, graph, training)
    padded = paddings_as_operations(model, graph)
    recast_layers = layers_as_modules(model, graph)
    erase_unused([node for node in graph.nodes if node.op == "get_attr"])
    graph.lint()
    return recast_norms or recast_layers or padded


def transposes_as_methods(graph: fx.Graph) -> None:
    """Write the attribute x.mT as a method, in place."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target is getattr and node.args[1] == "mT":
            node.op, node.target, node.args = "call_method", "transpose", (node.args[0], -2, -1)


def dropouts_as_modules(model: nn.Module, graph: fx.Graph, rates: DropoutRates | None) -> None:
    """Replace F.dropout(x, p, self.training), whose flag tracing fixed, by nn.Dropout, which follows train() and eval()."""
    found = _calls(graph, DROPOUTS)
    known = rates is not None and len(rates.functions) == len(found)
    number = 0
    for i, node in enumerate(found):
        arguments = _bound(node)
        if arguments["training"] is not False:
            continue  # always on
        name = f"{ADDED_DROPOUT}{number}"
        p = rates.functions[i] if rates is not None and known else arguments["p"]
        model.add_module(name, DROPOUTS[node.target](p).train(model.training))
        replace_by_module(node, name, (arguments["input"],))
        number += 1


def batch_norms_as_modules(model: nn.Module, graph: fx.Graph, training: fx.Graph | None) -> bool:
    """Replace F.batch_norm by calls of the BatchNorm that owns its statistics. Returns whether one was recast for it."""
    changed = False
    for node, name in batch_norms_of_modules(model, graph, training).items():
        norm = model.get_submodule(name)
        if not is_batch_norm(norm):
            recast(norm, BatchNorm)
            changed = True
        replace_by_module(node, name, (_bound(node)["input"],))
    return changed


def batch_norms_of_modules(model: nn.Module, graph: fx.Graph, training: fx.Graph | None) -> dict[fx.Node, str]:
    """The calls of F.batch_norm that compute what a BatchNorm computes, and the names of these modules."""
    follows = {owner_of(_bound(n)["running_mean"]) for n in _calls(training, [F.batch_norm]) if _bound(n)["training"]}
    found: dict[fx.Node, str] = {}
    for node in _calls(graph, [F.batch_norm]):
        arguments = _bound(node)
        name = owner_of(arguments["running_mean"])
        norm = model.get_submodule(name) if name is not None else None
        if not isinstance(norm, BatchNorm) or arguments["training"] or (training is not None and name not in follows):
            continue  # without statistics, or frozen
        tensors = ("running_mean", "running_var", "weight", "bias")
        present = [getattr(norm, key) is not None for key in tensors]
        if [owner_of(arguments[key]) == name for key in tensors] == present and arguments["eps"] == norm.eps:
            found[node] = str(name)
    return found


def norms_as_modules(model: nn.Module, graph: fx.Graph) -> None:
    """Replace F.layer_norm, F.group_norm and F.rms_norm by calls of the modules that own their weights, if there are any."""
    for node in _calls(graph, _NORMS):
        kind, constants = _NORMS[node.target]
        arguments = _bound(node)
        name = owner_of(arguments["weight"])
        norm = model.get_submodule(name) if name is not None else None
        if not isinstance(norm, kind) or type(norm).forward is not kind.forward:
            continue
        owners = {owner_of(arguments.get("bias")), None if getattr(norm, "bias", None) is None else name}
        same = all(_plain(arguments[key]) == _plain(getattr(norm, key)) for key in constants)
        if same and len(owners) == 1:
            replace_by_module(node, str(name), (arguments["input"],))


_NORMS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.layer_norm: (nn.LayerNorm, ("normalized_shape", "eps")),
    F.group_norm: (nn.GroupNorm, ("num_groups", "eps")),
    F.rms_norm: (nn.RMSNorm, ("normalized_shape", "eps")),
}


def paddings_as_operations(model: nn.Module, graph: fx.Graph) -> bool:
    """Let F.pad pad for convolutions whose `padding_mode` is not zeros, in place: it pads codes as well as floats.

    Returns:
        Whether there were any.
    """
    changed: dict[nn.Module, tuple[list[int], str]] = {}
    for node in graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or not is_layer(module):
            continue
        if module.padding_mode != "zeros":
            changed[module] = padding_of_every_side(module), module.padding_mode
            module.padding, module.padding_mode = (0,) * len(module.kernel_size), "zeros"
        if module in changed:
            sides, mode = changed[module]
            with graph.inserting_before(node):
                node.args = (graph.call_function(F.pad, (node.args[0], sides), {"mode": mode}),)
    return bool(changed)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _positional_arguments(model: nn.Module, graph: fx.Graph) -> None:
    """Write layer(input=x) as layer(x), for layers, BatchNorm and dropout."""
    for node in graph.nodes:
        if node.op == "call_module" and node.kwargs:
            module = model.get_submodule(str(node.target))
            if is_layer(module) or is_quantized(module) or is_batch_norm(module) or is_identity_in_evaluation(module):
                bound = inspect.signature(module.forward).bind(*node.args, **node.kwargs)
                node.args, node.kwargs = bound.args, bound.kwargs


def _calls(graph: fx.Graph | None, functions: Iterable[Any]) -> list[fx.Node]:
    known = list(functions)
    return [n for n in graph.nodes if n.op == "call_function" and n.target in known] if graph is not None else []


def _bound(node: fx.Node) -> dict[str, Any]:
    """The arguments of a function of torch.nn.functional by name, with its defaults."""
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    bound.apply_defaults()
    return bound.arguments
