"""Small networks that between them use everything the integer path knows. Not trained: weights and statistics are random."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OptionA(nn.Module):
    """Two residual blocks with a strided, zero-padded shortcut (He et al. 2016, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(self.bn2(self.conv2(x)) + shortcut)
        x = F.relu(x + self.bn3(self.conv3(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Inverted(nn.Module):
    """MobileNetV2's block: depthwise, ReLU6, a linear bottleneck, and a residual of signed tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        bottleneck = self.project(self.depthwise(self.expand(x)))
        twice = bottleneck + self.project(self.depthwise(self.expand(bottleneck)))
        return self.head(twice.mean((2, 3)))


class Inception(nn.Module):
    """Concatenation of branches, average and max pooling, a bias without BatchNorm, `view` with a size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 3, padding="same")
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.c = nn.Conv2d(3, 2, 1)
        self.fc1, self.fc2 = nn.Linear(12 * 16, 20), nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.a(x)), self.b(x), self.c(self.pool(x))], dim=1)
        x = F.max_pool2d(x, 2)
        x = F.avg_pool2d(x, 2)
        x = x.view(x.size(0), -1)
        return self.fc2(F.relu(self.fc1(x)))


class Rows(nn.Module):
    """Linear layers with BatchNorm1d and on three axes; no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(16, 12), nn.BatchNorm1d(12)
        self.fc2, self.fc3 = nn.Linear(3, 6), nn.Linear(24, 4)
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.fc1(x.flatten(1)[:, :16])))
        x = F.relu(self.fc2(x.view(-1, 4, 3)))
        return self.fc3(self.flatten(x))


class Gate(nn.Module):
    """Functions by tables (SiLU, a sigmoid gate), a BatchNorm without a layer, and an operation that stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.act, self.fc, self.norm2 = nn.SiLU(), nn.Linear(8, 4), nn.InstanceNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.act(self.conv1(self.norm(x))))
        x = x * torch.sigmoid(self.conv2(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


INTEGER = (OptionA, Inverted, Inception, Rows)
"""Quantized from end to end."""


def build(network: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Random weights and BatchNorm statistics, negative gains included; evaluation mode."""
    torch.manual_seed(seed)
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def images(n: int, seed: int = 1) -> Tensor:
    """(n, 3, 16, 16)."""
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
