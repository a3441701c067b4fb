import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import qat
from qat import Mode, load_policy, prepare
from qat.quantizers import LSQ, Quantizer
from qat.transform import is_prepared, prepare_, quantizers
from qat.transform.record import record_of
from tests.transform.small_networks import NETS, Bottleneck, Branches, Residual, net

pytestmark = pytest.mark.filterwarnings("ignore:only .* of the multiply-adds:UserWarning")

every = pytest.mark.parametrize("name", NETS)


def grid(quantizer: Quantizer) -> str:
    return f"{'int' if quantizer.spec.grid.signed else 'uint'}{quantizer.spec.grid.bits}"


def sites(model: nn.Module) -> dict[str, str]:
    """Site name -> grid."""
    return {n.removeprefix("sites."): grid(q) for n, q in quantizers(model).items() if n.startswith("sites.")}


def weights(model: nn.Module) -> dict[str, str]:
    end = ".weight_quantizer"
    return {n.removesuffix(end): grid(q) for n, q in quantizers(model).items() if n.endswith(end)}


def ready(name: str, policy: str = "w4a4") -> tuple[nn.Module, Tensor]:
    model, x = net(name)
    prepared = prepare(model.eval(), policy, x)
    qat.calibrate(prepared, [x])
    return prepared, x


RESIDUAL_W4A4 = {
    "x_input": "int8",
    "conv1": "uint8",  # feeds the add in 8 bits ...
    "conv1_to_4_bits": "uint4",  # ... and conv2 in 4
    "conv2": "uint4",
    "conv3": "int8",
    "add": "uint8",
    "pool": "uint8",
}
GOLDEN = {
    "Residual_operator": RESIDUAL_W4A4,
    "Residual_in_place_operator": RESIDUAL_W4A4,
    "Residual_torch": RESIDUAL_W4A4,
    "Residual_method": RESIDUAL_W4A4,
    "Residual_in_place_method": {n.replace("add", "add_"): g for n, g in RESIDUAL_W4A4.items()},
    "Chain": {"x_input": "int8", "a": "uint4", "b": "uint8"},
    "Concat": {
        "x_input": "int8",
        "x_input_to_4_bits": "int4",
        "a": "int8",
        "b": "uint8",
        "pool": "int8",
        "cat": "int8",
        "relu_1": "uint8",
        "c": "int8",
    },
    "OptionA": {"x_input": "int8", "stem": "uint8", "stem_to_4_bits": "uint4", "conv": "int8", "add": "uint8"},
    "Bottleneck": {
        "x_input": "int8",
        "stem": "int8",
        "stem_to_4_bits": "int4",
        "expand": "uint4",
        "depthwise": "uint4",
        "project": "int8",  # a linear bottleneck is signed
        "add": "int8",
    },
    "OneDimensional": {"x_input": "int8", "conv": "uint4", "hidden": "uint8"},
    "Branches": {"x_input": "int8", "a": "uint8", "a_to_4_bits": "uint4"},
    "Twice": {"x_input": "int8", "conv": "uint8", "conv_2": "uint8", "mean": "uint8"},
    "FloatInside": {"x_input": "int8", "bn": "int8", "a": "int8", "silu": "int8", "b": "int8"},
    "Untraceable": {},
}


@every
def test_sites_are_where_they_belong(name: str) -> None:
    model, x = net(name)
    assert sites(prepare(model, "w4a4", x)) == GOLDEN[name]


def test_weights_of_a_residual_network() -> None:
    model, x = net("Residual_operator")
    assert weights(prepare(model, "w4a8", x)) == {"conv1": "int8", "conv2": "int4", "conv3": "int4", "fc": "int8"}


@pytest.mark.parametrize(
    ("policy", "changes", "expected"),
    [
        ("w8a8", {}, ["int8", "uint8", "uint8", "int8", "uint8", "uint8"]),
        ("w4a8", {}, ["int8", "uint8", "uint8", "int8", "uint8", "uint8"]),
        ("w2a2", {"residual_bits": 4}, ["int8", "uint4", "uint2", "uint2", "int4", "uint4", "uint8"]),
        ("w8a8", {"residual_bits": 4}, ["int8", "uint4", "uint8", "int4", "uint4", "uint8"]),  # residual_bits decides
        ("w2a2", {"residual_bits": None}, ["int8", "uint2", "uint2", "int2", "uint2", "uint8"]),
        ("w3a3", {"first_last_bits": 4}, ["int4", "uint8", "uint3", "uint3", "int8", "uint8", "uint4"]),
        ("w3a3", {"first_last_bits": None}, ["int3", "uint8", "uint3", "uint3", "int8", "uint8", "uint3"]),
    ],
    ids=str,
)
def test_bits_of_sites_follow_the_policy(policy: str, changes: dict, expected: list[str]) -> None:
    model, x = net("Residual_operator")
    assert list(sites(prepare(model, load_policy(policy, **changes), x)).values()) == expected


