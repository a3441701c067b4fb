"""From the vocabulary of torch.export (aten) to that of torch.fx, so that the floors above know only one."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

_SAME_ARGUMENTS: dict[str, Any] = {
    "relu.default": torch.relu, "relu_.default": torch.relu, "relu6.default": F.relu6, "gelu.default": F.gelu,
    "silu.default": F.silu, "silu_.default": F.silu, "hardswish.default": F.hardswish, "hardswish_.default": F.hardswish,
    "hardsigmoid.default": F.hardsigmoid, "sigmoid.default": torch.sigmoid, "tanh.default": torch.tanh,
    "leaky_relu.default": F.leaky_relu, "hardtanh.default": F.hardtanh, "softmax.int": torch.softmax,
    "log_softmax.int": torch.log_softmax, "matmul.default": torch.matmul, "bmm.default": torch.bmm, "mm.default": torch.mm,
    "addmm.default": torch.addmm, "cat.default": torch.cat, "stack.default": torch.stack, "mean.dim": torch.mean,
    "mean.default": torch.mean, "sum.dim_IntList": torch.sum, "flatten.using_ints": torch.flatten,
    "conv1d.default": F.conv1d, "conv2d.default": F.conv2d, "conv3d.default": F.conv3d, "conv1d.padding": F.conv1d,
    "conv2d.padding": F.conv2d, "conv3d.padding": F.conv3d, "conv_transpose1d.default": F.conv_transpose1d,
    "conv_transpose2d.input": F.conv_transpose2d, "conv_transpose3d.input": F.conv_transpose3d, "linear.default": F.linear,
    "embedding.default": torch.embedding, "max_pool2d.default": F.max_pool2d, "avg_pool2d.default": F.avg_pool2d,
    "adaptive_avg_pool2d.default": F.adaptive_avg_pool2d, "pad.default": F.pad, "pixel_shuffle.default": F.pixel_shuffle,
    "pixel_unshuffle.default": F.pixel_unshuffle, "scaled_dot_product_attention.default": F.scaled_dot_product_attention,
    "split.Tensor": torch.split, "chunk.default": torch.chunk, "where.self": torch.where, "exp.default": torch.exp,
    "rsqrt.default": torch.rsqrt, "sqrt.default": torch.sqrt, "abs.default": torch.abs, "neg.default": operator.neg,
}  # fmt: skip
"""Operation of aten -> function that takes the same arguments."""

_BINARY: dict[str, Any] = {
    "add.Tensor": operator.add, "add_.Tensor": operator.iadd, "sub.Tensor": operator.sub, "mul.Tensor": operator.mul,
    "div.Tensor": operator.truediv, "add.Scalar": operator.add, "mul.Scalar": operator.mul,
}  # fmt: skip
"""Operation of aten -> operator, for calls without `alpha`."""

_DROPOUTS: dict[str, Any] = {
    "dropout": F.dropout, "alpha_dropout": F.alpha_dropout, "feature_alpha_dropout": F.feature_alpha_dropout,
}  # fmt: skip
_OF_CHANNELS = {5: F.dropout3d, 4: F.dropout2d, 3: F.dropout1d}
"""Number of axes of the input -> function that aten calls feature_dropout."""

_WITH_INDICES: dict[str, Any] = {
    "adaptive_max_pool1d": F.adaptive_max_pool1d, "adaptive_max_pool2d": F.adaptive_max_pool2d,
    "adaptive_max_pool3d": F.adaptive_max_pool3d, "max_pool2d_with_indices": F.max_pool2d,
    "max_pool3d_with_indices": F.max_pool3d,
}  # fmt: skip
"""Operation of aten that returns (values, indices) -> function that returns the values, or both with `return_indices`."""

_METHODS = frozenset(
    ("reshape", "permute", "transpose", "expand", "contiguous", "unsqueeze", "squeeze", "select", "flip", "repeat", "unflatten",
     "t", "detach", "narrow", "masked_fill"),
)  # fmt: skip
"""Operations of aten, of whatever overload, that are methods of a tensor with the same arguments."""


def to_torch(node: fx.Node) -> None:
    """Write an operation of aten as torch.fx would have traced it, in place. Others stay as they are."""
    name = str(node.target).removeprefix("aten.")
    if node.op != "call_function" or name == str(node.target):
        return
    base = name.partition(".")[0]
    if name in _SAME_ARGUMENTS:
        node.target = _SAME_ARGUMENTS[name]
    elif name in _BINARY and not node.kwargs:
        node.target = _BINARY[name]
    elif base in ("view", "_unsafe_view"):
        # what can be viewed in float need not be in codes, whose strides may differ
        node.op, node.target = "call_method", "reshape"
    elif base in _WITH_INDICES:
        node.target = _WITH_INDICES[base]
        for unread in [user for user in node.users if user.target is operator.getitem and not user.users]:
            node.graph.erase_node(unread)  # torch 2.12 unpacks both results, read or not
        if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
            node.kwargs = {**node.kwargs, "return_indices": True}
        else:
            _is_its_first_result(node)
    elif base in _METHODS:
        node.op, node.target = "call_method", base
    elif base in ("sym_size", "size"):
        node.op, node.target = "call_method", "size"
    elif (function := dropout_function(node)) is not None:
        node.target = function
    elif name == "batch_norm.default":
        x, weight, bias, mean, variance, training, momentum, eps, *_ = node.args
        node.target, node.args = F.batch_norm, (x, mean, variance, weight, bias, training, momentum, eps)
    elif name == "_native_batch_norm_legit_no_training.default":
        x, weight, bias, mean, variance, momentum, eps = node.args
        node.target, node.args = F.batch_norm, (x, mean, variance, weight, bias, False, momentum, eps)
        _is_its_first_result(node)
    elif name == "copy.default":  # it has no derivative
        _copy_as_expand(node)
    elif base in ("slice_scatter", "select_scatter"):
        _scatter_as_two(node)
    elif name in ("layer_norm.default", "group_norm.default"):
        node.target, node.args = (F.layer_norm if name[0] == "l" else F.group_norm), node.args[:5]
    elif name == "rms_norm.default":
        node.target = F.rms_norm


def dropout_function(node: fx.Node) -> Any:
    """The function of torch.nn.functional that a dropout of aten is; None if it is none."""
    base, _, overload = str(node.target).removeprefix("aten.").partition(".")
    base = base.removesuffix("_")
    if overload != "default" or (base not in _DROPOUTS and base != "feature_dropout"):
        return None
    value = node.meta.get("val")
    return _DROPOUTS[base] if base in _DROPOUTS else _OF_CHANNELS.get(getattr(value, "ndim", 4), F.dropout2d)


def _is_its_first_result(node: fx.Node) -> None:
    """Let the readers of the first of several results read the node."""
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            node.meta["val"] = user.meta.get("val")
            user.replace_all_uses_with(node)
            node.graph.erase_node(user)


def _copy_as_expand(node: fx.Node) -> None:
    """Write copy(old, new), the values of `new` in the shape and type of `old`, as methods."""
    old, new = node.args[:2]
    with node.graph.inserting_before(node):
        converted = node.graph.call_method("type_as", (new, old))
    node.op, node.target, node.args, node.kwargs = "call_method", "expand_as", (converted, old), {}


def _scatter_as_two(node: fx.Node) -> None:
    """Scatter real and imaginary parts one by one: the operation has no derivative for complex numbers."""
    value, scatter = node.meta.get("val"), node.target
    if not isinstance(value, torch.Tensor) or not value.is_complex():
        return
    assert callable(scatter)
    with node.graph.inserting_before(node):
        parts = []
        for part in (torch.real, torch.imag):
            tensors = [node.graph.call_function(part, (tensor,)) for tensor in node.args[:2]]
            parts.append(node.graph.call_function(scatter, (*tensors, *node.args[2:]), node.kwargs))
    node.target, node.args, node.kwargs = torch.complex, tuple(parts), {}
