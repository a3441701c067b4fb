import re
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from qat.training.lightning.network import copy_with_network, find_network_name
from qat.transform import load_policy, prepare_
from tests.training.user_modules import Classifier, ModuleAsNetwork, Net


class Two(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.teacher = Net(), Net()


class TwoWithForward(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class Untraceable(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) if x.sum() > 0 else self.teacher(x)


class Loose(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Listed(L.LightningModule):
    """Its networks are in a list, which has no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList([Net(), Net()])

    def forward(self, x: Tensor) -> Tensor:
        return sum(network(x) for network in self.networks if x.ndim > 0)


@pytest.mark.parametrize(
    ("module", "name"),
    [(Listed(), ""), (Classifier(), "net"), (ModuleAsNetwork(), ""), (TwoWithForward(), ""), (Loose(), "")],
    ids=str,
)
def test_the_network_is_found(module: L.LightningModule, name: str) -> None:
    assert find_network_name(module) == name


def test_a_given_name_is_used() -> None:
    assert find_network_name(Two(), "teacher") == "teacher"
    assert find_network_name(Classifier(), "") == ""
    with pytest.raises(
        ValueError,
        match=r"network='net' is not a submodule of Two; its submodules with layers are: 'encoder', 'teacher'\.",
    ):
        find_network_name(Two(), "net")


def test_a_list_of_networks_is_no_network() -> None:
    with pytest.raises(
        ValueError, match=r"network='networks' is a ModuleList, which has no forward: .* as 'networks.0', or network=''"
    ):
        find_network_name(Listed(), "networks")


@pytest.mark.parametrize("kind", [Two, Untraceable])
def test_several_candidates_are_an_error(kind: type[Two]) -> None:
    message = (
        f"{kind.__name__} has several submodules with layers ('encoder', 'teacher') and no forward that can be traced: "
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "say which one is the network"):
        find_network_name(kind())


def test_a_module_without_layers_is_an_error() -> None:
    with pytest.raises(
        ValueError, match="LightningModule has no Conv1d, Conv2d or Linear: build its layers in __init__"
    ):
        find_network_name(L.LightningModule())


def test_a_prepared_network_is_found_again() -> None:
    two = Two()
    prepare_(two.teacher, load_policy("w4a4"))
    assert find_network_name(two) == "teacher"
    itself = ModuleAsNetwork()
    prepare_(itself, load_policy("w4a4"))
    assert find_network_name(itself) == ""


@pytest.mark.parametrize(("module", "name"), [(Classifier(), "net"), (ModuleAsNetwork(), "")], ids=["child", "itself"])
def test_the_same_steps_run_with_another_network(module: L.LightningModule, name: str) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 4), 3.0)

    before = {key: id(value) for key, value in vars(module).items()}
    children = dict(module.named_children())
    twin = copy_with_network(module, name, Constant())
    assert type(twin) is type(module)
    assert twin(torch.zeros(2, 1, 8, 8)).tolist() == [[3.0] * 4] * 2
    assert module(torch.zeros(2, 1, 8, 8)).tolist() != [[3.0] * 4] * 2
    assert {key: id(value) for key, value in vars(module).items()} == before
    assert dict(module.named_children()) == children
    metrics: list[Any] = [m for m in twin.modules() if isinstance(m, Metric)]
    assert metrics
    assert not {id(m) for m in metrics} & {id(m) for m in module.modules()}


def test_a_network_deep_inside_can_be_replaced() -> None:
    class Deep(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.outer = nn.ModuleDict({"inner": Net()})

    module, other = Deep(), nn.Identity()
    twin = copy_with_network(module, "outer.inner", other)
    assert twin.get_submodule("outer.inner") is other
    assert isinstance(module.get_submodule("outer.inner"), Net)


@pytest.mark.parametrize("kind", [Classifier, ModuleAsNetwork])
def test_a_copy_does_not_keep_the_forward_that_ddp_bound_to_the_module(kind: type[Classifier]) -> None:
    """Lightning's DDP strategy leaves `module.forward = <bound method of module>` behind."""
    module, other, x = kind().eval(), Net().eval(), torch.randn(2, 1, 8, 8)
    module.forward = module.forward  # type: ignore[method-assign]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    twin = copy_with_network(module, "net" if kind is Classifier else "", other)
    assert torch.equal(twin(x), other(x))
    assert not torch.equal(module(x), other(x))
    network = module.net if kind is Classifier else module
    network.forward = network.forward  # type: ignore[method-assign]
    prepare_(network, load_policy("w4a4"))
    with pytest.raises(RuntimeError, match="has no range yet"):  # so the prepared forward runs
        module(x)
