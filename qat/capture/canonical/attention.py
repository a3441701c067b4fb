"""Scaled dot-product attention as two products and a softmax, whose inputs can be quantized."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qat.capture.canonical.dropout_rates import DropoutRates, attention_arguments

ADDED_DROPOUT = "attention_dropout_of_graph_"
"""Prefix of the names of added dropout modules."""

_RATES = ("dropout_p", "attention_dropout", "attn_dropout", "attn_drop", "dropout_prob", "dropout")
"""Attributes in which modules keep the rate of the dropout of their attention, which they pass on in training only."""


def decompose_attention(model: nn.Module, graph: fx.Graph, rates: DropoutRates | None) -> bool:
    """Replace F.scaled_dot_product_attention by torch.matmul, torch.softmax, dropout and torch.matmul, in place.

    softmax(q kT / sqrt(size of q) + mask) v (Vaswani et al. 2017, eq. 1). A query that may look at no key gets the mean of all
    values, where torch's function returns 0; networks ignore both.

    Args:
        rates: of dropout in training, if they are known.

    Returns:
        Whether there was one. Sums in another order are not the same to the bit.
    """
    found = [n for n in graph.nodes if n.op == "call_function" and n.target is F.scaled_dot_product_attention]
    known = rates is not None and len(rates.attention) == len(found)
    changed = False
    for i, node in enumerate(found):
        arguments = attention_arguments(node.args, node.kwargs)
        if arguments["enable_gqa"]:
            continue  # keys have fewer heads than queries
        rate = rates.attention[i] if rates is not None and known else _rate_of_owner(model, node)
        name = ""
        if rate:
            name = f"{ADDED_DROPOUT}{i}"
            model.add_module(name, nn.Dropout(rate).train(model.training))
        with graph.inserting_before(node):
            result = _as_products(graph, arguments, name)
        result.meta = dict(node.meta)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
        changed = True
    return changed


def add_dropout_of_weights(model: nn.Module, graph: fx.Graph) -> None:
    """Let the weights that an nn.MultiheadAttention returns go through its dropout, which it leaves out in evaluation."""
    for node in list(graph.nodes):
        owner = _owner(model, node) if node.target is torch.softmax else None
        if isinstance(owner, nn.MultiheadAttention) and owner.dropout:
            with graph.inserting_after(node):
                dropped = graph.call_function(F.dropout, (node, owner.dropout, False))
            node.replace_all_uses_with(dropped, lambda user, new=dropped: user is not new)


def add_mask(scores: Tensor, mask: Tensor) -> Tensor:
    """scores where a bool mask is true, or scores + mask; elsewhere the lowest finite number, as softmax of only -inf is NaN.

    scores: [..., queries, keys].
    """
    lowest = torch.finfo(scores.dtype).min
    if mask.dtype is torch.bool:
        return scores.masked_fill(mask.logical_not(), lowest)
    return (scores + mask).clamp(min=lowest)


def add_causal_mask(scores: Tensor) -> Tensor:
    """scores, with those of keys after the query masked. scores: [..., queries, keys]."""
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return add_mask(scores, allowed)


def _as_products(graph: fx.Graph, arguments: dict[str, Any], dropout: str) -> fx.Node:
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    scores = graph.call_function(torch.matmul, (query, graph.call_method("transpose", (key, -2, -1))))
    factor = arguments["scale"]
    if factor is None:
        factor = graph.call_function(operator.pow, (graph.call_method("size", (query, -1)), -0.5))
    scores = graph.call_function(operator.mul, (scores, factor))
    if arguments["is_causal"]:
        scores = graph.call_function(add_causal_mask, (scores,))
    if arguments["attn_mask"] is not None:
        scores = graph.call_function(add_mask, (scores, arguments["attn_mask"]))
    weights = graph.call_function(torch.softmax, (scores, -1))
    if dropout:
        weights = graph.call_module(dropout, (weights,))
    return graph.call_function(torch.matmul, (weights, value))


def _rate_of_owner(model: nn.Module, node: fx.Node) -> float:
    """The rate of the dropout of the module whose forward calls the attention; 0 if it has none."""
    owner = _owner(model, node)
    for name in _RATES:
        found = getattr(owner, name, None)
        rate = found.p if isinstance(found, nn.Dropout) else found
        if isinstance(rate, float):
            return rate
    return 0.0


def _owner(model: nn.Module, node: fx.Node) -> nn.Module:
    """The module whose forward makes this call, as torch.export knows it."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return model.get_submodule(path) if path else model
