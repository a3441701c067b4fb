"""Does a LiteRT file decide what the integer model does, in int8 kernels?"""

from typing import Any

from torch import nn

from qat.export.device import Device, Written
from qat.export.litert.program import converted
from qat.export.litert.runtime import LitertNetwork, operators

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "BATCH_MATMUL")
"""Operators that compute layers."""


def _written(integer: nn.Module, example: Any) -> Written:
    content = converted(integer, example)
    found = operators(content)
    return Written(content, found, sum(found.get(f"{layer} (int8)", 0) for layer in LAYERS))


verify_litert = Device("LiteRT", "ai-edge-litert", LitertNetwork, _written).verify
"""Every layer with codes in and out has to be an int8 kernel."""
