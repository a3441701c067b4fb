"""SmoothQuant: the formula of the paper, the same float function, and smaller errors where channels have outliers."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qat
from qat.ptq import Calibrate, SmoothQuant, apply_passes


class RMSNorm(nn.Module):
    """As language models write it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, features))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    """Two normalizations; outliers in three features; the second one's readers are two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.ln, self.rms = nn.LayerNorm(16), RMSNorm(16)
        self.a, self.b, self.c, self.head = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 4)
        with torch.no_grad():
            self.ln.weight[3], self.rms.weight[7] = 40.0, 60.0
            self.ln.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(self.ln(x)).relu()
        y = self.rms(x)
        return self.head(self.b(y) * self.c(y).sigmoid())


def test_the_scales_are_those_of_the_paper_and_the_function_stays() -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(8, 5, 16)
    inputs = {"a": model.ln(x), "b": model.rms(x + model.a(model.ln(x)).relu())}
    weights = {n: getattr(model, n).weight.detach().numpy().copy() for n in "abc"}
    smoothed = copy.deepcopy(model)
    state = qat.ptq.PTQState(smoothed, qat.load_policy("w8a8"), [x[:4], x[4:]])
    SmoothQuant(alpha=0.7).apply(state)
    torch.testing.assert_close(smoothed(x), model(x), rtol=1e-4, atol=1e-4)
    for readers, of_inputs in (("a", inputs["a"]), ("bc", inputs["b"])):
        largest = of_inputs.detach().abs().flatten(0, 1).amax(dim=0).double().numpy()
        of_weights = np.max([np.abs(weights[n]).max(axis=0) for n in readers], axis=0).astype(np.float64)
        s = largest**0.7 / of_weights**0.3
        for name in readers:
            np.testing.assert_allclose(getattr(smoothed, name).weight.detach().numpy(), weights[name] * s, rtol=1e-4)
    assert torch.equal(smoothed.head.weight, model.head.weight), "its input is not a normalization"


def test_outliers_cost_less_after_it() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)).eval(), torch.randn(64, 5, 16)
    with torch.no_grad():
        model[0].weight[3] = 40.0
        errors = [
            float((apply_passes(passes, model, "w8a8", [x])(x) - model(x)).square().mean())
            for passes in ([Calibrate()], [SmoothQuant(), Calibrate()])
        ]
    assert errors[1] < 0.5 * errors[0]


def test_alpha_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha=1\.5 is not possible: write a number from 0 to 1"):
        SmoothQuant(alpha=1.5)
