"""Quantizers whose rounding is not uniform: learned levels, learned thresholds."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from qat.estimators import StraightThrough
from qat.functional import look_up, quantize
from qat.grid import Grid
from qat.quantizers.base import Quantizer
from qat.quantizers.table import LookupTable
from qat.spec import QParams


class LookupTableQuantizer(Quantizer):
    """A weight is quantized by a function of its values, an activation by the same function in the form of a table.

    An activation is first rounded to `fine_grid`, 8 bits (narrow if signed) from 0 to the function's `saturation_point`. The
    function of those codes is a table of at most 256 entries, which is what an integer runtime has. So thresholds lie on
    multiples of saturation_point / 255; nothing else changes. Such quantizers are for inputs of layers; tensors between
    layers stay uniform.

    Gradient: that of the function, at the 8-bit value. Each element adds to the gradient of its table entry, and the entries
    pass their gradients on to what the function learns.

    Raises:
        ValueError: an affine grid, an unsigned one for a weight, or an estimator for an activation.
    """

    starts_as_static = False
    supports_both_signs = False

    def _build(self) -> None:
        if self.is_weight:
            self.require_weight()
        elif not isinstance(self.estimator, StraightThrough):
            raise ValueError(
                f"{type(self).__name__} quantizes activations with a table, which needs no gradient of rounding: give an "
                "estimator to the weight only."
            )
        self.require_symmetric()
        self.fine_grid = Grid(8, self.spec.grid.signed, narrow=self.spec.grid.signed)

    @abstractmethod
    def function(self, x: Tensor, elements_per_scale: int) -> Tensor:
        """x rounded to the levels, with this quantizer's gradients.

        Args:
            x: float32, any shape; the result has its shape.
            elements_per_scale: the N of LSQ's 1 / sqrt(N * qmax), see `Quantizer.elements_per_scale`.
        """

    @abstractmethod
    def codes_of(self, x: Tensor) -> Tensor:
        """The codes of `function(x)`, float32, same shape."""

    @abstractmethod
    def saturation_point(self) -> Tensor:
        """The value from which on an activation has the highest code: (1,), > 0, detached."""

    def fake_quantize(self, x: Tensor) -> Tensor:
        if self.is_weight:
            return self.function(x.float(), self.elements_per_scale(x)).to(x.dtype)
        scale, fine_values = self._fine_values()
        values, slopes = self._values_and_slopes(fine_values, self.elements_per_scale(x))
        return look_up(x, scale, self.fine_grid.qmin, self.fine_grid.qmax, values, slopes)

    def quantize(self, x: Tensor) -> Tensor:
        if self.is_weight:
            return self.codes_of(x.detach().float())
        scale, fine_values = self._fine_values()
        fine_codes = quantize(x, scale, 0, self.fine_grid.qmin, self.fine_grid.qmax)
        return self.codes_of(fine_values)[(fine_codes - self.fine_grid.qmin).long()]

    def lookup_table(self) -> LookupTable | None:
        if self.is_weight:
            return None
        scale, fine_values = self._fine_values()
        return LookupTable(self.fine_grid, QParams(scale, self.zero_point), self.codes_of(fine_values))

    def _fine_values(self) -> tuple[Tensor, Tensor]:
        """The scale of the fine grid (1,), and the real values of its codes, ascending.

        The outermost values also represent everything that is clipped, so they are doubled, beyond the saturation point.
        """
        scale = self.saturation_point() / self.fine_grid.qmax
        values = scale * torch.arange(self.fine_grid.qmin, self.fine_grid.qmax + 1, device=scale.device)
        values[-1:] *= 2
        if self.fine_grid.signed:
            values[:1] *= 2
        return scale, values

    def _values_and_slopes(self, fine_values: Tensor, elements_per_scale: int) -> tuple[Tensor, Tensor]:
        """The function of each fine value, and its derivative there: detached, 0 where values are clipped."""
        if not torch.is_grad_enabled():
            return self.function(fine_values, elements_per_scale), fine_values
        fine_values.requires_grad_()
        values = self.function(fine_values, elements_per_scale)
        (slopes,) = torch.autograd.grad(values.sum(), fine_values, retain_graph=True)
        return values, slopes
