"""What is trained is what forward trains: gradients of its own functions, live statistics, dropout, and what it updates."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.capture import CaptureError, capture
from tests.networks import build, images


class Sign(torch.autograd.Function):
    """-1 or 1, with the gradient of the identity between them: its own derivative is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (ctx.saved_tensors[0].abs() <= 1)


class Reversed(torch.autograd.Function):
    """The identity, with the negative gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradients[0], None


class Binary(nn.Conv2d):
    """A convolution with binary weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, Sign.apply(self.weight) * self.weight.abs().mean(), self.bias, padding=1)


class OwnGradients(nn.Module):
    """Binary weights, binary activations, and a branch with a reversed gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head, self.domain = nn.Conv2d(3, 8, 3), Binary(8, 8, 3), nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = F.relu(self.b(Sign.apply(self.a(x)))).mean((2, 3))
        return self.head(features), self.domain(Reversed.apply(features, 0.5))


class OnlyExported(OwnGradients):
    """The same behind a loop that torch.fx cannot follow."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(torch.stack(list(x.flip(0)[: len(x)])))


class Overwritten(nn.Module):
    """Overwrites a slice, so that torch.export alone has a graph; BatchNorm and dropout beside it."""

    def __init__(self, dropout: type[nn.Module]) -> None:
        super().__init__()
        self.conv, self.norm, self.drop, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            dropout(0.4),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y[:, :2] = F.relu(y[:, 2:4])
        y[:, :, 0] = 0.5
        return self.head(self.drop(y).mean((2, 3)))


