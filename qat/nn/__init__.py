"""Layers that own quantizers: Conv1d, Conv2d, Linear."""

from qat.nn.layers import LAYERS, Conv1d, Conv2d, Linear, QuantizedLayer, as_quantized, is_quantized, quantized

__all__ = ["LAYERS", "Conv1d", "Conv2d", "Linear", "QuantizedLayer", "as_quantized", "is_quantized", "quantized"]
