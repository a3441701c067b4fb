"""NNCF (OpenVINO)."""

from __future__ import annotations

import os

from torch import Tensor, nn

PACKAGES = ("nncf", "torch")
SETTINGS = "nncf.quantize, default preset: every range learned, weights per channel"


def prepare(network: nn.Module, x: Tensor) -> nn.Module:
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "600")  # seconds; nncf compiles its operations first
    import nncf

    return nncf.quantize(network.eval(), nncf.Dataset([x]), subset_size=1, fast_bias_correction=True)
