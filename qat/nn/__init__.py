"""Quantized layers: convolutions, linear layers and embeddings with a weight quantizer; BatchNorm; dropout."""

from qat.nn.batch_norm import gain_and_shift, is_batch_norm
from qat.nn.borrowed import borrowing_layer, copy_options, options, owning_layer, parameters_of_weight, recast
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
from qat.nn.matrices import (
    MATRICES,
    QuantizedWeight,
    compute_with,
    drop_matrices,
    has_quantized_matrices,
    is_layer_of_its_own,
    matrices_of,
    matrix_type,
    quantize_matrices,
    quantized_weights,
)
from qat.nn.orientation import inputs_and_outputs_swapped, outputs_first
from qat.nn.padding import Convolution, explicit_padding, transposed_padding
from qat.nn.rebuilt import with_class
from qat.nn.replaced import with_replaced
from qat.nn.side_effect import SideEffect

__all__ = [
    "LAYERS",
    "MATRICES",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Convolution",
    "Embedding",
    "Linear",
    "QuantizedLayer",
    "QuantizedWeight",
    "SideEffect",
    "as_quantized",
    "borrowing_layer",
    "channel_axis",
    "compute_with",
    "copy_options",
    "drop_matrices",
    "explicit_padding",
    "gain_and_shift",
    "has_quantized_matrices",
    "inputs_and_outputs_swapped",
    "is_batch_norm",
    "is_identity_in_evaluation",
    "is_layer",
    "is_layer_of_its_own",
    "is_quantized",
    "layer_type",
    "matrices_of",
    "matrix_type",
    "options",
    "outputs_first",
    "owning_layer",
    "owns_weight",
    "parameters_of_weight",
    "quantize_layer",
    "quantize_matrices",
    "quantized_weights",
    "recast",
    "transposed_padding",
    "with_class",
    "with_replaced",
]