class Moving(nn.Module):
    """Subtracts a moving mean, in training updated by one of several spellings."""

    center: Tensor

    def __init__(self, update: Callable[[nn.Module, Tensor], None], loop: bool = False) -> None:
        super().__init__()
        self.conv, self.head, self.update, self.loop = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), update, loop
        self.register_buffer("center", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack(list(x.flip(0)[: len(x)])) if self.loop else x
        y = F.relu(self.conv(x)).mean((2, 3))
        if self.training:
            self.update(self, y.detach().mean(0))
        return self.head(y - self.center)


class Penalty(nn.Module):
    """Stores a term of the loss, behind a loop that torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(torch.stack(list(x.flip(0)[: len(x)])))
        self.penalty = y.abs().mean()
        return y


def assigned(module: nn.Module, mean: Tensor) -> None:
    module.center = 0.9 * module.center + 0.1 * mean


def in_place(module: nn.Module, mean: Tensor) -> None:
    module.center.mul_(0.9).add_(mean, alpha=0.1)


def without_gradients(module: nn.Module, mean: Tensor) -> None:
    with torch.no_grad():
        module.center[:] = mean


def gradients(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    returned = network(x)
    sum(y.square().sum() for y in (returned if isinstance(returned, tuple) else (returned,))).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("network", [OwnGradients, OnlyExported])
def test_functions_keep_their_own_gradients(network: Callable[[], nn.Module]) -> None:
    model, x = build(network).eval(), images(4)[:, :, :10, :10]
    prepared = qat.prepare(model, "w8a8", (x,))
    with qat.mode(prepared, qat.Mode.OFF):
        expected, found = gradients(model, x), gradients(prepared, x)
    assert expected["a.weight"].abs().sum() > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_functions_are_nodes_of_torch_fx_and_no_way_of_torch_export() -> None:
    assert capture(build(OwnGradients), (images(4),)).way == "torch.fx"
    with pytest.raises(CaptureError, match="would replace the gradient of Sign"):
        capture(build(OnlyExported), (images(4),))


def test_functions_with_gradients_are_pickled_and_copied() -> None:
    prepared, x = qat.prepare(build(OwnGradients), "w8a8", (images(4),)), images(4)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    for model in (prepared, integer):
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(x)[1], model(x)[1])


@pytest.mark.parametrize("dropout", [nn.Dropout, nn.Dropout2d])
def test_batch_norm_and_dropout_beside_overwritten_tensors_stay_live(dropout: type[nn.Module]) -> None:
    model, x = build(lambda: Overwritten(dropout)).train(), images(4)[:, :, :10, :10]
    prepared = qat.prepare(model, "w8a8", (x,))
    with qat.mode(prepared, qat.Mode.OFF):
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        found = prepared(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(prepared.norm.running_mean, model.norm.running_mean)
    found.square().sum().backward()  # copy has no derivative
    assert prepared.conv.weight.grad is not None


@pytest.mark.parametrize("loop", [False, True], ids=["torch.fx", "torch.export"])
@pytest.mark.parametrize("update", [assigned, in_place, without_gradients])
def test_what_forward_updates_in_training_goes_on_moving(
    update: Callable[[nn.Module, Tensor], None], loop: bool
) -> None:
    model, x = build(lambda: Moving(update, loop)).train(), images(4)[:, :, :10, :10]
    before = model.center.clone()
    prepared = qat.prepare(model, "w8a8", (x,))
    assert torch.equal(model.center, before)
    assert torch.equal(prepared.center, before)
    if loop or update is without_gradients:
        with pytest.raises(CaptureError, match="center"):
            capture(build(lambda: Moving(update, loop)), (x,))
    else:
        assert "torch.fx" in qat.inspect(prepared).capture
    with qat.mode(prepared, qat.Mode.OFF):
        for _ in range(2):
            torch.testing.assert_close(prepared(x), model(x))
            torch.testing.assert_close(prepared.center, model.center)
        moved = prepared.center.clone()
        torch.testing.assert_close(prepared.eval()(x), model.eval()(x))
        assert torch.equal(prepared.center, moved)
    again = copy.deepcopy(prepared).train()
    with qat.mode(again, qat.Mode.OFF):
        again(2 * x)
    assert torch.equal(prepared.center, moved)
    assert not torch.equal(again.center, moved)


class Codebook(nn.Module):
    """Nearest vectors, which follow their members in training: several buffers, whole numbers among them, without gradients."""

    book: Tensor
    sizes: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 4), nn.Linear(4, 3)
        self.register_buffer("book", torch.randn(5, 4))
        self.register_buffer("sizes", torch.ones(5))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        y = self.encode(x)
        nearest = (self.book.square().sum(1) - 2 * y @ self.book.t()).argmin(1)
        if self.training:
            self.follow(y, nearest)
        return self.decode(y + (F.embedding(nearest, self.book) - y).detach())

    @torch.no_grad()
    def follow(self, y: Tensor, nearest: Tensor) -> None:
        members = F.one_hot(nearest, 5).type_as(y)
        self.sizes.data.mul_(0.9).add_(members.sum(0), alpha=0.1)
        self.book.copy_(0.9 * self.book + 0.1 * members.t() @ y / self.sizes[:, None])
        self.steps += 1


def test_statistics_of_a_graph_are_those_of_forward_and_no_part_of_the_file(tmp_path: Path) -> None:
    model, x = build(Codebook).train(), torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    assert capture(build(Codebook), (x,)).way == "torch.fx"
    prepared = qat.prepare(model, "w8a8", x)
    with qat.mode(prepared, qat.Mode.OFF):
        for _ in range(3):
            torch.testing.assert_close(prepared(x), model(x))
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(prepared.get_buffer(name), buffer)
    assert prepared.steps == 3
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared.eval())
    assert not any("update" in name for name, _ in integer.named_modules())
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [x], prepared).passed


class CachedBias(nn.Module):
    """Keeps in evaluation what it calculates of a parameter, as LeViT does."""

    def __init__(self, way: str = "torch.fx", norm: type[nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.way = nn.Linear(6, 4), norm(4), nn.Linear(4, 3), way
        self.biases, self.cache = nn.Parameter(torch.randn(8)), dict[str, Tensor]()

    def train(self, mode: bool = True) -> "CachedBias":
        if mode:
            self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.biases[2:6]
        if not self.training:
            mine = bias if isinstance(self.norm, nn.Identity) else bias.contiguous()
            bias = self.cache.setdefault("cpu", mine)
        if self.way == "torch.export" and x.shape[0] > 10**6:
            bias = -bias
        return self.b(F.relu(self.norm(self.a(x)) + bias))


class NormWithActivation(nn.BatchNorm1d):
    """A BatchNorm that does more, which is traced into."""

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        return F.silu(F.batch_norm(x, *statistics, self.weight, self.bias, self.training, 0.1, self.eps))


@pytest.mark.filterwarnings("ignore:CachedBias branches on self.training")
@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm1d, NormWithActivation])
@pytest.mark.parametrize("way", ["torch.fx", "torch.export"])
def test_a_cache_stops_no_statistics(way: str, norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = CachedBias(way, norm), torch.randn(5, 6)
    prepared = qat.prepare(model, "w8a8", x)
    assert f"captured with {way}" in qat.inspect(prepared).capture
    with qat.mode(prepared, qat.Mode.OFF):
        torch.testing.assert_close(prepared.train()(x), model.train()(x))
    for name, buffer in model.named_buffers():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(prepared.get_buffer(name), buffer)


def test_a_cache_of_what_is_calculated_of_parameters_is_calculated_by_the_graph() -> None:
    model, x = build(CachedBias).eval(), torch.randn(5, 6)
    model(x)  # fills it
    prepared = qat.prepare(model, "w8a8", x)
    assert "torch.fx" in qat.inspect(prepared).capture
    with torch.no_grad(), qat.mode(prepared, qat.Mode.OFF):
        prepared.biases.add_(1.0)
        model.train().biases.add_(1.0)
        torch.testing.assert_close(prepared(x), model.eval()(x))


def test_a_term_of_the_loss_that_is_stored_is_not_lost() -> None:
    x = torch.randn(4, 8)
    with pytest.raises(CaptureError, match=re.escape("forward stores penalty")):
        capture(build(Penalty), (x,))
    prepared = qat.prepare(build(Penalty), "w8a8", (x,))
    qat.calibrate(prepared, [x])
    prepared(x)
    prepared.penalty.backward()
    assert prepared.head.weight.grad is not None


class BranchesOnTraining(nn.Module):
    """Has a condition on a size, which only torch.export can follow, and, if asked for, computes something else in training."""

    def __init__(self, branches: str, dropout: float) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.branches, self.dropout = branches, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        if h.shape[-1] > 4:
            h = self.dropout(h)
        if self.training and self.branches:
            h = h + torch.randn_like(h) if self.branches == "noise" else h * 1.5
        return self.b(h)


@pytest.mark.parametrize(("branches", "dropout"), [("another factor", 0.0), ("noise", 0.0), ("noise", 0.5)])
def test_torch_export_says_that_forward_branches_on_training(branches: str, dropout: float) -> None:
    with pytest.warns(UserWarning, match=re.escape("BranchesOnTraining branches on self.training")):
        qat.prepare(BranchesOnTraining(branches, dropout), "w8a8", torch.randn(4, 6))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_no_branch(dropout: float) -> None:
    qat.prepare(BranchesOnTraining("", dropout), "w8a8", torch.randn(4, 6))


class RatesOfTraining(nn.Module):
    """Passes the rates of dropout in training alone, under names of its own. Only torch.export can follow its condition."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.chance = nn.Linear(8, 8), nn.Linear(8, 3), 0.4

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if h.shape[-1] > 4:
            h = F.dropout(h, p=self.chance if self.training else 0.0, training=self.training)
        h = F.dropout(h, 0.7, training=False)
        rate = self.chance / 2 if self.training else 0.0
        return self.b(F.scaled_dot_product_attention(h, h, h, dropout_p=rate))


def test_dropout_has_the_rate_that_forward_passes_in_training() -> None:
    prepared = qat.prepare(RatesOfTraining(), "w8a8", torch.randn(4, 5, 8))
    assert sorted(m.p for m in prepared.modules() if isinstance(m, nn.Dropout) and m.p) == [0.2, 0.4]
