"""From calls of pools and means, in all their spellings, to descriptions."""

from __future__ import annotations

from typing import Any

from torch import fx

from qat.operations.base import Operation
from qat.operations.call import Call
from qat.operations.movement import MaxPool
from qat.operations.pooling import AveragePool, Mean


def read_mean(call: Call, inputs: tuple[fx.Node, ...], before: object) -> Operation | None:
    """The mean or sum over fixed axes that a call is; None if it is another operation."""
    if call.name not in ("mean", "sum") or len(inputs) != 1 or call.get("dtype") is not None:
        return None
    dims = call.get("dim")
    dims = (dims,) if isinstance(dims, int) else tuple(dims) if isinstance(dims, list | tuple) else ()
    if not dims or not all(isinstance(d, int) for d in dims):
        return None
    return Mean(inputs, dims, bool(call.get("keepdim")), total=call.name == "sum")


def read_pool(call: Call, inputs: tuple[fx.Node, ...], before: object) -> Operation | None:
    """The pool of fixed size that a call is; None if it is another operation."""
    name, _, axes = call.name.rpartition("pool")
    if len(inputs) != 1 or axes not in ("1d", "2d", "3d"):
        return None
    rank = int(axes[0])
    if name.startswith("adaptive_avg"):
        is_global = sizes(call.get("output_size"), rank) == (1,) * rank
        return Mean(inputs, tuple(range(-rank, 0)), keepdim=True) if is_global else None
    if name not in ("avg_", "max_") or call.get("return_indices") or call.get("divisor_override") is not None:
        return None
    kernel, padding = sizes(call.get("kernel_size"), rank), sizes(call.get("padding", 0), rank)
    stride = sizes(call.get("stride"), rank) or kernel
    if kernel is None or stride is None or padding is None:
        return None
    ceil_mode = bool(call.get("ceil_mode"))
    if name == "avg_":
        counts_padding = bool(call.get("count_include_pad", True))
        return None if ceil_mode else AveragePool(inputs, kernel, stride, padding, counts_padding)
    dilation = sizes(call.get("dilation", 1), rank)
    if dilation is None:
        return None
    return MaxPool(
        inputs,
        on_bytes=False,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
    )


def sizes(value: Any, count: int) -> tuple[int, ...] | None:
    """One number for each axis; None if the value is not that many fixed numbers."""
    if isinstance(value, int):
        return (value,) * count
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    numbers = numbers * count if len(numbers) == 1 else numbers
    return numbers if len(numbers) == count and all(isinstance(v, int) for v in numbers) else None
