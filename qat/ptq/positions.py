"""A layer at random positions of its output: what a step of layer reconstruction computes instead of whole images.

Neighbouring positions of an image say nearly the same about a layer's weight, and the positions of all images together are more
than a step can use. The steps therefore draw their positions from all images alike, and gather only what these read.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.nn import as_quantized
from qat.nn.padding import padding_of_every_side
from qat.torch_private import BatchNorm

POOL = 4
"""Steps whose positions are gathered at once."""
REUSED = 2
"""Times that each gathered position is used."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LayerAtPositions:
    """A convolution or linear layer, with the elementwise functions and BatchNorms behind it.

    Args:
        layer: quantized; see `takes`.
        behind: what follows it; takes (positions, channels, 1, ...), or (positions, features) of a linear layer.
        inputs: the inputs of the layer for all images: (N, C, ...), or (..., features).
        target: the output of `behind` in the float network for all images.
    """

    def __init__(self, layer: nn.Module, behind: Callable[[Tensor], Tensor], inputs: Tensor, target: Tensor) -> None:
        self.layer, self.behind = layer, behind
        self.groups, self.images = 1, len(inputs)
        self.pool: list[int] = []  # where the next steps begin in what was gathered
        quantizer = as_quantized(layer).input_quantizer
        with torch.no_grad():
            inputs = inputs if quantizer is None else quantizer(inputs)
        if isinstance(layer, nn.Linear):
            self.axes = 0
            self.windows = inputs.reshape(-1, inputs.shape[-1])
            self.target = target.reshape(-1, target.shape[-1])
            self.outputs: tuple[int, ...] = self.windows.shape[:1]
            return
        assert isinstance(layer, CONVOLUTIONS)
        self.axes, self.groups = len(layer.kernel_size), layer.groups
        self.windows = _windows(layer, inputs)
        self.outputs = (len(inputs), *target.shape[2:])
        self.target = target.movedim(1, -1).reshape(-1, target.shape[1])

    @staticmethod
    def takes(layer: nn.Module, others: list[nn.Module], inputs: Tensor) -> bool:
        """Whether a layer can be computed at positions; `others` are the modules behind it."""
        norms = [module for module in others if isinstance(module, BatchNorm)]
        if any(norm.training or norm.running_mean is None for norm in norms):
            return False  # statistics of a batch need whole images
        if isinstance(layer, CONVOLUTIONS):
            return inputs.ndim == len(layer.kernel_size) + 2
        return isinstance(layer, nn.Linear) and inputs.is_floating_point() and (inputs.ndim == 2 or not norms)

    def sample(self, images: int, positions: int) -> tuple[Tensor, Tensor]:
        """images * positions random positions of all images, but at most images * (the positions that one image has).

        What is gathered serves `REUSED` steps, each time in other parts, because gathering takes as long as computing.

        Returns:
            What the layer reads there, (n, inputs) or (n, ..., C), and the target, (n, outputs).
        """
        total = prod(self.outputs)
        n = images * max(1, min(positions, total // self.images))
        if not self.pool:
            chosen = torch.randint(total, (n * POOL,)).to(self.target.device)
            where = torch.unravel_index(chosen, self.outputs) if self.axes else chosen
            self.gathered = self.windows[where], self.target[chosen]
            self.pool = torch.randint(n * (POOL - 1) + 1, (REUSED * POOL,)).tolist()
        start = self.pool.pop()
        x, target = (part[start : start + n] for part in self.gathered)
        return x, target

    def compute(self, x: Tensor) -> Tensor:
        """The layer's output, and what is behind it, at sampled positions: (n, outputs)."""
        layer: Any = self.layer
        weight = as_quantized(layer).weight_quantizer(layer.weight)  # type: ignore[misc]
        y = F.linear(x, weight, layer.bias) if not self.axes else self._convolve(x, weight)
        if not self.axes:
            return self.behind(y)
        return self.behind(y.reshape(*y.shape, *[1] * self.axes)).flatten(1)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """x: (n, ..., C) with kernel axes in the middle; weight: (outputs, C / groups, ...)."""
        bias, groups = as_quantized(self.layer).bias, self.groups
        rows = weight.movedim(1, -1).flatten(1)  # in the order of x: kernel, then inputs
        if groups == 1:
            return F.linear(x.flatten(1), rows, bias)
        x = x.flatten(1, -2).unflatten(-1, (groups, -1)).permute(2, 0, 1, 3).flatten(2)  # (groups, n, kernel * inputs)
        y = torch.bmm(x, rows.unflatten(0, (groups, -1)).transpose(1, 2)).permute(1, 0, 2).flatten(1)
        return y if bias is None else y + bias


def _windows(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """The inputs of each output, as a view: (N, *outputs, *kernel, C)."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, padding_of_every_side(layer), mode).movedim(1, -1).contiguous()
    sizes, strides = [len(x)], [x.stride(0)]
    for axis, (kernel, step, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), 1
    ):
        sizes.append((x.shape[axis] - dilation * (kernel - 1) - 1) // step + 1)
        strides.append(x.stride(axis) * step)
    for axis, dilation in enumerate(layer.dilation, 1):
        strides.append(x.stride(axis) * dilation)
    return x.as_strided((*sizes, *layer.kernel_size, x.shape[-1]), (*strides, 1))
