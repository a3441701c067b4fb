"""Channels that were taken out: the network computes what it computed with their inputs at zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from qat.models.resnet_cifar import ResNetCifar
from qat.sparsity.channels import channel_groups, remove_channels, shrink
from tests.networks import Inverted, build


class Plain(nn.Module):
    """Convolutions, pools, a mean and two linear layers; `wide` feeds a flattened picture, so its channels stay."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.bn = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.fc1, self.fc2 = nn.Linear(12, 10), nn.Linear(10, 4)
        self.wide, self.fc3 = nn.Conv2d(8, 3, 1), nn.Linear(3 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.first(x)))
        y = F.max_pool2d(F.relu(self.second(x)), 2)
        y = self.fc2(F.relu(self.fc1(F.dropout(y.mean((2, 3)), 0.1, self.training))))
        return y + self.fc3(self.wide(F.avg_pool2d(x, 2)).flatten(1))


class Mobile(nn.Module):
    """An inverted bottleneck with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3)
        self.expand, self.bn1 = nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depthwise, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.project = nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.bn1(self.expand(x)))
        return x + self.project(F.relu6(self.bn2(self.depthwise(y))))


CASES = {
    "plain": (Plain, (4, 2, 8, 8), {"first": 8, "second": 12, "fc1": 10}),
    "resnet": (
        lambda: ResNetCifar(8, width=8),
        (4, 3, 8, 8),
        {f"layer{i}.0.conv1": 8 * 2 ** (i - 1) for i in (1, 2, 3)},
    ),
    "depthwise": (Mobile, (4, 3, 8, 8), {"expand": 12}),
}


def randomized(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_computes_as_if_the_inputs_of_consumers_were_zero(name: str) -> None:
    make, shape, expected = CASES[name]
    model = randomized(make())
    groups = {group.producer: group for group in channel_groups(model)}
    assert {producer: group.channels for producer, group in groups.items()} == expected
    x = torch.randn(*shape)
    small = randomized(make())
    small.load_state_dict(model.state_dict())
    found = remove_channels(small, 0.4)
    assert found == {producer: (n, n - round(0.4 * n)) for producer, n in expected.items()}
    kept: dict[str, list[int]] = {}
    with torch.no_grad():
        for producer in groups:
            inputs = next((kept[before] for before in kept if producer in groups[before].consumers), slice(None))
            filters = model.get_submodule(producer).weight[:, inputs].flatten(1)
            left = small.get_submodule(producer).weight.flatten(1)
            kept[producer] = [int((filters == one).all(1).nonzero()) for one in left]
        for producer, group in groups.items():
            lost = [i for i in range(group.channels) if i not in kept[producer]]
            for consumer in group.consumers:
                model.get_submodule(consumer).weight[:, lost] = 0
        torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_the_weakest_filters_go() -> None:
    model = Plain().eval()
    with torch.no_grad():
        model.second.weight[[2, 5, 7]] *= 0.01
    kept = model.second.weight.detach()[[0, 1, 3, 4, 6, 8, 9, 10, 11]]
    remove_channels(model, 0.25, lambda name: name == "second")
    assert torch.equal(model.second.weight, kept)
    assert model.first.out_channels == 8


def test_what_stays_is_a_multiple() -> None:
    assert remove_channels(Plain(), 0.4, multiple=4) == {"second": (12, 8), "fc1": (10, 8)}  # `first` keeps its 8


def test_numbers_of_channels_from_a_checkpoint_are_applied_and_checked() -> None:
    model = Plain()
    shrink(model, {"first": 5, "fc1": 4})
    assert (model.first.weight.shape[0], model.second.in_channels, model.fc2.in_features) == (5, 5, 4)
    shrink(model, {"first": 5})  # as it is
    with pytest.raises(ValueError, match="'wide' of Plain cannot be reduced to 2 channels"):
        shrink(model, {"wide": 2})
    with pytest.raises(ValueError, match=r"channels=0\.01 takes no channel of any layer, of which the largest has"):
        remove_channels(model, 0.01)
    with pytest.raises(ValueError, match="no layer of Plain that was chosen"):
        remove_channels(model, 0.5, lambda name: False)


def test_what_is_called_twice_stays() -> None:
    assert channel_groups(build(Inverted)) == []


class TiedHead(nn.Module):
    """A head whose weight is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.relu(self.down(F.relu(self.up(self.embedding(ids))))))


