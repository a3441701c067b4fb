"""The base class of quantizers to floating-point formats, whose scales are calculated from the tensor itself."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from qat.floating_point import FORMATS, FloatFormat
from qat.functional import with_gradient_of
from qat.granularity import Granularity, PerBlock, PerChannel
from qat.grid import Grid
from qat.observers import Observer
from qat.quantizers.base import Quantizer
from qat.spec import QParams, QuantSpec


class ScaledFloat(Quantizer):
    """Values of a floating-point format, times a scale for each tensor, channel or block; the largest value decides the scale.

    The scales of a weight are state, in the bits in which they are stored: they are set by calibration and, in training, anew
    in every forward; in evaluation they stay. An activation gets scales in every call (dynamic quantization), and nothing of it
    is stored, unless its class says otherwise (`FP8Static`). All are for inputs of layers; tensors between layers stay float.

    Nothing is learned but the weight. Gradient: straight-through everywhere. Codes are ranks (`qat.floating_point`), not
    multiples of the scale, so layers compute in float32 with the dequantized values.

    Args:
        spec, shape: as for every quantizer; the grid must have the bits of the format.
        observer: used by static activations only; elsewhere the format defines the scale.
        element: the name of the format, one of `elements`.
        axis: of an activation: the axis along which elements share a scale; set by the rule (-1 for linear layers).

    Raises:
        ValueError: an affine grid, an unsigned one, other bits than those of the format, or an unknown format.
    """

    supports_other_bits = False
    supports_both_signs = False
    starts_as_static = False
    scaled_codes = False
    for_layer_inputs = is_dynamic = True

    elements: ClassVar[tuple[str, ...]]
    """The formats that this quantizer has."""
    axis_of_convolutions: ClassVar[int | None] = 1
    """`axis` for the inputs of layers that are not linear."""

    def __init__(
        self,
        spec: QuantSpec,
        shape: tuple[int, ...] = (),
        observer: Observer | None = None,
        element: str = "",
        axis: int | None = -1,
    ) -> None:
        self.element, self.axis = element or self.elements[0], axis
        if self.element not in self.elements:
            raise ValueError(f"element={element!r} is not a format of {type(self).__name__}: write {self._choices()}.")
        super().__init__(
            replace(spec, granularity=self._granularity(spec, shape)), shape, None if self.is_dynamic else observer
        )

    def _build(self) -> None:
        self.require_symmetric()
        self.require_bits(self.format.bits)
        if not self.spec.grid.signed:
            raise ValueError(f"{type(self).__name__} has negative values, always: write signed: true.")
        self.spec = self.observer.spec = replace(self.spec, grid=Grid(self.format.bits, narrow=True))
        self.policy_grid = self.spec.grid
        self.is_dynamic = type(self).is_dynamic and not self.is_weight
        for name, stored in zip(
            self._names(), self.scales_of(torch.ones(self.n_qparams, dtype=torch.float32)), strict=True
        ):
            self.register_buffer(name, stored, persistent=not self.is_dynamic)
        if self.is_dynamic:
            self.register_buffer("zero_point", self.zero_point, persistent=False)
            self.initialized.fill_(True)
            self._ready = True

    @abstractmethod
    def _granularity(self, spec: QuantSpec, shape: tuple[int, ...]) -> Granularity:
        """Which elements share a scale."""

    @abstractmethod
    def _names(self) -> tuple[str, ...]:
        """The names of the buffers that hold what `scales_of` returns."""

    @abstractmethod
    def scales_of(self, largest: Tensor) -> tuple[Tensor, ...]:
        """The scales as they are stored, from the largest magnitude of each row: float32 (n_qparams,)."""

    @abstractmethod
    def scale_from(self, *stored: Tensor) -> Tensor:
        """The scales that `scales_of` returned, as float32 (n_qparams,): the real size of the value 1 of the format."""

    def _store(self, qparams: QParams) -> None:
        self._keep(self.scales_of(qparams.scale * self.format.largest))

    @property
    def format(self) -> FloatFormat:
        """The format of the elements."""
        return FORMATS[self.element]

    def qparams(self) -> QParams:
        return QParams(self.scale_from(*self._stored()), self.zero_point)

    def set_range(self, lo: Tensor, hi: Tensor) -> None:
        self.spec.qparams(lo, hi)  # refuses ranges that are not finite
        with torch.no_grad():
            self._keep(self.scales_of(torch.maximum(-lo, hi).clamp(min=0.0).float()))
            self.initialized.fill_(True)
        self._ready = True

    def quantize(self, x: Tensor) -> Tensor:
        view = self.spec.granularity.view(x.detach().float())
        return self.format.codes(self.format.round(view / self._scale_for(x.detach()))).reshape(x.shape)

    def dequantize(self, codes: Tensor) -> Tensor:
        scale = self.spec.granularity.broadcastable(self.qparams().scale, tuple(codes.shape))
        return (self.format.values(self.spec.granularity.view(codes)) * scale).reshape(codes.shape)

    @torch.compiler.disable  # inductor miscompiles the bit operations on shorter blocks
    def fake_quantize(self, x: Tensor) -> Tensor:
        values = x.detach().float()
        if self.is_weight and self.training:
            self._keep(self.scales_of(self._largest(values)))
        scale = self._scale_for(values)
        rounded = self.format.round(self.spec.granularity.view(values) / scale) * scale
        return with_gradient_of(rounded.reshape(x.shape).to(x.dtype), x)

    def nearest_code(self, average: Tensor) -> Tensor:
        return average.round().clamp(-self.format.highest_code, self.format.highest_code)

    def _scale_for(self, x: Tensor) -> Tensor:
        """The scales, broadcastable to the view of x: the stored ones, or those of an activation's own values."""
        scale = self.scale_from(*self.scales_of(self._largest(x.float()))) if self.is_dynamic else self.qparams().scale
        return self.spec.granularity.broadcastable(scale, tuple(x.shape))

    def _largest(self, x: Tensor) -> Tensor:
        """The largest magnitude of each row: (n_qparams,); 0 for an empty one."""
        rows = self.spec.granularity.rows(x)
        return rows.abs().amax(dim=1) if rows.numel() else rows.new_zeros(rows.shape[0])

    def _stored(self) -> tuple[Tensor, ...]:
        return tuple(self.get_buffer(name) for name in self._names())

    @torch.no_grad()
    def _keep(self, scales: tuple[Tensor, ...]) -> None:
        for buffer, value in zip(self._stored(), scales, strict=True):
            buffer.copy_(value)

    def _choices(self) -> str:
        return " or ".join(self.elements)

    @property
    @abstractmethod
    def format_name(self) -> str:
        """What `inspect` shows."""


