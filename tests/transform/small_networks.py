"""Small networks, each with one thing that `prepare` must get right, and inputs for them."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE = (4, 3, 8, 8)


class Residual(nn.Module):
    """conv-bn-relu, then a block conv-bn-relu-conv-bn + x, relu, pool, linear. `add` says how the addition is written."""

    def __init__(self, add: str = "operator") -> None:
        super().__init__()
        self.add = add
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.pool, self.fc = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))
        if self.add == "operator":
            y = y + x
        elif self.add == "in_place_operator":
            y += x
        elif self.add == "torch":
            y = torch.add(y, x)
        elif self.add == "method":
            y = y.add(x)
        else:
            y = y.add_(x)
        return self.fc(torch.flatten(self.pool(self.relu(y)), 1))


class Chain(nn.Module):
    """Functional ReLU, max pool and flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        return self.c(F.relu(self.b(x)).flatten(1))


class Concat(nn.Module):
    """Two branches that meet in torch.cat, one of them pooled; relu in place right behind the cat."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.Conv2d(11, 2, 1)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), F.relu(self.b(x)), self.pool(x)], 1)
        return self.c(F.relu(x, inplace=True)).mean((2, 3))


class OptionA(nn.Module):
    """The parameter-free shortcut of ResNet for CIFAR: every second pixel, and channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.last(F.relu(self.conv(x) + shortcut))


class Bottleneck(nn.Module):
    """MobileNetV2: expand, depthwise, ReLU6, and a linear projection that is added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.expand, self.bn1 = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.project, self.bn3 = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.relu6, self.head = nn.ReLU6(inplace=True), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.relu6(self.bn1(self.expand(x)))
        y = self.relu6(self.bn2(self.depthwise(y)))
        return self.head(x + self.bn3(self.project(y)))


class OneDimensional(nn.Module):
    """Conv1d, BatchNorm1d behind Conv1d and behind Linear, view by size, functional dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)
        self.hidden, self.bn2, self.out = nn.Linear(24, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = F.relu(self.bn2(self.hidden(x.view(x.size(0), -1))))
        return self.out(F.dropout(x, 0.5, self.training))


class Branches(nn.Module):
    """A layer whose result nobody reads, a layer that never runs, and an optional argument."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unread, self.never = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        x = F.relu(self.a(x))
        self.unread(x)
        if mask is not None:
            x = x * mask
        return self.b(x)


class Twice(nn.Module):
    """One layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(F.relu(self.conv(x)))).mean([2, 3]))


class Untraceable(nn.Module):
    """A branch on values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.sum() > 0:
            x = -x
        return self.b(x)


class FloatInside(nn.Module):
    """An operation that stays in float between two layers, and a BatchNorm without a layer in front."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.a, self.silu, self.b = (
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 4, 1),
            nn.SiLU(inplace=True),
            nn.Conv2d(4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.silu(self.a(self.bn(x)))) * 2


torch.manual_seed(0)  # whatever was imported before
NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
for _add in ("operator", "in_place_operator", "torch", "method", "in_place_method"):
    NETS[f"Residual_{_add}"] = Residual(_add), IMAGE
for _cls in (Chain, Concat, OptionA, Bottleneck, Branches, Twice, FloatInside):
    NETS[_cls.__name__] = _cls(), IMAGE
NETS["OneDimensional"] = OneDimensional(), (4, 3, 8)
NETS["Untraceable"] = Untraceable(), (4, 4)


def net(name: str) -> tuple[nn.Module, Tensor]:
    """A fresh copy with lively BatchNorm statistics, and an input."""
    torch.manual_seed(0)
    model, shape = copy.deepcopy(NETS[name][0]), NETS[name][1]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model, torch.randn(shape)
