"""The networks whose training step is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.vision_transformer import VisionTransformer
from qat.models import ResNetCifar, torchvision_model


@dataclass(frozen=True)
class BenchmarkNetwork:
    """A network and the batch on which it is measured.

    Args:
        build: makes the network, with random weights.
        batch: number of images.
        size: pixels per side.
        num_classes: number of classes among the labels.
        gpu_batch: number of images on a GPU, which has more to do at once.
        on_cpu: whether programs measure it on a CPU, too, where a step of it would take many seconds.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: int
    size: int
    num_classes: int
    gpu_batch: int = 128
    on_cpu: bool = True

    def batch_on(self, device: str) -> int:
        """The number of images on a device."""
        return self.batch if device == "cpu" else self.gpu_batch

    def example(self, batch: int | None = None, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Noise (N, 3, size, size) and labels (N,)."""
        n = batch or self.batch_on(device)
        images = torch.randn(n, 3, self.size, self.size, device=device)
        return images, torch.randint(self.num_classes, (n,), device=device)


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision_model(name, num_classes=1000)


def _vit_small() -> nn.Module:
    return VisionTransformer(width=384)


NETWORKS = {
    network.name: network
    for network in (
        BenchmarkNetwork("ResNet-20", lambda: ResNetCifar(20), 128, 32, 10, gpu_batch=1024),
        BenchmarkNetwork("ResNet-18", _torchvision("resnet18"), 8, 224, 1000),
        BenchmarkNetwork("ViT-tiny", VisionTransformer, 8, 224, 1000),
        BenchmarkNetwork("ResNet-50", _torchvision("resnet50"), 8, 224, 1000, gpu_batch=64, on_cpu=False),
        BenchmarkNetwork("MobileNetV2", _torchvision("mobilenet_v2"), 8, 224, 1000, on_cpu=False),
        BenchmarkNetwork("ViT-small", _vit_small, 8, 224, 1000, on_cpu=False),
    )
}
"""By name, as in the tables. ViT-tiny has patches of 16, width 192 and depth 12, ViT-small width 384, as published."""


def networks_for(device: str) -> list[str]:
    """The names of the networks that are measured on a device unless the command says otherwise."""
    return [name for name, network in NETWORKS.items() if network.on_cpu or device != "cpu"]