def test_a_layer_without_a_rule_stays_float() -> None:
    model, x = net("Chain")
    policy = load_policy({"rules": {"b": {"match": "b", "weight": {"bits": 4}, "activation": {"bits": 4}}}})
    prepared = prepare(model, policy, x)
    assert weights(prepared) == {"b": "int4"}
    assert sites(prepared) == {"a": "uint4"}
    assert qat.inspect(prepared).float_edges == ["x_input", "b"]


def test_weights_alone() -> None:
    model, x = net("Chain")
    prepared = prepare(model, load_policy({"rules": {"all": {"match": "*", "weight": {"bits": 4}}}}), x)
    assert weights(prepared) == {"a": "int4", "b": "int4", "c": "int4"}
    assert sites(prepared) == {}


@every
def test_a_tensor_is_rounded_once_and_all_consumers_share_it(name: str) -> None:
    model, x = net(name)
    prepared = prepare(model, "w4a4", x)
    if name == "Untraceable":
        assert [n for n in quantizers(prepared) if "input" in n] == ["a.input_quantizer", "b.input_quantizer"]
        return
    calls: list[str] = []
    for site, quantizer in quantizers(prepared).items():
        quantizer.register_forward_hook(lambda *_, site=site: calls.append(site))
    with qat.mode(prepared, Mode.OFF):
        prepared(x)
    assert sorted(n for n in calls if n.startswith("sites.")) == sorted(f"sites.{n}" for n in GOLDEN[name])


def test_the_add_gets_the_8_bit_tensor_and_the_convolution_its_4_bit_requantization() -> None:
    prepared, x = ready("Residual_operator")
    seen: dict[str, Tensor] = {}
    for name in ("conv1", "conv1_to_4_bits"):
        prepared.sites[name].register_forward_hook(
            lambda _, i, o, name=name: seen.update({name: o, name + "_in": i[0]})
        )
    prepared.conv2.register_forward_hook(lambda _, i, o: seen.update(conv2=i[0]))
    prepared(x)
    assert seen["conv2"] is seen["conv1_to_4_bits"]
    assert seen["conv1_to_4_bits_in"] is seen["conv1"]
    assert 16 < len(seen["conv1"].unique()) <= 256
    assert len(seen["conv1_to_4_bits"].unique()) <= 16


@every
def test_off_is_the_float_network_exactly(name: str) -> None:
    model, x = net(name)
    model.eval()
    prepared, _ = ready(name)
    with torch.no_grad(), qat.mode(prepared, Mode.OFF):
        assert torch.equal(prepared(x.clone()), model(x.clone()))
    with torch.no_grad():
        assert not torch.equal(prepared(x), model(x))


@every
def test_it_trains(name: str) -> None:
    prepared, x = ready(name, "w2a2")
    prepared.train()
    prepared(x).square().mean().backward()
    unused = ("unread", "never", "a_to")
    for parameter_name, p in prepared.named_parameters():
        if not any(part in parameter_name for part in unused):
            assert p.grad is not None, parameter_name
            assert torch.isfinite(p.grad).all(), parameter_name


@every
def test_the_model_handed_in_is_not_changed(name: str) -> None:
    model, x = net(name)
    calls: list[int] = []
    next(model.children()).register_forward_hook(lambda *_: calls.append(1))
    state = copy.deepcopy(model.state_dict())
    types = {n: type(m) for n, m in model.named_modules()}
    flags = {n: (m.training, getattr(m, "inplace", None)) for n, m in model.named_modules()}
    members = {n: set(m.__dict__) for n, m in model.named_modules()}
    prepared = prepare(model, "w4a4", x)
    qat.calibrate(prepared, [x])
    assert {n: type(m) for n, m in model.named_modules()} == types
    assert {n: (m.training, getattr(m, "inplace", None)) for n, m in model.named_modules()} == flags
    assert {n: set(m.__dict__) for n, m in model.named_modules()} == members
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    before = len(calls)
    model(x)
    assert len(calls) > before  # its hooks are still there


