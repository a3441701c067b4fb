"""Layers that a graph of torch.fx does not show, although forward can be traced."""

from __future__ import annotations

from torch import Tensor, fx, nn

from qat.capture.traced.autograd_functions import Applied
from qat.operations import is_of_torch

_HIDING = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def hiding_modules(model: nn.Module) -> list[str]:
    """Names of modules whose weights are used inside one operation of torch, such as attention."""
    return [name for name, module in model.named_modules() if isinstance(module, _HIDING)]


def hiding_functions(model: nn.Module, graph: fx.Graph) -> list[str]:
    """Names of functions that are given weights, and that `torch.fx.wrap` keeps whole."""
    return [str(node.target.__name__) for node in graph.nodes if _is_wrapped(node) and _takes_weights(model, node)]


def _is_wrapped(node: fx.Node) -> bool:
    """Whether the node calls a function that `torch.fx.wrap` keeps whole."""
    is_function = node.op == "call_function" and not isinstance(node.target, Applied)
    return is_function and not is_of_torch(node.target) and hasattr(node.target, "__name__")


def _takes_weights(model: nn.Module, node: fx.Node) -> bool:
    names = {source.target for source in node.all_input_nodes if source.op == "get_attr"}
    parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return any(name in parameters and parameters[name].ndim > 1 for name in map(str, names))
