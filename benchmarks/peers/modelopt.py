"""NVIDIA Model Optimizer."""

from __future__ import annotations

from torch import Tensor, nn

PACKAGES = (
    "nvidia-modelopt",
    "torchvision",
    "requests",
    "huggingface_hub",
)  # it imports the last two without declaring them
SETTINGS = "mtq.quantize(INT8_DEFAULT_CFG): inputs and weights of layers, weights per channel; ranges fixed"


def prepare(network: nn.Module, x: Tensor) -> nn.Module:
    import modelopt.torch.quantization as mtq

    return mtq.quantize(network, mtq.INT8_DEFAULT_CFG, lambda calibrated: calibrated(x))
