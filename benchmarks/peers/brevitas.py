"""Brevitas (AMD)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PACKAGES = ("brevitas",)
SETTINGS = "layerwise_quantize, default map: weights per tensor, input scales learned; nothing between layers"


def prepare(network: nn.Module, x: Tensor) -> nn.Module:
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize

    # `quantize`, which also quantizes between layers, passes tuples on and fails in the shortcut's slice.
    prepared = layerwise_quantize(preprocess_for_quantize(network, merge_bn=False))
    with torch.no_grad(), calibration_mode(prepared):
        prepared(x)
    return prepared
