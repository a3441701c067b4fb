"""Calls of functions that a layer could compute; this is the only place that parses their spellings."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

_CONV = "input weight bias stride padding dilation groups"
_CONV_TRANSPOSED = "input weight bias stride padding output_padding groups dilation"
_SIGNATURES: dict[Any, tuple[type[nn.Module], str]] = {
    F.conv1d: (nn.Conv1d, _CONV),
    F.conv2d: (nn.Conv2d, _CONV),
    F.conv3d: (nn.Conv3d, _CONV),
    F.conv_transpose1d: (nn.ConvTranspose1d, _CONV_TRANSPOSED),
    F.conv_transpose2d: (nn.ConvTranspose2d, _CONV_TRANSPOSED),
    F.conv_transpose3d: (nn.ConvTranspose3d, _CONV_TRANSPOSED),
    F.linear: (nn.Linear, "input weight bias"),
    F.embedding: (nn.Embedding, "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse"),
    torch.embedding: (nn.Embedding, "weight input padding_idx scale_grad_by_freq sparse"),
    torch.addmm: (nn.Linear, "bias input weight"),
    **dict.fromkeys((torch.matmul, operator.matmul, torch.mm, "matmul", "mm"), (nn.Linear, "input weight")),
}
"""Function or method -> (the layer that computes it, the names of its arguments in order)."""

_TRANSPOSED = {torch.addmm, torch.matmul, operator.matmul, torch.mm, "matmul", "mm"}
"""Products with a weight [in, out]; that of a linear layer is [out, in]."""

_SYNONYMS = {"mat1": "input", "mat2": "weight", "other": "weight"}
"""Names of keywords of torch.mm, torch.addmm and torch.matmul."""


@dataclass
class FunctionalCall:
    """A convolution, linear layer or embedding that is written as a function.

    Attributes:
        layer: the class in torch.nn that computes it.
        input, weight, bias: nodes.
        options: the other arguments by name (stride, padding, ...), without Nones.
        transposed: whether the weight is [in, out].
    """

    node: fx.Node
    layer: type[nn.Module]
    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    options: dict[str, Any] = field(default_factory=dict)
    transposed: bool = False


def functional_call(node: fx.Node) -> FunctionalCall | None:
    """The call that `node` is; None if it is another operation, or no layer has its arguments."""
    if node.op not in ("call_function", "call_method") or node.target not in _SIGNATURES:
        return None
    layer, names = _SIGNATURES[node.target]
    if len(node.args) > len(names.split()):
        return None
    synonyms = _SYNONYMS | ({"input": "bias"} if node.target is torch.addmm else {})
    named = {synonyms.get(name, name): value for name, value in node.kwargs.items()}
    arguments: dict[str, Any] = {**dict(zip(names.split(), node.args, strict=False)), **named}
    x, weight, bias = (arguments.pop(name, None) for name in ("input", "weight", "bias"))
    options = {name: value for name, value in arguments.items() if value is not None}
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or not isinstance(bias, fx.Node | None):
        return None
    if layer is nn.Embedding and (options.get("max_norm") is not None or options.pop("sparse", False)):
        return None
    if layer is nn.Embedding:
        options.pop("norm_type", None)
        if options.get("padding_idx") == -1:  # torch.embedding writes None so
            del options["padding_idx"]
    if any(isinstance(value, fx.Node) for value in _flat(options.values())) or {"alpha", "beta"} & set(options):
        return None
    return FunctionalCall(node, layer, x, weight, bias, options, node.target in _TRANSPOSED)


def template(call: FunctionalCall, weight: torch.Tensor) -> nn.Module:
    """A layer of torch.nn with the options of the call and without values (device "meta"). weight: in the layer's axes."""
    shape, bias, groups = tuple(weight.shape), call.bias is not None, call.options.get("groups", 1)
    make: Callable[..., nn.Module] = call.layer
    if call.layer is nn.Linear:
        return make(shape[1], shape[0], bias=bias, device="meta")
    if call.layer is nn.Embedding:
        return make(shape[0], shape[1], device="meta", **call.options)
    transposed = issubclass(call.layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    options = {key: _tuple(value) for key, value in call.options.items()}
    channels = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
    return make(*channels, shape[2:], bias=bias, device="meta", **options)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _flat(values: Any) -> list[Any]:
    return [leaf for value in values for leaf in (_flat(value) if isinstance(value, list | tuple) else [value])]
