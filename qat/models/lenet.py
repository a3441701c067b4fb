"""LeNet-5 for 28x28 images, with ReLU and max-pooling as is usual today."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from qat.arguments import check_count


class LeNet5(nn.Module):
    """Two convolutions and three linear layers: (N, in_channels, 28, 28) -> logits (N, num_classes); 61,706 parameters.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition".
    Differs from the paper: ReLU instead of tanh, max-pooling instead of trained average pooling, every map of conv2 sees
    every map of conv1, plain logits.

    Raises:
        ValueError: a number is not a whole one, or not positive.

    >>> sum(parameter.numel() for parameter in LeNet5(10, 1).parameters())
    61706
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (N, 6, 14, 14)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (N, 16, 5, 5)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)