@every
def test_parameters_keep_their_names_and_values(name: str) -> None:
    model, x = net(name)
    prepared = prepare(model, "w4a4", x)
    state = prepared.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value)
    new = set(state) - set(model.state_dict())
    assert all("quantizer" in key or key.startswith("sites.") for key in new)
    assert set(dict(prepared.named_parameters())) - set(dict(model.named_parameters())) <= new


def test_in_place_the_very_same_parameter_objects_stay() -> None:
    model, x = net("Residual_operator")
    before = {n: id(p) for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    copied = prepare(model, "w4a4", x)
    assert prepare(model, "w4a4", x, inplace=True) is model
    assert str(qat.inspect(model)) == str(qat.inspect(copied))
    after = {n: id(p) for n, p in model.named_parameters()}
    assert {n: after[n] for n in before} == before
    qat.calibrate(model, [x])
    weight = model.conv2.weight.detach().clone()
    model(x).sum().backward()
    optimizer.step()
    assert not torch.equal(model.conv2.weight, weight)


def test_hooks_and_the_class_survive() -> None:
    model, x = net("Residual_operator")
    calls: list[str] = []
    model.conv2.register_forward_hook(lambda *_: calls.append("layer"))
    model.register_forward_hook(lambda *_: calls.append("model"))
    prepared = prepare(model, "w4a4")
    assert isinstance(prepared, Residual)
    assert isinstance(prepared.conv2, nn.Conv2d)
    assert type(prepared).__name__ == "Residual"
    calls.clear()  # tracing looks whether they change something
    with qat.mode(prepared, Mode.OFF):
        prepared(x)
    assert calls == ["layer", "model"]


@every
def test_preparing_twice_is_preparing_once(name: str) -> None:
    once, x = ready(name)
    twice = prepare(once, record_of(once).policy)
    assert is_prepared(once)
    assert list(twice.state_dict()) == list(once.state_dict())
    assert str(qat.inspect(twice)) == str(qat.inspect(once))
    assert torch.equal(twice(x), once(x))


@every
def test_a_deep_copy_is_equal_and_apart(name: str) -> None:
    prepared, x = ready(name)
    clone = copy.deepcopy(prepared)
    expected = prepared(x)
    assert torch.equal(clone(x), expected)
    with torch.no_grad():
        for p in clone.parameters():
            p.add_(1.0)
    assert torch.equal(prepared(x), expected)


@every
def test_a_checkpoint_loads_into_a_freshly_prepared_model(name: str) -> None:
    source, x = ready(name)
    optimizer = torch.optim.SGD(source.parameters(), lr=0.01)
    source.train()(x).square().mean().backward()
    optimizer.step()
    source.eval()
    model, _ = net(name)
    for p in model.parameters():
        nn.init.zeros_(p)
    fresh = prepare(model.eval(), "w4a4")
    fresh.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(fresh(x), source(x))
    assert qat.calibrate(fresh, []) == 0


def test_functional_dropout_follows_train_and_eval() -> None:
    prepared, x = ready("OneDimensional")
    assert not prepared.training
    assert torch.equal(prepared(x), prepared(x))
    prepared.train()
    assert not torch.equal(prepared(x), prepared(x))
    model, _ = net("OneDimensional")
    assert all(m.training for m in prepare(model.train(), "w4a4").modules())


class DropPath(nn.Module):
    """As in timm and transformers: drops the branch of a whole sample, in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(len(x), *[1] * (x.ndim - 1)) < 0.5) / 0.5


@pytest.mark.parametrize("drop", [DropPath(), torchvision.ops.StochasticDepth(0.5, "row")])
def test_stochastic_depth_follows_train_and_eval(drop: nn.Module) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.branch, self.drop, self.last = nn.Linear(4, 8), nn.Linear(8, 8), drop, nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x + self.drop(self.branch(x)))

    x = torch.randn(32, 4)
    prepared = prepare(Residual().eval(), "w8a8", x)
    assert qat.inspect(prepared).float_edges == []
    qat.calibrate(prepared, [x])
    assert torch.equal(prepared(x), prepared(x))
    prepared.train()
    assert not torch.equal(prepared(x), prepared(x))


class AlwaysDrops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), 0.5, training=True)


def test_dropout_that_is_always_on_stays_on() -> None:
    prepared = prepare(AlwaysDrops().eval(), "w8a8")
    qat.calibrate(prepared, [torch.randn(4, 8)])
    assert (prepared.eval()(torch.randn(4, 8)) == 0).any()


def test_optional_arguments_keep_their_defaults() -> None:
    model, x = net("Branches")
    prepared = prepare(model, "w4a4", x)
    with qat.mode(prepared, Mode.OFF):
        assert torch.equal(prepared(x), model(x))
    assert isinstance(prepared, Branches)
    assert weights(prepared) == {"a": "int8", "b": "int8", "unread": "int4"}  # `never` is not in the graph


def test_what_cannot_be_traced_gets_layers_that_own_their_input() -> None:
    model, x = net("Untraceable")
    prepared = prepare(model, "w4a4", x)
    assert {n: grid(q) for n, q in quantizers(prepared).items()} == {
        "a.weight_quantizer": "int8",
        "a.input_quantizer": "int8",
        "b.weight_quantizer": "int8",
        "b.input_quantizer": "int8",
    }
    found = qat.inspect(prepared)
    assert found.capture.startswith(
        "captured layer by layer, because Untraceable cannot be traced: symbolically traced variables cannot be used as "
        "inputs to control"
    )
    assert found.notes == ["layers own their input quantizers."]
    qat.calibrate(prepared, [x, -x])
    for sign in (1, -1):  # both branches still run
        assert prepared(sign * 100 * x).isfinite().all()


class ReadsAgain(nn.Module):
    """relu writes into y, and the last convolution reads y by its old name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        F.relu(y, inplace=True)
        return self.b(y)


def test_a_tensor_overwritten_in_place_and_read_again_is_not_captured() -> None:
    model, x = ReadsAgain().eval(), torch.randn(2, 3, 4, 4)
    prepared = prepare(model, load_policy("w8a8"), x)
    assert "overwrites 'a' in place and reads it again" in qat.inspect(prepared).capture
    qat.calibrate(prepared, [x])
    torch.testing.assert_close(prepared(x), model(x), atol=0.05, rtol=0.1)
    assert not torch.equal(prepared(x), model(x))


class Forward(nn.Module):
    """One convolution and a forward given as a function."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.b(F.pad(F.relu(m.a(x)), (1, 1), value=-1.0)), {"x_input": "int8", "a": "uint8", "pad": "int8"}),
        (lambda m, x: m.b(F.pad(F.relu(m.a(x)), (1, 1), value=0.0)), {"x_input": "int8", "a": "uint8"}),
        (
            lambda m, x: m.b(F.pad(F.relu(m.a(x)), (1, 1, 1, 1), "reflect")),
            {"x_input": "int8", "a": "uint8"},
        ),
        (lambda m, x: m.b(torch.sigmoid(m.a(x))), {"x_input": "int8", "a": "int8", "sigmoid": "uint8"}),
        (lambda m, x: m.b(m.a(x) + 1.0), {"x_input": "int8", "a": "int8", "add": "int8"}),
        (lambda m, x: m.b(torch.add(m.a(x), x, alpha=2)), {"x_input": "int8", "a": "int8", "add": "int8"}),
        (
            lambda m, x: m.b(F.relu6(m.a(x)).mean((2, 3), keepdim=True)),
            {"x_input": "int8", "a": "uint8", "mean": "uint8"},
        ),
        (
            lambda m, x: m.b(torch.cat([F.relu(m.a(x)).view(x.size(0), 3, 8, 8)] * 2, 2)),
            {"x_input": "int8", "a": "uint8", "cat": "uint8"},
        ),
        (
            lambda m, x: m.b(F.relu(m.a(x)) + F.relu(x)),
            {"x_input": "int8", "a": "uint8", "relu_1": "uint8", "add": "uint8"},
        ),
    ],
    ids=[
        "pad_-1",
        "pad_0",
        "pad_reflect",
        "sigmoid",
        "add_constant",
        "add_alpha",
        "mean",
        "cat_of_view",
        "add_of_relus",
    ],
)
def test_signs_and_kinds(forward, expected: dict[str, str]) -> None:
    model = Forward(forward)
    prepared = prepare(model, "w8a8", torch.randn(2, 3, 8, 8))
    assert sites(prepared) == expected


class Attention(nn.Module):
    """Names that are methods of the dict that holds the sites."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.keys(x)) + F.relu(self.values(x)))


def test_layers_may_be_called_keys_and_values() -> None:
    x = torch.randn(2, 4)
    prepared = prepare(Attention(), "w8a8", x)
    assert list(sites(prepared)) == ["x_input", "keys_2", "values_2", "add"]
    assert qat.calibrate(prepared, [x]) == 7


def test_a_model_with_sites_of_its_own_is_refused_unharmed() -> None:
    model = Attention()
    model.sites = nn.ModuleList()
    with pytest.raises(
        ValueError, match="Attention has an attribute 'sites', where its quantizers would go: rename it"
    ):
        prepare_(model, load_policy("w8a8"))
    assert not is_prepared(model)


def test_nothing_to_quantize() -> None:
    with pytest.raises(ValueError, match="quantizable layers: none at all"):
        prepare(nn.Sequential(nn.ReLU()), "w8a8")


def test_a_group_that_does_not_divide_names_the_layer() -> None:
    policy = load_policy({"preset": "w4a4", "weight": {"granularity": "per_group", "group_size": 5}})
    model, _ = net("Residual_operator")
    with pytest.raises(ValueError, match=r"layer 'conv1': group_size=5 does not divide the 27 weights"):
        prepare(model, policy)


class TracedDifferently(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + float(isinstance(x, torch.fx.Proxy))


def test_a_copy_that_computes_something_else_is_refused() -> None:
    with pytest.raises(
        ValueError, match="graph of TracedDifferently does not compute what its forward computes on the example"
    ) as error:
        prepare(TracedDifferently(), "w8a8", torch.randn(2, 4))
    with pytest.raises(ValueError, match="does not compute"):
        prepare(TracedDifferently(), "w8a8", torch.randn(2, 4), inplace=True)
    assert "move such branches out of forward" in str(error.value)


def test_results_that_are_objects_are_no_difference() -> None:
    """Language models return their cache."""

    class Cache:
        pass

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Cache]:
            return self.a(x), Cache()

    assert is_prepared(prepare(Cached(), "w8a8", torch.randn(2, 4)))


def test_any_torchvision_resnet_prepares_and_trains() -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18(num_classes=4), torch.randn(2, 3, 32, 32)
    prepared = prepare(model, load_policy("w4a4").with_parts("LSQ", "MinMax"), x)
    found = sites(prepared)
    assert len(weights(prepared)) == 21
    assert {n for n in found if n.endswith("_to_4_bits")} >= {"conv1_to_4_bits", "layer1_0_add_to_4_bits"}
    assert found["layer2_0_downsample_0"] == "int8"
    assert found["layer1_0_conv2"] == "int8"
    assert found["layer1_0_conv1"] == "uint4"
    assert qat.inspect(prepared).float_edges == []
    assert qat.calibrate(prepared, [x]) == len(quantizers(prepared))
    prepared.train()(x).sum().backward()
    assert all(p.grad is not None for p in prepared.parameters())


def test_every_quantizer_knows_its_name() -> None:
    for name, quantizer in quantizers(ready("Residual_operator")[0]).items():
        expected = name.removeprefix("sites.").replace("_quantizer", "")
        assert quantizer.label == expected
        assert isinstance(quantizer, LSQ)


def test_the_table_of_inspect() -> None:
    model, x = net("FloatInside")
    found = qat.inspect(prepare(model, "w4a4", x))
    assert [(line.name, line.weight, line.activation) for line in found.lines] == [
        ("a", "int8 per channel, LSQ", ""),
        ("b", "int8 per channel, LSQ", ""),
        ("x_input", "", "int8 per tensor, LSQ"),
        ("bn", "", "int8 per tensor, LSQ"),
        ("a", "", "int8 per tensor, LSQ"),
        ("silu", "", "int8 per tensor, LSQ"),
        ("b", "", "int8 per tensor, LSQ"),
    ]
    assert found.float_edges == []
    assert "stays in float: nothing" in str(found)
    assert [line.weight for line in qat.inspect(Bottleneck()).lines] == ["float"] * 5


def test_an_adaptive_pool_is_an_integer_operation_only_where_it_is_global() -> None:
    for size, stays in ((1, False), (2, True)):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.Linear(4 * size * size, 2))
        edges = qat.inspect(qat.prepare(net, "w8a8")).float_edges
        assert any("AdaptiveAvgPool2d" in edge for edge in edges) == stays


