"""A small network of MobileNetV2's blocks (Sandler et al. 2018, "MobileNetV2: Inverted residuals and linear bottlenecks")."""

from __future__ import annotations

from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Expand, filter each channel, project; with a shortcut if the shape stays (Sandler et al. 2018, table 1)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        width = expansion * inputs
        self.layers = nn.Sequential(
            *_convolution(inputs, width, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride, groups=width),
            nn.ReLU(),
            *_convolution(width, outputs, 1),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.shortcut else y


class SmallMobileNet(nn.Sequential):
    """Five bottlenecks: (N, channels, H, W) -> logits (N, classes). The last feature map has an eighth of height and width."""

    def __init__(self, channels: int, classes: int, width: int = 8) -> None:
        super().__init__(
            *_convolution(channels, width, 3, stride=2),
            nn.ReLU(),
            Bottleneck(width, width, 1),
            Bottleneck(width, 2 * width, 2),
            Bottleneck(2 * width, 2 * width, 1),
            Bottleneck(2 * width, 3 * width, 2),
            Bottleneck(3 * width, 3 * width, 1),
            *_convolution(3 * width, 8 * width, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, classes),
        )


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]
