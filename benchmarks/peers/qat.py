"""This project, measured by the same program as the others."""

from __future__ import annotations

from torch import Tensor, nn

PACKAGES: tuple[str, ...] = ()
SETTINGS = "qat.prepare(network, 'w8a8'): LSQ, every scale learned, weights per channel"


def prepare(network: nn.Module, x: Tensor) -> nn.Module:
    import qat

    prepared = qat.prepare(network, "w8a8")
    qat.calibrate(prepared, [x])
    return prepared
