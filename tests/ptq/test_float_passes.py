"""Equalization and folding: the float function stays the same, the ranges do not."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.ptq import CrossLayerEqualization, FoldBatchNorm, PTQState, SmoothQuant
from qat.ptq.cross_layer_equalization import find_pairs
from qat.transform import load_policy
from tests.networks import OptionA, build, images


class Triple(nn.Module):
    """conv-bn-relu, depthwise-relu-pool, conv without bias: two pairs that share a layer."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1, groups=2, bias=False)
        self.activation, self.pool = activation(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn(self.a(x)))
        return self.c(self.pool(F.relu(self.b(x))))


def skewed(network: nn.Module) -> nn.Module:
    """Channels of very different size."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                factors = torch.logspace(-1.5, 1.5, len(module.weight))
                module.weight.mul_(factors[torch.randperm(len(factors))].reshape(-1, 1, 1, 1))
    return network


def worked(network: nn.Module, *passes: CrossLayerEqualization | FoldBatchNorm) -> nn.Module:
    state = PTQState(copy.deepcopy(network), load_policy("w4a4"), [])
    for step in passes:
        step.apply(state)
    return state.network


def test_a_nearly_dead_channel_stays_as_it_is() -> None:
    network = build(Triple)
    with torch.no_grad():
        network.bn.weight[3] = 1e-9
        network.bn.bias[3] = 0.5
    found = worked(network, CrossLayerEqualization(rounds=50))
    assert found.bn.bias[3] == 0.5
    assert not torch.equal(found.bn.bias[:3], network.bn.bias[:3])


def test_equalization_keeps_the_function_and_makes_ranges_equal() -> None:
    network = skewed(build(Triple))
    before = {"a": network.a.weight.clone(), "c": network.c.weight.clone()}
    found = worked(network, CrossLayerEqualization(rounds=50))
    x = images(8)
    torch.testing.assert_close(found(x), network(x), rtol=1e-4, atol=1e-3 * network(x).abs().max().item())
    gain = (found.bn.weight / torch.sqrt(found.bn.running_var + found.bn.eps)).reshape(-1, 1, 1, 1)
    first = (found.a.weight * gain).abs().amax(dim=(1, 2, 3))
    depthwise = found.b.weight.abs().amax(dim=(1, 2, 3))  # as an output and as an input: one channel in, one out
    torch.testing.assert_close(first, depthwise, rtol=1e-3, atol=0.0)
    last = torch.cat([part.abs().amax(dim=(0, 2, 3)) for part in found.c.weight.chunk(2)])
    torch.testing.assert_close(depthwise, last, rtol=1e-3, atol=0.0)
    assert torch.equal(found.a.weight, before["a"])  # gamma and beta carry the factor
    assert not torch.allclose(found.c.weight, before["c"])


def test_one_pair_is_the_formula_of_the_paper() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    found = worked(network, CrossLayerEqualization(rounds=1))
    r1, r2 = network[0].weight.abs().amax(dim=1), network[2].weight.abs().amax(dim=0)
    both = torch.sqrt(r1 * r2)
    torch.testing.assert_close(found[0].weight.abs().amax(dim=1), both)
    torch.testing.assert_close(found[2].weight.abs().amax(dim=0), both)
    torch.testing.assert_close(found[0].bias, network[0].bias * both / r1)


def test_dead_channels_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        network[0].weight[1] = 0.0
        network[2].weight[:, 2] = 0.0
    found = worked(network, CrossLayerEqualization())
    assert all(torch.isfinite(p).all() for p in found.parameters())
    assert torch.equal(found[2].weight[:, 1], network[2].weight[:, 1])
    assert torch.equal(found[0].weight[2], network[0].weight[2])


@pytest.mark.parametrize(
    ("network", "pairs"),
    [
        (Triple, [("a", "b"), ("b", "c")]),
        (lambda: Triple(nn.ReLU6), [("b", "c")]),
        (lambda: Triple(nn.SiLU), [("b", "c")]),
        (OptionA, []),  # every tensor is added to another one
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2)), []),
    ],
)
def test_pairs(network, pairs) -> None:
    made = build(network)
    names = {module: name for name, module in made.named_modules()}
    state = PTQState(made, load_policy("w4a4"), [])
    graph = state.graph()
    assert [(names[p.first], names[p.second]) for p in find_pairs(made, graph, state.used_once(graph))] == pairs


@pytest.mark.parametrize("network", [Triple, OptionA])
def test_folding_keeps_the_function_and_leaves_no_batchnorm(network) -> None:
    made = build(network)
    found = worked(made, FoldBatchNorm())
    assert any(isinstance(m, nn.BatchNorm2d) for m in made.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in found.modules())
    torch.testing.assert_close(found(images(8)), made(images(8)), rtol=1e-4, atol=1e-4)


def test_a_batchnorm_that_follows_no_layer_alone_is_left() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.a(x)) + self.bn(self.b(x))

    assert isinstance(worked(build(Shared), FoldBatchNorm()).bn, nn.BatchNorm2d)


class Tied(nn.Module):
    """Two layers with one weight, each with a BatchNorm and a reader that is as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn1, self.b, self.bn2 = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.b.weight = self.a.weight
        self.last = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.bn2(self.b(F.relu(self.bn1(self.a(x)))))))


