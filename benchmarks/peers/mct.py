"""Sony Model Compression Toolkit."""

from __future__ import annotations

from torch import Tensor, nn

PACKAGES = ("model-compression-toolkit", "torchvision")
SETTINGS = "pytorch_quantization_aware_training_init_experimental, default QATConfig (STE, weights); activations fixed"


def prepare(network: nn.Module, x: Tensor) -> nn.Module:
    import model_compression_toolkit as mct

    prepared, _ = mct.qat.pytorch_quantization_aware_training_init_experimental(network, lambda: iter([[x]]))
    return prepared
