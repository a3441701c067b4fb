from typing import Any

import pytest
import torch
from torch import nn

import qat
from qat.training.optimization.parameter_groups import (
    parameters_without_optimizer,
    quantizer_parameters,
    split_parameter_groups,
)
from tests.training.user_modules import Net


@pytest.fixture
def network() -> nn.Module:
    return qat.prepare(Net(), "w4a4")


def groups(optimizer: torch.optim.Optimizer) -> list[tuple[int, float, float]]:
    return [(len(g["params"]), g["lr"], g.get("weight_decay", -1.0)) for g in optimizer.param_groups]


def count(network: nn.Module) -> tuple[int, int]:
    learned = len(quantizer_parameters(network))
    return len(list(network.parameters())) - learned, learned


def test_a_group_is_split_in_two(network: nn.Module) -> None:
    others, learned = count(network)
    with split_parameter_groups(network, 0.1):
        optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0.5)
    assert groups(optimizer) == [(others, 1.0, 0.5), (learned, 0.1, 0.0)]


def test_each_group_of_the_user_keeps_its_options(network: nn.Module) -> None:
    decayed = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    with split_parameter_groups(network, 0.5):
        optimizer = torch.optim.SGD([{"params": decayed, "lr": 1.0, "momentum": 0.5}, {"params": rest}], lr=2.0)
    found = [(g["lr"], g["momentum"]) for g in optimizer.param_groups]
    assert found == [(1.0, 0.5), (2.0, 0.0), (1.0, 0.0)]


def test_named_parameters_generators_and_single_tensors_are_split_too(network: nn.Module) -> None:
    with split_parameter_groups(network, 1.0):
        named = torch.optim.SGD(network.named_parameters(), lr=1.0)
        single = torch.optim.SGD([{"params": network.head.weight}], lr=1.0)
    assert [len(g["params"]) for g in named.param_groups] == list(count(network))
    assert len(single.param_groups) == 1


def test_a_wrapping_optimizer_does_not_slow_the_scales_twice(network: nn.Module) -> None:
    class Wrapping(torch.optim.SGD):
        """Like sharpness-aware minimization: an optimizer that gets the groups of another."""

        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)
            self.base = torch.optim.SGD(self.param_groups, **options)

    with split_parameter_groups(network, 0.1):
        optimizer = Wrapping(network.parameters(), lr=1.0)
    assert [g["lr"] for g in optimizer.base.param_groups] == [1.0, 0.1]


def test_after_the_with_block_groups_are_not_split(network: nn.Module) -> None:
    original = torch.optim.Optimizer.add_param_group
    with pytest.raises(ZeroDivisionError), split_parameter_groups(network, 0.1):
        raise ZeroDivisionError
    assert torch.optim.Optimizer.add_param_group is original
    assert len(torch.optim.SGD(network.parameters(), lr=1.0).param_groups) == 1


def test_groups_are_saved_and_restored(network: nn.Module) -> None:
    with split_parameter_groups(network, 0.1):
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        again = torch.optim.SGD(network.parameters(), lr=3.0)
    again.load_state_dict(optimizer.state_dict())
    assert [g["lr"] for g in again.param_groups] == [1.0, 0.1]


def test_forgotten_scales_are_named(network: nn.Module) -> None:
    optimizer = torch.optim.SGD(network.head.parameters(), lr=1.0)
    forgotten = parameters_without_optimizer(network, [optimizer])
    assert "conv1.weight_quantizer.scale" in forgotten
    assert "head.weight_quantizer.scale" not in forgotten


SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda _: 0.5, lambda _: 0.125]),
    "MultiplicativeLR": lambda o: torch.optim.lr_scheduler.MultiplicativeLR(
        o, lr_lambda=[lambda _: 0.5, lambda _: 0.125]
    ),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, [2.0, 1.0], total_steps=9),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, [0.1, 0.2], max_lr=[2.0, 1.0]),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(
        o, min_lr=[0.9, 0.3], patience=0, factor=1e-9
    ),
    "a value for each final group": lambda o: torch.optim.lr_scheduler.LambdaLR(
        o, [lambda _: 0.5] * 2 + [lambda _: 0.125] * 2
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scales_get_the_value_that_a_scheduler_has_for_their_group(network: nn.Module, name: str) -> None:
    parameters = list(network.parameters())
    scale = next(i for i, p in enumerate(parameters) if any(p is q for q in quantizer_parameters(network).values()))
    before, after = parameters[: scale + 1], parameters[scale + 1 :]
    with split_parameter_groups(network, 1.0):
        optimizer = torch.optim.SGD([{"params": before}, {"params": after, "lr": 2.0}], lr=1.0)
        scheduler = SCHEDULERS[name](optimizer)
    for _ in range(2):
        optimizer.step()
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    first, its_scales, second, scales_of_second = [g["lr"] for g in optimizer.param_groups]
    assert (first, second) == (its_scales, scales_of_second)
    assert first != second
