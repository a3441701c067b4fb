"""Copies of models, also of those that keep results of their last forward, or objects that cannot be copied."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

from qat.torch_private import PLAIN, tree_leaves

Model = TypeVar("Model", bound=nn.Module)


def copy_model(model: Model, share_parameters: bool = False) -> Model:
    """A deep copy of a model.

    Tensors with a history (a weight under weight_norm or a mask, a stored loss), which torch refuses to copy, become tensors
    without one: each forward computes them anew. Other objects that cannot be copied (a lock, a function of
    `torch.jit.script`, an open file) are shared.

    Args:
        model: any module.
        share_parameters: whether both models have the same parameters.

    Raises:
        ValueError: its parameters are split among processes (`fully_shard`, FSDP, tensor parallelism), or one of its modules
            cannot be copied.
    """
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "placements"):  # a DTensor, which torch.distributed need not be imported to know
            raise ValueError(
                f"{name} is split among processes (fully_shard), and a scale needs its whole tensor: give qat the model before "
                "it is split, and train it with DistributedDataParallel."
            )
    memo: dict[int, object] = {id(p): p for p in model.parameters()} if share_parameters else {}
    for module in model.modules():
        for value in vars(module).values():
            for leaf in _leaves(value):
                if isinstance(leaf, Tensor) and not leaf.is_leaf:
                    memo[id(leaf)] = leaf.detach().clone()
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:  # an attribute that cannot be copied may raise anything
        memo |= {id(value): value for value in _without_a_copy(model, memo)}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise ValueError(
            f"{type(model).__name__} cannot be copied ({said}): let copy.deepcopy(model) work, with a __deepcopy__ of its own "
            "or without what has no copy."
        ) from error


def _without_a_copy(model: nn.Module, memo: dict[int, object]) -> list[Any]:
    """The values in attributes that cannot be copied."""
    found = []
    for leaf in (leaf for module in model.modules() for value in vars(module).values() for leaf in _leaves(value)):
        if not isinstance(leaf, nn.Module | Tensor):
            try:
                copy.deepcopy(leaf, dict(memo))
            except Exception:  # it may raise anything
                found.append(leaf)
    return found


def _leaves(value: Any) -> list[Any]:
    """The values in an attribute. Most attributes are plain values, tensors and empty dicts of hooks, which need no walk."""
    if type(value) in PLAIN or (isinstance(value, dict) and not value):
        return [value]
    leaves: list[Any] = tree_leaves(value)
    return leaves