class BlockScaledFloat(ScaledFloat):
    """`ScaledFloat` in blocks of `block_size` along the axis over which products are summed.

    That is the input axis of a weight (its input channels, at each position of a kernel), and the features or channels of an
    activation. The last block may be shorter.
    """

    block_size: ClassVar[int]

    def _granularity(self, spec: QuantSpec, shape: tuple[int, ...]) -> Granularity:
        if not shape:
            assert self.axis is not None
            return PerBlock(self.block_size, self.axis)
        given = spec.granularity
        size = getattr(given, "size", self.block_size)
        if size != self.block_size or (not isinstance(given, PerChannel) and not hasattr(given, "size")):
            written = f"group_size={size}" if hasattr(given, "size") else "granularity=per_tensor"
            raise ValueError(
                f"{written} is not possible, because {type(self).__name__} has a scale for every {self.block_size} inputs: "
                "write granularity: per_channel."
            )
        axis = 1 - given.axis if isinstance(given, PerChannel) else 1
        if len(shape) > 2 and shape[axis] == 1:
            raise ValueError(
                f"a weight of shape {shape} has one input channel, so that every block of {type(self).__name__} would hold one "
                "weight: write a rule for this layer with quantizer: FP8 and bits: 8."
            )
        return PerBlock(self.block_size, axis)
