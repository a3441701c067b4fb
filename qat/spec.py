"""The specification of one quantized tensor, and the only place where a range becomes (scale, zero_point)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from qat.granularity import Granularity, PerTensor
from qat.grid import Grid
from qat.messages import shown

SMALLEST_SCALE = 2.0**-60
"""The lower bound of all scales: x / scale stays finite in float32 for |x| < 2**67."""


class QParams(NamedTuple):
    """Scale and zero-point of one quantized tensor."""

    scale: Tensor
    """float32 (n_qparams,), > 0: the real size of one step."""
    zero_point: Tensor
    """int32 (n_qparams,): the code of 0.0."""


@dataclass(frozen=True)
class QuantSpec:
    """Grid, granularity and symmetry of one tensor; shared by PTQ, QAT and export.

    >>> spec = QuantSpec(Grid(8, narrow=True))
    >>> spec.qparams(torch.tensor([-1.0]), torch.tensor([127.0]))
    QParams(scale=tensor([1.]), zero_point=tensor([0], dtype=torch.int32))

    Raises:
        ValueError: a field is of another type.
    """

    grid: Grid
    granularity: Granularity = field(default_factory=PerTensor)
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.grid, Grid):
            raise ValueError(f"grid={shown(self.grid)} of a QuantSpec is not a Grid: write qat.Grid(8).")
        if not isinstance(self.granularity, Granularity):
            raise ValueError(
                f"granularity={shown(self.granularity)} of a QuantSpec is not one: write qat.PerChannel()."
            )
        if not isinstance(self.symmetric, bool):
            raise ValueError(
                f"symmetric={shown(self.symmetric)} of a QuantSpec is neither True nor False: write symmetric=True."
            )

    def qparams(self, lo: Tensor, hi: Tensor) -> QParams:
        """Scale and zero-point that cover the real range [lo, hi], widened to contain 0.0.

        Symmetric: scale = max(|lo|, |hi|) / qmax and zero_point 0 (an unsigned grid covers [0, hi]). Affine:
        scale = (hi - lo) / (qmax - qmin), zero_point rounded half to even. An empty range (a dead channel) gets the
        largest scale of its tensor, so that it can recover, and 1 if all are empty (`is_empty`).

        Args:
            lo, hi: float32 (n_qparams,).

        Returns:
            Scale and zero-point, each (n_qparams,).

        Raises:
            ValueError: lo or hi is NaN or infinite, or hi - lo is infinite on an affine grid.
        """
        finite = torch.isfinite(lo) & torch.isfinite(hi) & (self.symmetric | torch.isfinite(hi - lo))
        if not torch.compiler.is_exporting() and not bool(
            finite.all()
        ):  # an exported program has no branches on values
            first = int(finite.flatten().logical_not().nonzero()[0])
            where = f" of scale {first}" if finite.numel() > 1 else ""
            ends = [float(bound.flatten()[first]) for bound in (lo, hi)]
            raise ValueError(f"the range {ends}{where} is not finite: look for NaN in weights or data.")
        lo, hi = lo.float().clamp(max=0.0), hi.float().clamp(min=0.0)
        qmin, qmax = self.grid.qmin, self.grid.qmax
        scale = self._width(lo, hi) / (qmax if self.symmetric else qmax - qmin)
        largest = scale.max()
        scale = torch.where(scale > 0, scale, torch.where(largest > 0, largest, torch.ones_like(largest)))
        scale = scale.clamp(min=SMALLEST_SCALE)
        zero_point = torch.zeros_like(scale) if self.symmetric else (qmin - torch.round(lo / scale)).clamp(qmin, qmax)
        return QParams(scale, zero_point.to(torch.int32))

    def is_empty(self, lo: Tensor, hi: Tensor) -> bool:
        """Whether no range [lo, hi], each (n_qparams,), holds a number that needs a code of its own beside 0.0.

        >>> spec = QuantSpec(Grid(8, signed=False))
        >>> spec.is_empty(torch.tensor([-1.0]), torch.tensor([0.0]))  # this grid begins at 0
        True
        """
        return not bool((self._width(lo.clamp(max=0.0), hi.clamp(min=0.0)) > 0).any())

    def _width(self, lo: Tensor, hi: Tensor) -> Tensor:
        """How much of [lo, hi], which contains 0, the codes must reach: on one side of 0 if symmetric."""
        if not self.symmetric:
            return hi - lo
        return torch.maximum(-lo, hi) if self.grid.signed else hi
