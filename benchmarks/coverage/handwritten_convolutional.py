"""Convolutional networks as people write them: one spelling or structure each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Convolution, BatchNorm, activation."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), activation())


class Classifier(nn.Module):
    """Stem, a body that keeps 16 channels, global mean, linear layer."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 16), nn.Sequential(*body), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean(dim=(2, 3)))


class FunctionalConv(nn.Module):
    """F.conv2d with parameters that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(16, 16, 3, 3) / 12), nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.weight, self.bias, padding=1))


class PaddedConv(nn.Conv2d):
    """A convolution that pads as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = (
            (-(-n // s) - 1) * s + k - n for n, s, k in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        )
        x = F.pad(x, [w // 2, w - w // 2, h // 2, h - h // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StandardizedConv(nn.Conv2d):
    """A convolution that standardizes its weight, as networks without normalization do."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias, self.stride, self.padding)


class BatchNormAct(nn.BatchNorm2d):
    """A BatchNorm with the activation inside."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class FrozenBatchNorm(nn.Module):
    """Buffers that are combined before they meet the input."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in {"weight": 1.5, "bias": 0.1, "mean": 0.2, "var": 2.0}.items():
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.var + 1e-5).rsqrt()
        shift = self.bias - self.mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Normalized(nn.Module):
    """Normalizes the image with buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std.clamp(min=1e-3))


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation from modules."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.pool, self.down, self.up = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(self.pool(x)))))


class SqueezeExciteMethods(SqueezeExcite):
    """Squeeze-and-excitation from methods and linear algebra, in place."""

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(self.down(x.mean((2, 3), keepdim=True)).relu_()).sigmoid()
        return x.mul(gate.expand_as(x))


class SqueezeExciteLinear(nn.Module):
    """Squeeze-and-excitation from linear layers and view."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.size()
        return x * self.layers(F.adaptive_avg_pool2d(x, 1).view(n, c)).view(n, c, 1, 1)


class Gated(nn.Module):
    """A gated convolution: tanh times sigmoid of two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv(x).chunk(2, dim=1)
        return torch.tanh(value) * torch.sigmoid(gate)


class Spellings(nn.Module):
    """Concatenation, means and permutations under their less common spellings; a tensor concatenated with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        along: dict[str, Any] = {"axis": 1}  # as numpy says it; torch's stubs know "dim" alone
        y = torch.cat((self.a(input=x), F.avg_pool2d(input=x, kernel_size=3, stride=1, padding=1)), **along)
        y = self.b(torch.concat([y, x, x], -3))
        y = y.permute(dims=(0, 2, 3, 1)).permute(0, -1, 1, 2)
        return F.relu(input=y) + y.mean(axis=(-2, -1), keepdims=True)


class InvertedResidual(nn.Module):
    """A mobile block with Hardswish."""

    def __init__(self) -> None:
        super().__init__()
        depthwise = nn.Conv2d(48, 48, 5, padding=2, groups=48, bias=False)
        inner = (
            conv(16, 48, 1, activation=nn.Hardswish),
            depthwise,
            nn.BatchNorm2d(48),
            nn.Hardswish(),
            SqueezeExcite(48),
        )
        self.layers = nn.Sequential(*inner, nn.Conv2d(48, 16, 1, bias=False), nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Shuffle(nn.Module):
    """Two halves, of which one is convolved; then the channels are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.split(8, dim=1)
        y = torch.cat([kept, self.branch(changed)], dim=1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class LayerNormBlock(nn.Module):
    """Depthwise convolution, LayerNorm over channels in the last axis, linear layers, GELU, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(16, 16, 7, padding=3, groups=16), nn.LayerNorm(16)
        self.up, self.down, self.scale = nn.Linear(16, 64), nn.Linear(64, 16), nn.Parameter(0.1 * torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class Stored(nn.Module):
    """Keeps a loss term and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls, self.penalty = conv(16, 16), 0, torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.penalty = y.abs().mean()
        self.calls += 1
        return y


class Activations(nn.Module):
    """Every activation that people use, a convolution between each two."""

    def __init__(self) -> None:
        super().__init__()
        kinds: list[nn.Module] = [nn.LeakyReLU(0.1), nn.PReLU(16), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU(), nn.Mish()]
        kinds += [nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Softplus(), nn.Softsign(), nn.Tanh()]
        self.layers = nn.Sequential(*(m for kind in kinds for m in (nn.Conv2d(16, 16, 3, padding=1), kind)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Arithmetic(nn.Module):
    """abs, square, sqrt, clamp, minimum, exp, division and subtraction of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        y = (a - b).abs().add(1).sqrt() / (b.square() + 1) - torch.exp(-a.clamp(min=0, max=3))
        return torch.minimum(y, a) + 0.5 * torch.maximum(y, b).pow(2)


def _wrapped(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Two convolutions, wrapped each."""
    return Classifier(*(wrap(nn.Conv2d(16, 16, 3, padding=1)) for _ in range(2)), nn.ReLU())


def _pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount=0.5)


BODIES: dict[str, Callable[[], nn.Module]] = {
    "functional convolution": lambda: Classifier(FunctionalConv(), FunctionalConv()),
    "convolution that pads itself": lambda: Classifier(PaddedConv(16, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU6()),
    "standardized weights": lambda: Classifier(StandardizedConv(16, 16, 3, padding=1), nn.ReLU()),
    "weight norm": lambda: _wrapped(parametrizations.weight_norm),
    "spectral norm": lambda: _wrapped(parametrizations.spectral_norm),
    "orthogonal weights": lambda: _wrapped(parametrizations.orthogonal),
    "pruned weights": lambda: _wrapped(_pruned),
    "BatchNorm with activation": lambda: Classifier(nn.Conv2d(16, 16, 3, padding=1), BatchNormAct(16)),
    "frozen BatchNorm": lambda: Classifier(nn.Conv2d(16, 16, 3, padding=1, bias=False), FrozenBatchNorm(16), nn.ReLU()),
    "BatchNorm without statistics": lambda: Classifier(
        nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU()
    ),
    "normalizing buffers": lambda: Normalized(Classifier(conv(16, 16))),
    "squeeze-excite": lambda: Classifier(SqueezeExcite(), SqueezeExciteMethods(), SqueezeExciteLinear()),
    "gated convolution": lambda: Classifier(Gated()),
    "spellings": lambda: Classifier(Spellings()),
    "mobile block": lambda: Classifier(InvertedResidual(), InvertedResidual()),
    "channel shuffle": lambda: Classifier(Shuffle(), Shuffle()),
    "ConvNeXt block": lambda: Classifier(LayerNormBlock(), LayerNormBlock()),
    "GroupNorm": lambda: Classifier(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), conv(16, 16)),
    "InstanceNorm": lambda: Classifier(nn.Conv2d(16, 16, 3, padding=1), nn.InstanceNorm2d(16), nn.ReLU(), conv(16, 16)),
    "stored attributes": lambda: Classifier(Stored(), Stored()),
    "activations": lambda: Classifier(Activations()),
    "arithmetic": lambda: Classifier(Arithmetic()),
    "300 layers": lambda: Classifier(*(conv(16, 16) for _ in range(300))),
    "shared layer": lambda: Classifier(*[conv(16, 16)] * 3),
    "padding modes": lambda: Classifier(
        nn.ReflectionPad2d(1), nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), nn.ZeroPad2d(1), nn.ReLU()
    ),
    "pools": lambda: Classifier(
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        conv(16, 16),
        nn.AvgPool2d(2),
        conv(16, 16),
        nn.AdaptiveAvgPool2d(3),
        nn.AdaptiveMaxPool2d(2),
        nn.LPPool2d(2, 2),
    ),
}
"""Networks (N, 3, H, W) -> (N, 10)."""
