"""What most examples share: scikit-learn's handwritten digits, a small network with a residual add, and how it is trained."""

from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

bunch = load_digits()
order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
images = (torch.tensor(bunch.images, dtype=torch.float32)[order, None] - 4.9) / 6.0  # (1797, 1, 8, 8)
labels = torch.tensor(bunch.target)[order]
train, test = (images[:1297], labels[:1297]), (images[1297:], labels[1297:])
calibration = list(train[0][:256].split(64))
example = images[:8]


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.conv2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width))
        self.conv3 = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False), nn.BatchNorm2d(2 * width))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(x + self.conv3(x))
        return self.head(x.mean((2, 3)))


def fit(model: nn.Module, epochs: int, lr: float) -> nn.Module:
    """An ordinary training loop. It knows nothing of quantization; a prepared network goes through it like any other."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(train[0])).split(64)[:-1]:
            optimizer.zero_grad()
            F.cross_entropy(model(train[0][batch]), train[1][batch]).backward()
            optimizer.step()
    return model.eval()


@cache
def float_network() -> nn.Module:
    """The network that the examples quantize, trained in float: about two seconds."""
    torch.manual_seed(0)
    return fit(Net(), epochs=10, lr=0.1)


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Top-1 on the 500 test images, in %."""
    return 100 * (model(test[0]).argmax(1) == test[1]).float().mean().item()
