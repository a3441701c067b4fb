"""Dynamic quantization: each tensor has its own range (ONNX DynamicQuantizeLinear), or each token."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.functional import dequantize, with_gradient_of
from qat.observers import Observer
from qat.quantizers.base import Quantizer
from qat.spec import QParams, QuantSpec


class Dynamic(Quantizer):
    """Uses the range of each tensor, widened to contain 0: scale = (max - min) / 255, zero_point = round(-min / scale), uint8.

    That is ONNX DynamicQuantizeLinear, bit for bit. Nothing is calibrated or learned; `qparams` are those of the last tensor.
    Gradient: straight-through everywhere, because nothing is clipped. For inputs of layers; tensors between layers stay float.

    The range is that of the whole batch, so the result for one image depends on the others in its batch: evaluate with the
    batch size that will be deployed.

    Raises:
        ValueError: a weight, or a grid other than 8 bits, affine, per tensor.
    """

    for_layer_inputs = is_dynamic = True

    scale: Tensor

    def __init__(self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None) -> None:
        super().__init__(spec, shape, observer)

    def _build(self) -> None:
        if self.is_weight:
            raise ValueError(
                f"{type(self).__name__} is for activations, because a weight is always the same: write quantizer: Static."
            )
        self._check_spec()
        self.register_buffer("scale", torch.ones(1, dtype=torch.float32), persistent=False)
        self.register_buffer("zero_point", self.zero_point, persistent=False)  # of the last tensor, in this process
        self.initialized.fill_(True)
        self._ready = True

    def _check_spec(self) -> None:
        """Raise ValueError for a grid that this quantizer does not have."""
        if self.spec.symmetric or self.spec.grid.bits != 8 or self.n_qparams != 1:
            raise ValueError(
                "Dynamic is ONNX DynamicQuantizeLinear, 8 bits with a zero-point: write bits: 8 and symmetric: false."
            )

    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point)

    def quantize(self, x: Tensor) -> Tensor:
        self._update_range(x)
        return super().quantize(x)

    def fake_quantize(self, x: Tensor) -> Tensor:
        codes = self.quantize(x.detach())
        return with_gradient_of(dequantize(codes, self.scale, self.zero_point).to(x.dtype), x)

    def _update_range(self, x: Tensor) -> None:
        """Store the qparams of x; an empty x changes nothing."""
        if x.numel():
            lo, hi = torch.aminmax(x.detach().float())
            self._store(self.spec.qparams(lo[None], hi[None]))

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
        self.zero_point.copy_(qparams.zero_point)


class DynamicPerToken(Dynamic):
    """Uses the largest magnitude of each token (each row over the last axis): scale = max |x| / 127, int8, symmetric.

    The result for one token depends on no other: not on the rest of the batch, and not on padding. For inputs of linear
    layers; convolutions get a range per tensor, as with `Dynamic`. Gradient: straight-through everywhere.
    (Yao et al. 2022, "ZeroQuant", arXiv:2206.01861, section 4.2, without its kernels.)

    Raises:
        ValueError: a weight, or a grid other than 8 bits, symmetric, per tensor.
    """

    def _check_spec(self) -> None:
        if not self.spec.symmetric or self.spec.grid.bits != 8 or not self.spec.grid.signed or self.n_qparams != 1:
            raise ValueError("DynamicPerToken has 8 bits without a zero-point: write bits: 8 and symmetric: true.")

    def quantize(self, x: Tensor) -> Tensor:
        return torch.round(x.float() / token_scale(x)).clamp(-127, 127)

    def fake_quantize(self, x: Tensor) -> Tensor:
        scale = token_scale(x.detach())
        codes = torch.round(x.detach().float() / scale).clamp(-127, 127)
        return with_gradient_of((codes * scale).to(x.dtype), x)


def token_scale(x: Tensor) -> Tensor:
    """max |x| / 127 over the last axis: float32 [..., 1]; a token of zeros has the smallest normal number."""
    return (x.float().abs().amax(dim=-1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
