"""Quantized layers: convolutions, linear layers and embeddings with a weight quantizer; BatchNorm; dropout."""

from qat.nn.batch_norm import gain_and_shift, is_batch_norm
from qat.nn.borrowed import borrowing_layer, copy_options, options, parameters_of_weight, recast
from qat.nn.dropout import is_identity_in_evaluation
from qat.nn.layers import (
    LAYERS,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Embedding,
    Linear,
    QuantizedLayer,
    as_quantized,
    channel_axis,
    is_layer,
    is_quantized,
    layer_type,
    owns_weight,
    quantize_layer,
)
from qat.nn.rebuilt import with_class

__all__ = [
    "LAYERS",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "Linear",
    "QuantizedLayer",
    "as_quantized",
    "borrowing_layer",
    "channel_axis",
    "copy_options",
    "gain_and_shift",
    "is_batch_norm",
    "is_identity_in_evaluation",
    "is_layer",
    "is_quantized",
    "layer_type",
    "options",
    "owns_weight",
    "parameters_of_weight",
    "quantize_layer",
    "recast",
    "with_class",
]
