"""Layers that own quantizers: Conv1d, Conv2d, Linear."""

from qat.nn.batch_norm import affine_of
from qat.nn.layers import LAYERS, Conv1d, Conv2d, Linear, QuantizedLayer, as_quantized, is_quantized, quantized

__all__ = [
    "LAYERS",
    "Conv1d",
    "Conv2d",
    "Linear",
    "QuantizedLayer",
    "affine_of",
    "as_quantized",
    "is_quantized",
    "quantized",
]