def test_optional_arguments_that_are_used_keep_the_forward_as_it_is() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            hidden = self.a(x)
            return self.b(hidden if mask is None else hidden * mask)

    class Named(Masked):
        def forward(self, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            return super().forward(x, mask)

    x, mask = torch.randn(3, 4), torch.tensor([1.0, 0.0, 1.0, 0.0])
    for model, example in ((Masked(), (x, mask)), (Named(), None)):
        prepared = qat.prepare(model, "w8a8", example)
        with qat.mode(prepared, qat.Mode.OBSERVE):
            assert torch.equal(prepared(x, mask=mask), model(x, mask=mask))
            assert torch.equal(prepared(x), model(x))
        said = "stays in float: everything between layers" if example is None else "captured with torch.export"
        assert said in str(qat.inspect(prepared))


def test_another_policy_for_a_prepared_model_is_refused() -> None:
    prepared = qat.prepare(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "w4a8")
    with pytest.raises(ValueError, match="already prepared with policy 'w4a8', not 'w4a4': prepare the float model"):
        qat.prepare(prepared, "w4a4")
    assert str(qat.inspect(qat.prepare(prepared, "w4a8"))) == str(qat.inspect(prepared))


def test_in_a_float_network_everything_stays_in_float() -> None:
    assert str(qat.inspect(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))).endswith("stays in float: everything")


