"""What forward overwrites is overwritten for all who read its memory, under whatever name."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.quantizers import Mode
from qat.transform.mode import mode

Body = Callable[[Tensor], Tensor]


class Overwrites(nn.Module):
    """Overwrites what its first convolution returns."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.first, self.second, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), body

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.body(self.first(x)))


def _operator(h: Tensor) -> Tensor:
    kept = h
    h += 1.0
    return h + kept


def _operator_on_a_view(h: Tensor) -> Tensor:
    part = h.transpose(2, 3)
    part *= 3.0
    return h


def _operator_on_data(h: Tensor) -> Tensor:
    values = h.detach()
    values -= 2.0
    return h


def _function(h: Tensor) -> Tensor:
    return torch.relu_(h) + h


def _statement(h: Tensor) -> Tensor:
    torch.clamp_(h, -0.1, 0.1)
    return h


def _function_of_nn(h: Tensor) -> Tensor:
    F.hardtanh_(h, -0.1, 0.1)
    return h


def _slice(h: Tensor) -> Tensor:
    h[:, :1].mul_(5.0)
    return h


def _view_of_view(h: Tensor) -> Tensor:
    h.flatten(2).unsqueeze(0).add_(2.0)
    return h


def _read_as_a_view(h: Tensor) -> Tensor:
    kept = h.flatten(1)
    h.neg_()
    return h + kept.view(h.shape)


def _dropout(h: Tensor) -> Tensor:
    F.dropout(h, 0.5, training=False).mul_(4.0)
    return h


BODIES = [
    _operator, _operator_on_a_view, _operator_on_data, _function, _statement, _function_of_nn, _slice, _view_of_view,
    _read_as_a_view, _dropout,
]  # fmt: skip


@pytest.mark.parametrize("with_example", [True, False], ids=["with example inputs", "without"])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__.strip("_"))
def test_all_names_of_an_overwritten_tensor_read_its_new_values(body: Body, with_example: bool) -> None:
    model, x = Overwrites(body).eval(), torch.randn(2, 3, 7, 7)
    expected = model(x)
    prepared = qat.prepare(model, "w8a8", x if with_example else None).eval()
    with mode(prepared, Mode.OFF):
        torch.testing.assert_close(prepared(x), expected, atol=1e-6, rtol=1e-6)
    qat.calibrate(prepared, [x])
    size = float(expected.detach().abs().max())
    torch.testing.assert_close(qat.convert(prepared)(x), expected, atol=0.03 * size, rtol=0.0)


def _in_order(h: Tensor) -> Tensor:
    kept = h.clone()
    h += 1.0
    h *= kept
    return h.relu_()


def test_what_nobody_reads_again_has_a_graph() -> None:
    prepared = qat.prepare(Overwrites(_in_order).eval(), "w8a8")
    assert qat.inspect(prepared).capture == "captured with torch.fx"
    assert "sites.mul" in dict(prepared.named_modules())  # named after the operator without its i


def test_an_input_may_be_overwritten() -> None:
    class Shifts(Overwrites):
        def forward(self, x: Tensor) -> Tensor:
            x += 3.0
            return super().forward(x)

    x = torch.randn(2, 3, 7, 7)
    expected, before = Shifts(torch.relu)(x.clone()), x.clone()
    model = Shifts(torch.relu).eval()
    expected = model(x.clone())
    prepared = qat.prepare(model, "w8a8", x)
    assert torch.equal(x, before)
    with mode(prepared, Mode.OFF):
        torch.testing.assert_close(prepared(x.clone()), expected)


def test_a_counter_that_an_operator_changes_under_another_name_goes_on() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)
            self.register_buffer("steps", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                steps = self.steps
                steps += 1.0
            return self.layer(x)

    prepared = qat.prepare(Counts().eval(), "w8a8", torch.randn(2, 4))
    with mode(prepared, Mode.OFF):
        for _ in range(3):
            prepared.train()(torch.randn(2, 4))
    assert prepared.get_buffer("steps").item() == 3


class OverwritesItsInput(nn.Module):
    """Normalises in place. again: it also reads what it has overwritten, which torch.export follows."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.again, self.a, self.b = again, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5)
        y = F.relu(self.a(x.mul_(3.0)) if self.again else self.a(F.hardtanh(x, inplace=True)), inplace=True)
        return self.b(y)


class BranchesOnValues(OverwritesItsInput):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() < 100 else x + 1)


@pytest.mark.parametrize("made", [OverwritesItsInput(), OverwritesItsInput(again=True)])
def test_an_input_that_forward_overwrites_is_kept(made: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 4)
    batch = x.clone()
    expected = made.eval()(x.clone())
    prepared = qat.prepare(made, "w8a8", (batch,))
    qat.calibrate(prepared, [batch])
    prepared.eval()(batch)
    integer = qat.convert(prepared)
    assert (integer(batch) - expected).abs().max() < 0.05 * expected.abs().max()
    assert torch.equal(batch, x)


@pytest.mark.parametrize("network", [OverwritesItsInput, BranchesOnValues])
def test_passes_run_again_on_a_batch_that_forward_overwrites(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    made, x = network().eval(), torch.rand(16, 4)
    passes = [qat.ptq.Calibrate("MinMax")] + [qat.ptq.BiasCorrection()] * (network is OverwritesItsInput)
    for _ in range(2):
        found = qat.ptq.apply_passes(passes, made, "w8a8", batches := [x.clone(), x.clone()])
        expected = made(x.clone())
        assert (found(x.clone()) - expected).abs().max() < 0.05 * expected.abs().max()
        assert all(torch.equal(batch, x) for batch in batches)
