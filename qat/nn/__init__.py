"""Quantized layers: Conv1d, Conv2d and Linear with a weight quantizer."""

from qat.nn.batch_norm import gain_and_shift
from qat.nn.layers import LAYERS, Conv1d, Conv2d, Linear, QuantizedLayer, as_quantized, is_quantized, quantize_layer

__all__ = [
    "LAYERS",
    "Conv1d",
    "Conv2d",
    "Linear",
    "QuantizedLayer",
    "as_quantized",
    "gain_and_shift",
    "is_quantized",
    "quantize_layer",
]