class Fused(nn.Module):
    """torch has a fused form of its transformer layer, which reads weights without calling the layers that hold them."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.first, self.encoder, self.last = nn.Linear(4, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.encoder(x) if x.numel() > float(x.detach().sum()) - 1e9 else x)


def test_no_fused_layer_passes_quantizers_by() -> None:
    x = torch.randn(3, 7, 4)
    prepared = prepare(Fused().eval(), "w2a8", x)
    qat.calibrate(prepared, [x])
    with torch.no_grad():
        fused = prepared(x)
    torch.testing.assert_close(fused, prepared(x).detach())
    integer = qat.convert(prepared)
    with torch.no_grad():
        torch.testing.assert_close(integer(x), fused)
    assert not [note for note in qat.inspect(prepared).notes if note.startswith("weights of other layers")]


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x)
        return (self.b(x), x) if self.training else self.b(x)


def test_branches_on_training_are_warned_of_without_example_inputs() -> None:
    with pytest.warns(
        UserWarning,
        match=r"Auxiliary branches on self.training \(auxiliary heads, noise\): prepared, it .* With example_inputs",
    ):
        prepared = prepare(Auxiliary(), "w8a8")
    assert any("branches on self.training" in note for note in qat.inspect(prepared).notes)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: prepare(m, 8), "policy 8 is not a policy: write a preset such as 'w8a8'"),
        (
            lambda m: prepare(m, "w8a8", [torch.randn(2, 4)]),
            "example_inputs is a list: write a tensor, a tuple",
        ),
        (lambda m: qat.calibrate(prepare(m, "w8a8"), torch.randn(2, 4)), r"one tensor of shape \(2, 4\): write a list"),
    ],
)
def test_what_is_none_of_these_is_refused(call: Callable[[nn.Module], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))


def test_what_is_no_network_is_named() -> None:
    for given in ("resnet18", nn.Linear):
        with pytest.raises(ValueError, match=r"is not a torch\.nn\.Module: write the network itself"):
            prepare(given, "w8a8")  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["weight", "input"])
def test_nan_is_blamed_on_its_tensor_and_not_on_the_forward(where: str) -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.randn(2, 4)
    with torch.no_grad():
        (model[2].weight if where == "weight" else x)[0, 0] = torch.nan
    prepared = prepare(model, "w8a8", x)
    with pytest.raises(ValueError, match="'2.weight_quantizer' .* NaN" if where == "weight" else "batch 0 holds NaN"):
        qat.calibrate(prepared, [x])


@pytest.mark.parametrize(
    "example", [torch.randn(2, 5, 4, 4), (torch.randn(2, 3, 4, 4),) * 2, {"foo": torch.randn(2, 3, 4, 4)}]
)
def test_example_inputs_that_the_model_itself_cannot_take_are_refused(example: Any, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"Sequential itself cannot run on the example inputs \("):
        qat.prepare(model, "w8a8", example)
    prepared = qat.prepare(model, "w8a8", x)
    qat.calibrate(prepared, [x])
    if isinstance(example, Tensor):
        with pytest.raises(ValueError, match=r"cannot run on the example inputs \("):
            qat.export_onnx(qat.convert(prepared), example, tmp_path / "model.onnx")


@pytest.mark.parametrize("batches", [None, "folder"])
def test_what_holds_no_batches_is_refused(batches: Any) -> None:
    prepared = qat.prepare(nn.Linear(2, 2), "w8a8", torch.randn(2, 2))
    with pytest.raises(ValueError, match=f"batches={batches!r} is not a list of batches"):
        qat.calibrate(prepared, batches)


class _PaddedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        y = self.layer(x)
        return self.layer(F.scaled_dot_product_attention(y, y, y, mask[:, None, :] & causal))


def test_an_example_padded_on_the_left_is_captured() -> None:
    """Its first query may look at no key: its result, which networks ignore, is the mean of all values in the graph."""
    model, x = _PaddedAttention().eval(), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, True], [False, True, True]])
    prepared = qat.prepare(model, "transformer_w8a8", (x, mask))
    with qat.mode(prepared, Mode.OFF):
        torch.testing.assert_close(prepared(x, mask)[mask], model(x, mask)[mask])


class _Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.layer(x)
        return self.layer(F.scaled_dot_product_attention(y, y, y, mask))


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(x, src_key_padding_mask=mask))
        return y


@pytest.mark.parametrize("network", [_Masked, _Encoder])
@pytest.mark.parametrize("in_the_example", [False, True], ids=["later", "in the example"])
def test_a_mask_of_minus_infinity_for_all_keys_gives_numbers(network: type[nn.Module], in_the_example: bool) -> None:
    x, mask = torch.randn(2, 3, 8), torch.zeros(2, 3)
    mask[0, 2] = -torch.inf
    nothing = mask.clone()
    nothing[1] = -torch.inf
    both = [mask[:, None], nothing[:, None]] if network is _Masked else [mask < 0, nothing < 0]
    model = network().eval()
    prepared = qat.prepare(model, "transformer_w8a8", (x, both[in_the_example]))
    qat.calibrate(prepared, [(x, both[0])])
    with qat.mode(prepared, Mode.OFF), torch.no_grad():
        torch.testing.assert_close(prepared(x, both[0]), model(x, both[0]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(prepared(x, both[1])[:1], model(x, both[1])[:1], atol=1e-5, rtol=1e-5)
    assert prepared(x, both[1]).isfinite().all()
    assert qat.convert(prepared)(x, both[1]).isfinite().all()


@pytest.mark.parametrize("noise", [lambda x: F.dropout(x, 0.5), lambda x: x + torch.rand(1)], ids=["dropout", "rand"])
def test_a_forward_that_is_random_in_evaluation_is_called_that(noise: Callable[[Tensor], Tensor]) -> None:
    class Noisy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return noise(super().forward(x))

    with pytest.raises(ValueError, match=r"Noisy returns something else each time .* F.dropout\(x, p, self.training\)"):
        qat.prepare(Noisy(nn.Linear(8, 8)), "w8a8", torch.randn(4, 8))


def test_labels_that_reach_a_layer_are_refused() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.table = nn.Linear(8, 8), nn.Embedding(4, 8)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
            y = self.layer(x)
            return (y,) if labels is None else (y, y + self.table(labels))

    with pytest.raises(ValueError, match=r"Conditioned feeds labels to 'table', .* another name, such as 'condition'"):
        qat.prepare(Conditioned(), "w8a8", (torch.randn(4, 8), torch.arange(4)))


@pytest.mark.parametrize("name", ["graph", "code", "meta", "recompile", "shape_env"])
def test_names_that_graph_modules_have_are_refused(name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(name, nn.Linear(4, 4))

        def forward(self, x):
            return getattr(self, name)(x)

    with pytest.raises(ValueError, match=f"Named has an attribute '{name}', which torch.fx has, too: rename it"):
        qat.prepare(Named(), "w8a8", torch.randn(2, 4))
    qat.prepare(nn.Sequential(Named(), nn.Linear(4, 2)), "w8a8", torch.randn(2, 4))