def test_a_weight_that_another_layer_owns_too_stays() -> None:
    model, ids = TiedHead(), torch.arange(12).reshape(3, 4)
    assert set(remove_channels(model, 0.4)) == {"up"}
    assert model(ids).shape == (3, 4, 20)


def test_a_layer_whose_bias_is_masked_keeps_its_channels() -> None:
    model = Plain()
    prune.l1_unstructured(model.first, "bias", 0.5)
    assert [group.producer for group in channel_groups(model)] == ["second", "fc1"]


@pytest.mark.parametrize(
    "between",
    [
        lambda: nn.BatchNorm1d(5),
        lambda: nn.AvgPool1d(3, 1, 1),
        lambda: nn.Flatten(1),
        lambda: nn.Conv1d(5, 5, 1, groups=5),
    ],
)
def test_operations_on_another_axis_than_the_channels_of_a_linear_layer_keep_them(between) -> None:
    model = nn.Sequential(nn.Linear(6, 8), between(), nn.LazyLinear(3))
    assert model(torch.randn(2, 5, 6)).ndim > 1
    assert not channel_groups(model)


def test_a_linear_layer_over_the_width_of_a_picture_has_no_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(8, 4))
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 8, 8, 4)
    assert not channel_groups(model)


class ReadBeside(nn.Module):
    """Reads a tensor of a layer, past its forward."""

    def __init__(self, reads: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.first, self.bn, self.second, self.reads = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), reads

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.bn(self.first(x)))) + self.reads(self).sum()


@pytest.mark.parametrize(
    "reads", [lambda m: m.first.weight, lambda m: m.first.bias, lambda m: m.bn.running_mean, lambda m: m.second.weight]
)
def test_channels_of_tensors_that_are_read_beside_their_layer_stay(reads: Callable[[nn.Module], Tensor]) -> None:
    assert not channel_groups(ReadBeside(reads))


class OnlyInTraining(nn.Module):
    """Reads the channels of `first` in training in a way of its own. kind: how."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.first, self.norm = kind, nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.noise, self.auxiliary = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.training and self.kind == "noise":
            x = x + 0.1 * torch.randn_like(x)  # no call behind it has the inputs of evaluation
        y = F.relu(self.norm(self.first(x)))
        if self.training and self.kind == "add":
            y = y + self.noise(x)
        z = self.head(F.dropout(F.relu(self.second(y)), 0.1, self.training).mean((2, 3)))
        if self.training and self.kind in ("head", "noise"):
            return z, self.auxiliary(y.mean((2, 3)))
        if (self.training and self.kind == "weight") or self.kind == "weight, always":
            return z, F.conv2d(x, self.first.weight)
        return z


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("head", {"first": (8, 5), "second": (8, 5)}),
        ("noise", {"first": (8, 5), "second": (8, 5)}),
        ("add", {"second": (8, 5)}),
        ("weight", {"second": (8, 5)}),
        ("weight, always", {"second": (8, 5)}),
    ],
)
def test_what_training_alone_reads_counts(kind: str, lost: dict[str, tuple[int, int]]) -> None:
    """Oracle: the whole network with zero inputs of what reads the channels, in training."""
    whole, small = OnlyInTraining(kind), OnlyInTraining(kind)
    assert remove_channels(small, 0.4) == lost
    if "first" in lost:
        left = [bool((small.first.weight == one).all((1, 2, 3)).any()) for one in whole.first.weight]
        with torch.no_grad():
            whole.second.weight[:, [not stays for stays in left]] = 0
            whole.auxiliary.weight[:, [not stays for stays in left]] = 0
    results = []
    for network in (whole, small):
        torch.manual_seed(1)
        results.append(network.train()(torch.ones(4, 3, 8, 8).cumsum(3)))
    if "first" in lost:  # the main head has another dropout: it drops other channels
        torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-5)
    small.eval()(torch.zeros(1, 3, 8, 8))


def test_a_network_that_cannot_be_traced_in_training_is_refused() -> None:
    class Branching(Plain):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y * 0 if self.training and y.sum() > 0 else y

    with pytest.raises(ValueError, match=r"channels cannot be taken out of Branching: .*in training"):
        remove_channels(Branching(), 0.4)


def test_blocks_that_training_skips_at_random_are_the_same_in_every_call() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.head = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if not self.training or float(torch.rand(1)) < 0.5:
                x = x + self.down(F.relu(self.up(x)))
            return self.head(x)

    model = Skipping()
    assert len({str(channel_groups(model)) for _ in range(8)}) == 1
