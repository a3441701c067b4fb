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
    """

    name: str
    build: Callable[[], nn.Module]
    batch: int
    size: int
    num_classes: int

    def example(self, batch: int | None = None, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Noise (N, 3, size, size) and labels (N,)."""
        n = batch or self.batch
        images = torch.randn(n, 3, self.size, self.size, device=device)
        return images, torch.randint(self.num_classes, (n,), device=device)


def _resnet18() -> nn.Module:
    return torchvision_model("resnet18", num_classes=1000)


NETWORKS = {
    network.name: network
    for network in (
        BenchmarkNetwork("ResNet-20", lambda: ResNetCifar(20), 128, 32, 10),
        BenchmarkNetwork("ResNet-18", _resnet18, 8, 224, 1000),
        BenchmarkNetwork("ViT-tiny", VisionTransformer, 8, 224, 1000),
    )
}
"""By name, as in the tables. ViT-tiny has patches of 16, width 192 and depth 12, as published."""
