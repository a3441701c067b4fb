"""The CIFAR ResNets of He et al. 2016 with parameter-free shortcuts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from qat.arguments import check_count, is_whole_number
from qat.messages import shown


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, in_width, H, W) -> (N, out_width, H / stride, W / stride).

    The shortcut is option A of the paper: every `stride`-th pixel, and zeros for new channels (half before, half after).
    """

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, out_width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.stride = stride
        self.new_channels = out_width - in_width

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.new_channels == 0:
            return x
        before = self.new_channels // 2
        padding = (0, 0, 0, 0, before, self.new_channels - before)
        return F.pad(x[:, :, :: self.stride, :: self.stride], padding)


class ResNetCifar(nn.Module):
    """ResNet-20 and its relatives: (N, in_channels, H, W) -> logits (N, num_classes), for H and W of at least 8.

    Source: He et al. 2016, "Deep residual learning for image recognition", section 4.2; He-normal initialisation as there.

    Args:
        depth: 6n + 2 layers: 8, 14, 20, 32, 44, 56, 110, ...
        num_classes: number of logits.
        in_channels: 3 for colour, 1 for grey.
        width: channels of the first of the three stages; the others have twice and four times as many.

    Raises:
        ValueError: `depth` is not 6n + 2, or another number is not a whole one, or not positive.

    >>> sum(parameter.numel() for parameter in ResNetCifar(20).parameters())
    269722
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if not is_whole_number(depth, lowest=8) or depth % 6 != 2:
            raise ValueError(f"depth={shown(depth)} is not 6n + 2: write 8, 14, 20, 32, 44, 56 or 110.")
        for name, number in {"num_classes": num_classes, "in_channels": in_channels, "width": width}.items():
            check_count(name, number)
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, 1, blocks)
        self.layer2 = _stage(width, 2 * width, 2, blocks)
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (N, width, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 4 width, H / 4, W / 4)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.linear(x)


def _stage(in_width: int, out_width: int, stride: int, blocks: int) -> nn.Sequential:
    rest = (BasicBlock(out_width, out_width, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_width, out_width, stride), *rest)
