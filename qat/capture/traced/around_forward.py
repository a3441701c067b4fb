"""A `__call__` of the user's class, which a graph of forward does not contain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qat.contexts import training_mode
from qat.torch_private import tree_leaves


def around_forward(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Why a graph of forward would lack something that calls of the model compute, as a sentence; "" if it lacks nothing.

    args, kwargs: example inputs, which show whether a `__call__` (that only adds type hints) adds nothing.
    """
    call = type(model).__call__
    if call is nn.Module.__call__ or call.__module__.startswith("torch."):
        return ""
    if not args and not kwargs:
        return f"{type(model).__name__} has a __call__ of its own, and there are no example inputs"
    try:
        of_call, of_forward = (_results(model, function, args, kwargs) for function in (call, nn.Module.__call__))
        same = len(of_call) == len(of_forward) and all(map(_equal, of_call, of_forward))
    except Exception:  # forward may not take what the __call__ takes
        same = False
    return "" if same else f"the __call__ of {type(model).__name__} computes something around forward"


def _results(
    model: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Tensor]:
    with training_mode(model, False), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return [leaf.clone() for leaf in tree_leaves(call(model, *args, **kwargs)) if isinstance(leaf, Tensor)]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