class Tokens(nn.Module):
    """As many tokens as features: BatchNorm1d normalises the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.bn(self.a(x))))


class Transposed(nn.Module):
    """Weights of transposed convolutions have their inputs first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn1 = nn.ConvTranspose2d(6, 6, 2, groups=2), nn.BatchNorm2d(6)
        self.b, self.bn2, self.c = nn.ConvTranspose2d(6, 4, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.bn2(self.b(F.relu(self.bn1(self.a(x)))))))


class LookedUp(nn.Module):
    """A BatchNorm behind an embedding, which has no outputs but rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.bn, self.b = nn.Embedding(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.a = self.b

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.bn(self.embedding(x.abs().sum(1).long() % 6))))


class ReadTwice(nn.Module):
    """Parameters that something reads beside their module. what: the name of the parameter."""

    what = "a.weight"

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.bn = nn.LayerNorm(6), nn.BatchNorm1d(6)
        self.first, self.a, self.b, self.last = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.first(x)))
        y = self.b(F.relu(self.a(self.norm(y))))
        found = self.get_parameter(self.what)
        return y @ found if found.ndim > 1 else y + found


class Decoder(ReadTwice):
    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(self.norm(F.relu(self.bn(self.first(x)))))))
        return F.linear(F.linear(y, self.a.weight.t()), self.first.weight)


class NormTwice(ReadTwice):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(self.norm(x)))) * self.norm(self.last(x))


READ = {
    what: type("ReadTwice", (ReadTwice,), {"what": what})
    for what in ("a.bias", "bn.weight", "norm.weight", "first.bias")
}


@pytest.mark.parametrize("step", [CrossLayerEqualization, FoldBatchNorm, SmoothQuant])
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Tied, (16, 6)),
        (Tokens, (16, 6, 6)),
        (Transposed, (16, 6, 4, 4)),
        (LookedUp, (16, 6)),
        *((network, (16, 6)) for network in (ReadTwice, *READ.values(), Decoder, NormTwice)),
    ],
    ids=lambda given: getattr(given, "what", getattr(given, "__name__", "")),
)
def test_the_function_stays_the_same(network, shape, step) -> None:
    made, x = build(network), torch.randn(shape)
    with torch.no_grad():
        for layer in (made.a, made.b):
            layer.weight.mul_(torch.logspace(-1, 1, len(layer.weight)).reshape(-1, *[1] * (layer.weight.ndim - 1)))
    state = PTQState(copy.deepcopy(made), load_policy("w4a4"), [x])
    step().apply(state)
    torch.testing.assert_close(state.network(x), made(x), rtol=1e-4, atol=1e-4)


def test_a_batchnorm_behind_a_transposed_convolution_is_folded() -> None:
    assert not any(isinstance(m, nn.BatchNorm2d) for m in worked(build(Transposed), FoldBatchNorm()).modules())
