"""Every integer form of an operation gives the same codes in ONNX Runtime, and nearly the values that were trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.integer.modules import Dequantize, IntegerModule


class Between(nn.Module):
    """conv -> ReLU -> an operation -> linear."""

    def __init__(self, operation: Callable[[nn.Module, Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.up = nn.BatchNorm2d(8), nn.Upsample(scale_factor=2)
        self.deconv = nn.ConvTranspose2d(8, 8, 3, stride=2, output_padding=1, groups=2, padding=(0, 1), dilation=1)
        self.deconv_depthwise = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8, bias=False)
        self.operation, self.last = operation, nn.Linear(features, 5)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.weight.uniform_(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self, x).flatten(1))


def attention(m: Between, x: Tensor) -> Tensor:
    q, k = m.a(x).flatten(2).mT, m.b(x).flatten(2)
    return (q @ k * 0.3).softmax(-1) @ q


OPERATIONS: dict[str, tuple[Callable[[Between, Tensor], Tensor], int]] = {
    "gate": (lambda m, x: m.a(x) * torch.sigmoid(m.b(x)), 8 * 36),
    "squeeze and excite": (lambda m, x: m.a(x) * m.b(x).mean((2, 3), keepdim=True).sigmoid(), 8 * 36),
    "attention": (attention, 8 * 36),
    "swish by hand": (lambda m, x: (y := m.a(x)) * y.sigmoid(), 8 * 36),
    "hardswish by hand": (lambda m, x: (y := m.a(x)) * F.relu6(y + 3) / 6, 8 * 36),
    "functions": (lambda m, x: F.gelu(m.a(x)) + F.hardswish(m.b(x)).tanh(), 8 * 36),
    "mean of tokens": (lambda m, x: m.a(x).flatten(2).mean(2), 8),
    "sum of channels": (lambda m, x: m.a(x).sum(1), 36),
    "stack": (lambda m, x: torch.stack([F.relu(m.a(x)), m.b(x)], dim=-1), 16 * 36),
    "cat of one tensor": (lambda m, x: torch.cat([y := m.a(x), y, m.b(x)], axis=1), 24 * 36),
    "average pool of rows": (lambda m, x: F.avg_pool1d(m.a(x).flatten(2), 3, 2, 1), 8 * 18),
    "max pool of rows": (lambda m, x: F.max_pool1d(m.a(x).flatten(2), 3, 2, 1), 8 * 18),
    "adaptive max pool": (lambda m, x: F.adaptive_max_pool2d(F.adaptive_max_pool2d(m.a(x), (4, 5)), (2, 5)), 8 * 10),
    "keywords": (lambda m, x: F.max_pool2d(input=m.a(x).permute(dims=(0, 1, 3, 2)), kernel_size=2), 8 * 9),
    "reflect": (lambda m, x: F.pad(m.a(x), (2, 1, 1, 2), "reflect"), 8 * 81),
    "nearest": (lambda m, x: m.up(m.a(x)), 8 * 144),
    "split": (lambda m, x: torch.cat([y := m.a(x).chunk(2, dim=1)[1], y.flip(2)], 1), 8 * 36),
    "norm alone": (lambda m, x: F.relu(m.norm(torch.cat([m.a(x)[:, :4], m.b(x)[:, 4:]], 1))), 8 * 36),
    "transposed convolution": (lambda m, x: F.relu(m.norm(m.deconv(m.a(x)))), 8 * 14 * 12),
    "depthwise transposed": (lambda m, x: m.deconv_depthwise(m.a(x)), 8 * 144),
    "clamp": (lambda m, x: m.a(x).clamp(-0.3, 0.4) + m.b(x).clamp(min=0, max=0.5), 8 * 36),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_codes_agree_with_onnx_runtime(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Between(*OPERATIONS[name]).eval(), torch.randn(64, 3, 6, 6)
    prepared = qat.prepare(model, "w8a8", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, x[:2], tmp_path / "m.onnx")
    result = qat.verify(tmp_path / "m.onnx", integer, [x])
    assert result.exact, [s for s in result.sites if s.code_mismatches]
    with torch.no_grad():
        error = (integer(x) - prepared(x)).square().mean() / prepared(x).var()
    assert error < 1e-3
    if name != "attention":  # its softmax stays in float
        assert not any(isinstance(m, Dequantize) for m in integer.modules())
        assert all(isinstance(m, IntegerModule | nn.Upsample) for m in integer.children())
