"""Sorting and choosing with a fixed order of equal values, that of ONNX: the one with the lower index comes first.

torch leaves that order open, and among 256 codes many values are equal: a file would choose others than the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.operations import call_of
from qat.torch_private import DispatchMode


def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool | None = True) -> Any:
    """torch.sort, always stable."""
    if torch.compiler.is_exporting():  # torch.onnx cannot write a stable sort, but those of ONNX are stable
        return torch.sort(input, dim, descending)
    return torch.sort(input, dim=dim, descending=descending, stable=True)


def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool | None = True) -> Tensor:
    """torch.argsort, always stable."""
    indices: Tensor = sort(input, dim, descending).indices
    return indices


def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """torch.topk, always sorted."""
    if torch.compiler.is_exporting():
        return torch.topk(input, k, dim, largest)
    return torch.return_types.topk(tuple(part.narrow(dim, 0, k) for part in sort(input, dim, largest)))


def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """torch.kthvalue."""
    return torch.return_types.kthvalue(_one_of_sorted(input, k - 1, dim, keepdim))


def median(input: Tensor, dim: int, keepdim: bool = False) -> Any:
    """torch.median along an axis: the lower one of two."""
    return torch.return_types.median(_one_of_sorted(input, (input.shape[dim] - 1) // 2, dim, keepdim))


def _one_of_sorted(input: Tensor, index: int, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    values, indices = (part.narrow(dim, index, 1) for part in sort(input, dim))
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


ORDERED = {function.__name__: function for function in (sort, argsort, topk, kthvalue, median)}
"""Operation -> the function that computes it with a fixed order of equal values."""
OF_ATEN = {"sort": sort, "sort.stable": sort, "topk": topk, "kthvalue": kthvalue, "median.dim": median}
"""The same by overload of ATen, whose other operations call these."""


def fix_order(model: nn.Module, graph: fx.Graph) -> None:
    """Give equal values a fixed order in all operations of a graph that sort or choose. In place."""
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        call = call_of(model, node)
        has_index = "input" in call.arguments and (call.name != "median" or "dim" in call.arguments)
        if call.name in ORDERED and has_index:
            node.op, node.target = "call_function", ORDERED[call.name]
            node.args, node.kwargs = (), dict(call.arguments)


class OneOrder(DispatchMode):
    """Inside the `with` block, torch's operations that sort or choose keep this order of equal values, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch in place of every operation."""
        return OF_ATEN.get(func.name().removeprefix("aten::"), func)(*args, **(kwargs or {}))
