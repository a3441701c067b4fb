"""The kinds of operations that quantization distinguishes in a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from qat.nn import is_batch_norm, is_identity_in_evaluation, is_layer, is_quantized
from qat.quantizers import Quantizer


class OperationKind(Enum):
    """What a node of a graph does, as far as quantization is concerned."""

    INPUT = "input"
    COMPUTE = "compute"
    NORM = "norm"
    RECTIFY = "rectify"
    ADD = "add"
    CAT = "cat"
    POOL = "pool"
    SAME = "same"
    """Moves, drops or repeats values, or takes their maximum: its output lies on the grid of its input."""
    SHAPE = "shape"
    """A size, or a number that is calculated from sizes only; not a tensor."""
    SITE = "site"
    OUTPUT = "output"
    FLOAT = "float"


_MODULES: dict[type[nn.Module], OperationKind] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6), OperationKind.RECTIFY),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d), OperationKind.POOL),
    **dict.fromkeys((nn.MaxPool2d, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle), OperationKind.SAME),
}
_FUNCTIONS: dict[Callable[..., Any], OperationKind] = {
    **dict.fromkeys((F.relu, torch.relu, F.relu6), OperationKind.RECTIFY),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), OperationKind.ADD),
    torch.cat: OperationKind.CAT,
    **dict.fromkeys((F.avg_pool2d, F.adaptive_avg_pool2d), OperationKind.POOL),
    **dict.fromkeys((F.max_pool2d, operator.getitem, F.pad, F.pixel_shuffle, F.pixel_unshuffle), OperationKind.SAME),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.permute, torch.transpose), OperationKind.SAME),
    **dict.fromkeys((torch.unsqueeze, torch.squeeze, torch.select, torch.narrow, torch.flip), OperationKind.SAME),
}
_METHODS: dict[str, OperationKind] = {
    **dict.fromkeys(("relu", "relu_"), OperationKind.RECTIFY),
    **dict.fromkeys(("add", "add_"), OperationKind.ADD),
    **dict.fromkeys(("flatten", "view", "reshape", "permute", "transpose", "contiguous", "detach"), OperationKind.SAME),
    **dict.fromkeys(
        ("unsqueeze", "squeeze", "select", "narrow", "flip", "expand", "repeat", "unflatten"), OperationKind.SAME
    ),
}


def kind_of(model: nn.Module, node: fx.Node) -> OperationKind:
    """The kind of `node`. An operation that is not known here is FLOAT."""
    if node.op in ("placeholder", "output"):
        return OperationKind.INPUT if node.op == "placeholder" else OperationKind.OUTPUT
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if isinstance(module, Quantizer):
            return OperationKind.SITE
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and (is_layer(module) or is_quantized(module)):
            return OperationKind.COMPUTE
        if isinstance(module, nn.AdaptiveAvgPool2d) and not _is_one(module.output_size):
            return OperationKind.FLOAT
        if getattr(module, "return_indices", False):
            return OperationKind.FLOAT
        if is_identity_in_evaluation(module):
            return OperationKind.SAME
        return OperationKind.NORM if is_batch_norm(module) else _MODULES.get(type(module), OperationKind.FLOAT)
    if _is_shape(node):
        return OperationKind.SHAPE
    table: Mapping[Any, OperationKind] = _METHODS if node.op == "call_method" else _FUNCTIONS
    kind = table.get(node.target, OperationKind.FLOAT)
    if kind is OperationKind.ADD and not (
        len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs
    ):
        return OperationKind.FLOAT  # a constant or alpha= takes part
    if node.target == "mean" or node.target is torch.mean:
        return OperationKind.POOL if mean_axes(node) == (2, 3) else OperationKind.FLOAT
    if node.target is F.pad and not pads_with_zeros(*node.args, **node.kwargs):
        return OperationKind.FLOAT
    if node.target is F.adaptive_avg_pool2d and not _is_one((*node.args[1:], *node.kwargs.values())[0]):
        return OperationKind.FLOAT
    if node.target is operator.getitem and not isinstance(node.args[1], tuple):
        return OperationKind.FLOAT  # an element of a tuple, a shape, ...
    return kind


def _is_shape(node: fx.Node) -> bool:
    if node.target in ("size", "dim", "numel") or (node.target is getattr and node.args[1] in ("shape", "ndim")):
        return True
    inputs = node.all_input_nodes
    return node.op == "call_function" and bool(inputs) and all(_is_shape(n) for n in inputs)


def pads_with_zeros(x: Any, pad: Any, mode: Any = "constant", value: Any = None) -> bool:
    """Whether these arguments of F.pad put zeros around x."""
    return mode == "constant" and not value


def _is_one(size: Any) -> bool:
    """Whether an adaptive pool of this output size is a global one; others have no integer form."""
    return size in (1, (1, 1), [1, 1])


def mean_axes(node: fx.Node) -> tuple[int, ...]:
    """The axes of a mean over an [N, C, H, W] tensor, counted from the front."""
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
    axes = (axes,) if isinstance(axes, int) else axes
    return tuple(sorted(a % 4 for a in axes if isinstance(a, int))) if isinstance(axes, list | tuple) else ()


def relu_upper_bound(model: nn.Module, node: fx.Node) -> float | None:
    """The upper bound of a RECTIFY node: 6 for ReLU6, None for ReLU."""
    six = node.target is F.relu6 or (
        node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.ReLU6)
    )
    return 6.0 if six else None
