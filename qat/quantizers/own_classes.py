"""Whether a quantizer class of somebody else's keeps what the base class promises; those of this package have tests."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.quantizers.base import Quantizer
from qat.spec import QParams

MOST_TIES = 0.01
"""The share of values that may lie between two codes, where rounding is free."""
SAMPLES = 1_000


@torch.no_grad()
def check_own_class(quantizer: Quantizer, weight: Tensor | None) -> None:
    """Check that training and deployment round alike: `fake_quantize(x)` is `dequantize(quantize(x))`.

    Args:
        quantizer: with a range; one of this package, or a dynamic one, is not checked.
        weight: what it quantizes; None: activations.

    Raises:
        ValueError: they do not, or `qparams()` is no scale with a zero-point.
    """
    name = type(quantizer).__name__
    if type(quantizer).__module__.partition(".")[0] == "qat" or quantizer.is_dynamic:
        return
    _check_qparams(name, quantizer)
    x = _ramp(quantizer) if weight is None else weight.detach()
    trained, deployed = quantizer.fake_quantize(x).float(), quantizer.dequantize(quantizer.quantize(x)).float()
    differ = ~torch.isclose(trained, deployed, rtol=1e-5, atol=1e-7 * float(deployed.abs().max()))
    if float(differ.float().mean()) > MOST_TIES:
        i = int(differ.flatten().int().argmax())
        raise ValueError(
            f"{name} of {quantizer.label!r} trains with {trained.flatten()[i]:g} and deploys {deployed.flatten()[i]:g} for "
            f"{x.flatten()[i]:g}: let fake_quantize(x) round as qparams() says, or override quantize and dequantize."
        )


def _ramp(quantizer: Quantizer) -> Tensor:
    """Values from one end of an activation's grid to the other."""
    grid, (scale, zero_point) = quantizer.spec.grid, quantizer.qparams()
    return torch.linspace(grid.qmin, grid.qmax, SAMPLES, device=scale.device).sub(zero_point).mul(scale).float()


def _check_qparams(name: str, quantizer: Quantizer) -> None:
    found = quantizer.qparams()
    if not isinstance(found, QParams):
        raise ValueError(
            f"{name}.qparams() of {quantizer.label!r} returned {found!r}: write qat.spec.QParams(scale, zero_point)."
        )
    grid, (scale, zero) = quantizer.spec.grid, found
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise ValueError(
            f"{name}.qparams() of {quantizer.label!r} has a scale of {float(scale.min()):g}: write scales above 0."
        )
    if not bool(((zero == zero.round()) & (zero >= grid.qmin) & (zero <= grid.qmax)).all()):
        raise ValueError(
            f"{name}.qparams() of {quantizer.label!r} has a zero_point of {float(zero.max()):g}: write whole numbers from "
            f"{grid.qmin} to {grid.qmax}."
        )
