"""The base class of quantizers whose levels are some of the codes of an 8-bit grid."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from qat.functional import clamp_straight_through, clip, round_to_multiple, scale_gradient, with_gradient_of
from qat.observers import Observer
from qat.quantizers.lookup_table import LookupTableQuantizer
from qat.quantizers.lsq import FLOOR_FACTOR
from qat.spec import QParams, QuantSpec


class Codebook(LookupTableQuantizer):
    """At most 2^bits levels, each a code of an 8-bit grid times the scale. Subclasses say which codes.

    The bits of the policy set the number of levels. The quantizer's own spec is the 8-bit grid that the levels are taken
    from, so integer layers take them as they are: 8-bit codes, few of which occur; files store eight bits per weight.
    Levels lie in -127..127 for weights and for activations that may be negative, in 0..255 for other activations.

    The scale learns as in LSQ: x goes to the nearest level (the lower one on a tie), straight-through between the
    outermost levels; dscale = g * (level - x / scale) inside and g * level outside, times LSQ's 1 / sqrt(N * qmax), where qmax
    is that of a uniform grid of as many bits, and times (qmax / outermost level)^2, so that the outermost level moves as fast
    as it would there, whatever the units of the levels.

    Raises:
        ValueError: a grid that is not symmetric, an unsigned one for a weight, or bits outside `possible_bits`.
    """

    supports_other_bits = False
    floor: Tensor

    def __init__(self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None) -> None:
        super().__init__(spec, shape, observer)
        self.require_bits(*self.possible_bits())
        self.bits, self.uniform_qmax = spec.grid.bits, spec.grid.qmax
        self.spec = replace(spec, grid=self.fine_grid)
        self.scale = nn.Parameter(torch.ones(self.n_qparams, dtype=torch.float32))
        self.register_buffer("floor", torch.full((self.n_qparams,), FLOOR_FACTOR, dtype=torch.float32))

    def possible_bits(self) -> tuple[int, ...]:
        """The widths that have levels, the recommended one first."""
        return (4, 2, 3, 5, 6, 7, 8)

    @abstractmethod
    def levels(self) -> Tensor:
        """The codes in use: ascending whole numbers held in float32 (n_levels,); may require grad."""

    def keep_zero(self) -> None:
        """Let zero be a level, in place, where levels move as they learn: pruned weights are zeros."""

    def qparams(self) -> QParams:
        return QParams(torch.maximum(self.scale.detach(), self.floor), self.zero_point)

    def set_range(self, lo: Tensor, hi: Tensor) -> None:
        """Start with the outermost levels on the range: the scale is max(|lo|, |hi|) / the outermost level."""
        scale, zero_point = self.spec.qparams(lo, hi)
        self.set_qparams(QParams(scale * (self.spec.grid.qmax / self._outermost()), zero_point))

    def nearest_code(self, average: Tensor) -> Tensor:
        levels = self.levels().detach()
        return levels[Codebook._index(self, average, levels)]  # LCQ's own index is for values, not for codes

    def saturation_point(self) -> Tensor:
        return self.levels().detach()[-1] * self.qparams().scale

    def codes_of(self, x: Tensor) -> Tensor:
        granularity, shape = self.spec.granularity, tuple(x.shape)
        v = granularity.view(x) / granularity.broadcastable(self.qparams().scale, shape)
        levels = self.levels().detach()
        return levels[self._index(v, levels)].reshape(shape)

    def function(self, x: Tensor, elements_per_scale: int) -> Tensor:
        granularity, shape = self.spec.granularity, tuple(x.shape)
        levels, uniform = self.levels(), self.uniform_qmax
        factor = (elements_per_scale * uniform) ** -0.5 * (uniform / self._outermost()) ** 2
        scale = granularity.broadcastable(scale_gradient(clamp_straight_through(self.scale, self.floor), factor), shape)
        lowest, highest = levels.detach()[[0, -1]]
        clipped = clip(granularity.view(x), lowest * scale, highest * scale)
        return round_to_multiple(clipped, scale, lambda v: self._round(v, levels)).reshape(shape)

    def _index(self, v: Tensor, levels: Tensor) -> Tensor:
        """The index of the level nearest to each v = x / scale; the lower one on a tie."""
        return torch.bucketize(v, (levels[1:] + levels[:-1]) / 2)

    def _round(self, v: Tensor, levels: Tensor) -> Tensor:
        """The level of each v, straight-through for v; a learned level gets the gradients of the values rounded to it."""
        chosen = levels[self._index(v.detach(), levels.detach())]
        return with_gradient_of(chosen, chosen + v) if levels.requires_grad else with_gradient_of(chosen, v)

    def _outermost(self) -> float:
        return max(1.0, float(self.levels().detach().abs().max()))

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
        self.floor.copy_(qparams.scale * FLOOR_FACTOR)
