"""GPTQ (Frantar et al. 2022, "Accurate post-training quantization for generative pre-trained transformers", 2210.17323)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qat.arguments import is_number
from qat.functional import dequantize, quantize
from qat.nn import as_quantized
from qat.ptq.base import Pass
from qat.ptq.side_by_side import layers_in_order
from qat.ptq.state import PTQState
from qat.ptq.unfold import unfold_inputs
from qat.quantizers import Quantizer, ScaledFloat

Rounding = Callable[[Tensor, int], Tensor]
"""From a column of the weight, (out,), and its number to its values on the grid."""


class GPTQ(Pass):
    """Rounds the weights of each layer one input at a time; the weights not yet rounded compensate for the error.

    The Hessian of |W x^ - W^ x^|^2 is 2 X X^T over the layer's inputs x^ in the quantized network; errors are passed on along
    the rows of the Cholesky factor of its inverse (eq. 2 and 3, algorithm 1). Scales stay as they were calibrated. Afterwards
    the layer's weight lies on its grid.

    Weights of 0 stay 0, so that a pruned network stays one. Layers that are neither linear nor a convolution of one or two axes
    keep their weights. The scales of FP8, MX and NVFP4 stay as they were calibrated, too.

    Differs from the paper: weights of 0 are left out; inputs of convolutions are their patches; each group of a grouped
    convolution has its own Hessian; errors are passed on at once, without lazy batches, which computes the same.

    Args:
        damping: added to the Hessian's diagonal, as a fraction of its mean.
    """

    rounds_weights = True

    def __init__(self, damping: float = 0.01) -> None:
        if not (is_number(damping) and damping > 0):
            raise ValueError(f"damping={damping!r} is not possible: write a positive number, for example 0.01.")
        self.damping = damping

    @torch.no_grad()
    def apply(self, state: PTQState) -> None:
        for layer, inputs in layers_in_order(state, "GPTQ"):
            self._round(layer, inputs)

    def _round(self, layer: nn.Module, batches: list[Tensor]) -> None:
        weight, quantizer = as_quantized(layer).weight, as_quantized(layer).weight_quantizer
        assert quantizer is not None
        groups = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
        hessians = _hessians(layer, batches, groups)
        scale, zero_point = (_qparam_per_weight(p, quantizer, weight).chunk(groups) for p in quantizer.qparams())
        rows = [
            round_columns(w, h, rounding_of(quantizer, s, z), self.damping)
            for w, h, s, z in zip(weight.flatten(1).chunk(groups), hessians, scale, zero_point, strict=True)
        ]
        weight.copy_(torch.cat(rows).reshape(weight.shape))


def rounding_of(quantizer: Quantizer, scale: Tensor, zero_point: Tensor) -> Rounding:
    """Rounding to the grid of a quantizer with these scales and zero-points, both (out, in)."""
    grid = quantizer.spec.grid

    def to_grid(column: Tensor, i: int) -> Tensor:
        s, z = scale[:, i], zero_point[:, i]
        return dequantize(quantize(column, s, z, grid.qmin, grid.qmax), s, z)

    def to_format(column: Tensor, i: int) -> Tensor:
        assert isinstance(quantizer, ScaledFloat)
        return quantizer.format.round(column.float() / scale[:, i]) * scale[:, i]

    return to_format if isinstance(quantizer, ScaledFloat) else to_grid


def round_columns(weight: Tensor, hessian: Tensor, rounded: Rounding, damping: float = 0.01) -> Tensor:
    """The weight on its grid, rounded column by column from the left (algorithm 1).

    Args:
        weight: (out, in).
        hessian: (in, in), float64.
        rounded: rounds a column.
        damping: added to the Hessian's diagonal, as a fraction of its mean.
    """
    hessian, weight, pruned = hessian.clone(), weight.double().clone(), weight == 0
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = (
        diagonal[~dead].mean() if not dead.all() else 1.0
    )  # the input is always 0: the weight does not matter
    diagonal += damping * diagonal.mean()
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    result = torch.empty_like(weight, dtype=torch.float32)
    for i in range(weight.shape[1]):
        result[:, i] = rounded(weight[:, i], i).masked_fill(pruned[:, i], 0.0)
        error = (weight[:, i] - result[:, i].double()) / upper[i, i]
        weight[:, i:] -= error[:, None] * upper[i, i:]
    return result


def _qparam_per_weight(p: Tensor, quantizer: Quantizer, weight: Tensor) -> Tensor:
    """A qparam for every single weight: (n_qparams,) -> (out, in)."""
    granularity, shape = quantizer.spec.granularity, tuple(weight.shape)
    return granularity.broadcastable(p, shape).expand(granularity.view(weight).shape).reshape(shape).flatten(1)


def _hessians(layer: nn.Module, batches: list[Tensor], groups: int) -> Tensor:
    """2 X X^T of each group: (groups, in, in), float64."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        for x in batch.split(64):  # patches are at least as large as their image, often nine times
            inputs = unfold_inputs(layer, x.float()).unflatten(1, (groups, -1)).transpose(0, 1)  # (groups, rows, in)
            total = total.to(x.device) + 2.0 * (inputs.transpose(1, 2) @ inputs).double()
    return total
