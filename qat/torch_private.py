"""The private members of torch that code below `qat/training` uses, under public names.

`tests/test_private_api.py` checks that the installed torch has every one of them. Training has a file of its own,
`qat/training/lightning/private_api.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import (
    MappingKey,
    SequenceKey,
    TreeSpec,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_map_only,
    tree_unflatten,
)

__all__ = [
    "BatchNorm",
    "HigherOrderOperator",
    "MappingKey",
    "Operator",
    "SequenceKey",
    "TreeSpec",
    "assert_function",
    "padding_of_every_side",
    "tensor_version",
    "tree_flatten",
    "tree_flatten_with_path",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_unflatten",
]

BatchNorm = _BatchNorm
"""Base class of BatchNorm1d, 2d, 3d and SyncBatchNorm, and of what Lightning leaves behind of the latter."""

Operator = OpOverload
"""An operation of torch.ops with its types of arguments, whose text is its path: "aten.conv2d.default"."""

assert_function = torch._assert
"""The `assert` of networks that want to be traced: (condition, message)."""


def tensor_version(tensor: Tensor) -> int:
    """How often the tensor was changed in place; autograd compares it, too."""
    return tensor._version


def padding_of_every_side(layer: nn.Conv1d | nn.Conv2d) -> list[int]:
    """The padding of a convolution as `F.pad` wants it: the last dimension first, both sides of each."""
    return layer._reversed_padding_repeated_twice
