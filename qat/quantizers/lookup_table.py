"""Functions of a value that no uniform rounding computes: learned levels, learned thresholds."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from qat.estimators import StraightThrough
from qat.functional import look_up, quantize
from qat.grid import Grid
from qat.quantizers.base import Quantizer, Table
from qat.spec import QParams


class LookupTableQuantizer(Quantizer):
    """A weight is quantized by a function of its values. An activation is rounded to 8 bits first, narrow if signed, from 0 to
    the `reach` of the function, and what the function makes of those codes is a table of at most 256 entries, which is what
    an integer runtime has: thresholds lie on multiples of reach / 255, and nothing else changes.

    Gradient: that of the function, at the 8-bit value. An element adds to the gradient of its entry, and the entries to those
    of what the function learns.

    Raises:
        ValueError: an affine grid, an unsigned one for a weight, or an estimator for an activation.
    """

    by_table = True
    starts_as_static = False

    def _build(self) -> None:
        if self.is_weight:
            self.require_weight()
        elif not isinstance(self.estimator, StraightThrough):
            raise ValueError(
                f"{type(self).__name__} looks activations up, where rounding has no gradient of its own: give the weight alone "
                "an estimator."
            )
        self.require_symmetric()
        self.fine = Grid(8, self.spec.grid.signed, narrow=self.spec.grid.signed)

    @abstractmethod
    def function(self, x: Tensor, elements_per_scale: int) -> Tensor:
        """x, float32, rounded to the levels, with this quantizer's gradients; same shape.

        sharing: the N of LSQ's 1 / sqrt(N * qmax), as `Quantizer.elements_per_scale` has it.
        """

    @abstractmethod
    def codes_of(self, x: Tensor) -> Tensor:
        """The codes of `function(x)`, float32, same shape."""

    @abstractmethod
    def reach(self) -> Tensor:
        """From where on an activation has the highest code (1,), detached, > 0."""

    def fake_quantize(self, x: Tensor) -> Tensor:
        if self.is_weight:
            return self.function(x.float(), self.elements_per_scale(x)).to(x.dtype)
        scale, points = self._points()
        values, slopes = self._values_and_slopes(points, self.elements_per_scale(x))
        return look_up(x, scale, self.fine.qmin, self.fine.qmax, values, slopes)

    def quantize(self, x: Tensor) -> Tensor:
        if self.is_weight:
            return self.codes_of(x.detach().float())
        scale, points = self._points()
        fine = quantize(x, scale, 0, self.fine.qmin, self.fine.qmax)
        return self.codes_of(points)[(fine - self.fine.qmin).long()]

    def table(self) -> Table | None:
        if self.is_weight:
            return None
        scale, points = self._points()
        return Table(self.fine, QParams(scale, self.zero_point), self.codes_of(points))

    def _points(self) -> tuple[Tensor, Tensor]:
        """The fine scale (1,), and the values of the fine grid, ascending. The outermost stand for all that is clipped, so they
        lie beyond the reach.
        """
        scale = self.reach() / self.fine.qmax
        points = scale * torch.arange(self.fine.qmin, self.fine.qmax + 1, device=scale.device)
        points[-1:] *= 2
        if self.fine.signed:
            points[:1] *= 2
        return scale, points

    def _values_and_slopes(self, points: Tensor, elements_per_scale: int) -> tuple[Tensor, Tensor]:
        """The function at each point, and its gradient there: detached, 0 where values are clipped."""
        if not torch.is_grad_enabled():
            return self.function(points, elements_per_scale), points
        points.requires_grad_()
        values = self.function(points, elements_per_scale)
        (slopes,) = torch.autograd.grad(values.sum(), points, retain_graph=True)
        return values, slopes
