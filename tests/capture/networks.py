"""Networks whose layers hide in functions, subclasses and parametrizations. (pytest rewrites `assert` in its own files.)"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvSame(nn.Conv2d):
    """As in efficientnet_lite_pytorch: pads itself, and calls the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a BatchNorm with an activation inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "images")
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(x)


class CalledAround(nn.Module):
    """Its `__call__`, or that of a base of it, computes something around forward."""

    def __call__(self, input: Tensor) -> Tensor:
        return super().__call__(input * 2) + 1


class LinearAround(CalledAround, nn.Linear):
    """A layer that is more than its forward."""


class NormAround(CalledAround, nn.BatchNorm2d):
    """A BatchNorm that is more than its forward."""


class DropoutAround(CalledAround, nn.Dropout):
    """A dropout that does something in evaluation."""


class Spectral(nn.Module):
    """Overwrites a part of a complex tensor, as Fourier neural operators do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.weight = nn.Parameter(torch.randn(8, 3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).transpose(1, 2)
        spectrum = torch.fft.rfft(x)
        kept = torch.zeros(x.shape[0], 8, x.shape[-1] // 2 + 1, dtype=torch.cfloat)
        kept[..., :3] = spectrum[..., :3].conj() * self.weight
        kept[:, 0] = spectrum[:, 1]
        return self.last(torch.fft.irfft(kept, n=x.shape[-1]).transpose(1, 2))


class FrozenNorm(nn.Module):
    """As torchvision's FrozenBatchNorm2d: buffers are combined before they meet x."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(4) + 0.5)
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight * (self.var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)


class Conv1D(nn.Module):
    """As in GPT-2: a linear layer with its weight [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.size()[:-1] + (6,)  # noqa: RUF005
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


class Masked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("mask", (torch.rand(4, 4) > 0.3).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table.T @ self.table


class Asserting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 4 and x.ndim > 1  # noqa: PT018
        return self.fc(input=x)


class Storing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        self.penalty = x.abs().mean()
        return x


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.total = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.total += 1
        return self.fc(x)


class Untraceable(nn.Module):
    """Asks for a length, which torch.fx cannot trace; an optional argument, a dict as result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)
        self.drop, self.fc = nn.Dropout(0.3), nn.Linear(4, 2)

    def forward(self, image: Tensor, twice: bool = False) -> dict[str, Tensor]:
        x = self.norm(self.conv(image)).relu()
        x = x.mean((2, 3)) * len(x[0])
        y = self.fc(self.drop(2 * x if twice else x))
        return {"y": y}


class Shifted(nn.Module):
    """As BART and Llama: forward overwrites slices, makes constants, and has plans that torch.export builds anew."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = {"fc": (["x"], ["y"])}
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, **unused: Tensor) -> Tensor:
        shifted = torch.zeros_like(x)
        shifted[:, 1:] = x[:, :-1]
        shifted[:, 0] = torch.tensor(2.0)
        return self.fc(shifted)


def _attend_in_windows(x: Tensor, qkv: Tensor, bias: Tensor) -> Tensor:
    """Attention within windows of 2 x 2 pixels, (batch, height, width, channels), with a mask made of slices."""
    batch, height, width, channels = x.shape
    windows = x.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
    q, k, v = F.linear(windows.reshape(-1, 4, channels), qkv).chunk(3, -1)
    mask = x.new_zeros((4, 4))
    for rows in (slice(0, 2), slice(2, 4)):
        mask[rows, 0:2] = 1
    scores = (q * channels**-0.5).matmul(k.transpose(1, 2)) + bias + mask
    windows = scores.softmax(-1).matmul(v).view(batch, height // 2, width // 2, 2, 2, channels)
    return windows.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


torch.fx.wrap("_attend_in_windows")


class Windows(nn.Module):
    """As torchvision's Swin: a function that torch.fx is told not to trace, and that is given the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 2)
        self.qkv, self.bias = nn.Linear(4, 12, bias=False), nn.Parameter(torch.randn(1, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).permute(0, 2, 3, 1)
        return self.last(_attend_in_windows(x, self.qkv.weight, self.bias).mean((1, 2)))


class Cache:
    """As in transformers: an object that a graph cannot return."""

    def __init__(self, past: Tensor) -> None:
        self.past = past


class Remembering(nn.Module):
    """As the language models of transformers: it returns its cache unless it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(
        self,
        words: Tensor,
        cache: Cache | None = None,
        types: Tensor | None = None,
        use_cache: bool | None = None,
        **unused: Tensor,
    ) -> dict[str, Any]:
        hidden = self.words(words).cumsum(1)
        if types is not None:
            hidden = hidden + types[..., None]
        if cache is not None:
            hidden = hidden + cache.past
        found: dict[str, Any] = {"logits": self.head(hidden.tanh())}
        return found if use_cache is False else {**found, "cache": Cache(hidden[:, -1:])}
