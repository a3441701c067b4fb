"""Functions that torch.onnx cannot write, in terms of those that it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qat.export.onnx.recurrent import RECURRENT


class WritableFunctions(TorchFunctionMode):
    """Inside the `with`, functions of `EQUIVALENTS` are computed by their equivalents."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of every function."""
        return EQUIVALENTS.get(func, func)(*args, **(kwargs or {}))


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """torch.nn.functional.embedding_bag for indices (bags, length), or (length,) with offsets, as products with masks.

    Returns:
        (bags, size of an embedding).
    """
    rows = input if offsets is None else input.unsqueeze(0)
    member = torch.ones_like(rows, dtype=torch.bool)
    if offsets is not None:
        end = input.new_full((1,), input.shape[0])
        bounds = offsets if include_last_offset else torch.cat((offsets.to(end.dtype), end))
        position = torch.arange(input.shape[0], device=input.device)
        member = (position >= bounds[:-1].unsqueeze(1)) & (position < bounds[1:].unsqueeze(1))
    if padding_idx is not None:
        member = member & (rows != padding_idx % weight.shape[0])
    embedded = F.embedding(rows, weight)  # (bags, or 1 for all, length, size)
    if mode == "max":
        largest = embedded.masked_fill(member.logical_not().unsqueeze(-1), torch.finfo(weight.dtype).min).amax(1)
        return torch.where(member.any(1, keepdim=True), largest, 0.0)
    share = member.to(weight.dtype)
    if mode == "mean":
        share = share / share.sum(1, keepdim=True).clamp(min=1)
    if per_sample_weights is not None:
        share = share * (per_sample_weights if offsets is None else per_sample_weights.unsqueeze(0))
    return torch.matmul(share.unsqueeze(1), embedded).squeeze(1)


def rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """torch.nn.functional.rrelu in evaluation: a leaky ReLU with the mean slope."""
    return F.leaky_relu(input, (lower + upper) / 2)


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """torch.cdist: the distances of rows, [..., P, M] and [..., R, M] -> [..., P, R]."""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), ord=p, dim=-1)


def cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """torch.cumprod, in as many steps as its size has binary digits."""
    product = (input if dtype is None else input.to(dtype)).movedim(dim, -1)
    shift = 1
    while shift < input.shape[dim]:
        product = product * F.pad(product[..., :-shift], (shift, 0), value=1)
        shift *= 2
    return product.movedim(-1, dim)


def fill_diagonal(input: Tensor, fill_value: float, wrap: bool = False) -> Tensor:
    """Tensor.fill_diagonal_ of a matrix, as a new tensor."""
    if input.ndim != 2 or wrap:
        return input.fill_diagonal_(fill_value, wrap)
    rows, columns = (torch.arange(size, device=input.device) for size in input.shape)
    return input.masked_fill(rows.unsqueeze(1) == columns, fill_value)


EQUIVALENTS: dict[Any, Callable[..., Any]] = {
    F.embedding_bag: embedding_bag,
    F.rrelu: rrelu,
    torch.cdist: cdist,
    **dict.fromkeys((torch.cumprod, Tensor.cumprod), cumprod),
    Tensor.fill_diagonal_: fill_diagonal,
    **RECURRENT,
}
