"""Allocation on small networks: its costs are those of the prepared network, and its policy is a plain policy."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.integer import stored_bytes
from qat.search import Allocation, LatencyTable, allocate
from qat.search.fisher import fisher_harms
from qat.search.harm import exactly, prepared_with
from qat.transform import quantizers


class Branches(nn.Module):
    """Two convolutions that read one tensor, two linear layers that share a weight, and layers that are called as rules are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(torch.cat([self.left(x), self.right(x)], 1)).mean((2, 3))
        return self.head(F.relu(self.last(F.relu(self.first(x[:, :6] + x[:, 6:])))))


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(16, 2, 5, 5, generator=generator) for _ in range(2)]


@pytest.fixture(scope="module")
def found(batches: list[Tensor]) -> Allocation:
    return allocate(Branches(), "w4a8", batches, bops=250_000, weight_bits=(2, 4, 8), activation_bits=(3, 8), points=2)


def test_layers_that_share_a_tensor_share_its_bits(found: Allocation) -> None:
    bits = {layer.layer: layer for layer in found.record.layers}
    assert bits["left"].activation_bits == bits["right"].activation_bits == 3  # it pays: they take most bit operations
    assert bits["first"].weight_bits == bits["last"].weight_bits
    assert bits["right"].shares == "left"
    assert bits["last"].shares == "first"
    assert bits["stem"].kept
    assert (bits["stem"].weight_bits, bits["stem"].activation_bits) == (8, 8)


def test_the_policy_quantizes_to_the_bits_of_the_allocation(found: Allocation, batches: list[Tensor]) -> None:
    prepared = qat.prepare(Branches(), found.policy, batches[0])
    for layer in found.record.layers:
        quantizer = prepared.get_submodule(layer.layer).weight_quantizer
        assert quantizer.spec.grid.bits == layer.weight_bits  # type: ignore[union-attr]
    requantized = [q.spec.grid.bits for name, q in quantizers(prepared).items() if name.endswith("_to_3_bits")]
    assert len(requantized) <= 1  # one tensor, one site, though two layers read it
    assert qat.load_policy(json.loads(json.dumps(found.policy.to_dict()))) == found.policy


def test_the_size_is_that_of_the_prepared_network_and_keeps_the_limit(batches: list[Tensor]) -> None:
    model = Branches()
    allocation = allocate(model, "w4a8", batches, size=720, weight_bits=(2, 3, 4, 8), points=0)
    size = allocation.record.costs[0]
    assert (size.name, size.value) == ("size", stored_bytes(qat.prepare(model, allocation.policy, batches[0])))
    assert size.lowest <= size.value <= 720
    smallest = allocate(model, "w4a8", batches, size=size.lowest, weight_bits=(2, 3, 4, 8), points=0)
    assert {layer.weight_bits for layer in smallest.record.layers if not layer.kept} == {2}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"size": 10}, r"budget.size=10 is not possible: with these layers and widths it goes from .* to .* bytes"),
        ({"size": 1e9}, "that of the float network"),
        ({"mean_bits": 1.5}, r"it goes from 3.40426 to 32 bits a weight"),
        ({"mean_bits": True}, "write a number of bits a weight above 0"),
        ({}, "the budget limits nothing"),
        ({"latency": 1.0}, "needs a latency_table"),
        ({"size": 720, "weight_bits": []}, r"weight_bits=\[\] is not possible"),
        ({"size": 720, "keep": ["*"]}, "leaves no quantized layer"),
        ({"size": 720, "sensitivity": "guessed"}, "write measured or fisher"),
        ({"size": 720, "weight_bits": 4}, "weight_bits=4 is not possible"),
        ({"size": 720, "activation_bits": 8}, "activation_bits=8 is not possible"),
        ({"size": 720, "points": -1}, "points=-1 is not possible"),
        ({"size": 720, "keep": 3}, "keep=3 is not possible"),
        ({"size": 720, "keep": ["stm"]}, r"'stm' is neither a layer nor the match of a rule; layers: stem, left"),
        ({"size": 720, "loss": "mse"}, "loss='mse' is not possible: write a function"),
    ],
)
def test_impossible_budgets_are_refused(batches: list[Tensor], limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(Branches(), "w4a8", batches, **limits)  # type: ignore[arg-type]


def test_both_ends_of_the_range_that_a_refusal_names_are_possible(batches: list[Tensor]) -> None:
    options = {"weight_bits": (2, 3, 8), "keep": [], "points": 0}
    for name in ("size", "bops", "mean_bits"):
        with pytest.raises(ValueError, match="it goes from") as refused:
            allocate(Branches(), "w4a8", batches, **{name: 1.0}, **options)  # type: ignore[arg-type]
        numbers = re.search(r"from ([\d.,]+) to ([\d.,]+)", str(refused.value))
        assert numbers is not None
        for end in numbers.groups():
            limit = float(end.replace(",", ""))
            found = allocate(Branches(), "w4a8", batches, **{name: limit}, **options)  # type: ignore[arg-type]
            assert found.record.costs[0].value <= limit


def test_limits_that_exclude_each_other_are_refused_with_what_is_possible_beside_the_other() -> None:
    """Only 8 bits are fast, and only 2 bits are few."""
    table = LatencyTable({name: {"w8a8": 1.0, "w2a8": 2.0} for name in ("0", "2", "4")})
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    options = {"weight_bits": (2, 8), "keep": [], "points": 0, "latency_table": table}
    with pytest.raises(ValueError, match=r"together: beside the other limits, mean_bits from 6 or latency from 6 is"):
        allocate(model, "w4a8", [torch.rand(4, 8)], mean_bits=2, latency=4, **options)  # type: ignore[arg-type]
    allocate(model, "w4a8", [torch.rand(4, 8)], mean_bits=6, latency=4, **options)  # type: ignore[arg-type]
    allocate(model, "w4a8", [torch.rand(4, 8)], mean_bits=2, latency=6, **options)  # type: ignore[arg-type]


def test_what_is_no_allocation_is_one_sentence(batches: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="batches is one tensor"):
        allocate(Branches(), "w4a8", batches[0], size=720)
    with pytest.raises(ValueError, match=r"fewest bits of the search, 2 of weight_bits, are .*FP8 has 8 bits"):
        allocate(Branches(), "fp8", batches, size=720)
    with pytest.raises(ValueError, match=r"2 of weight_bits and 1 of activation_bits, are .*bits=1 is not"):
        allocate(Branches(), "w4a8", batches, size=720, activation_bits=(1, 8))


class Decided(nn.Module):
    """Returns classes, or one number, in place of scores."""

    def __init__(self, one_number: bool) -> None:
        super().__init__()
        self.branches, self.one_number = Branches(), one_number

    def forward(self, x: Tensor) -> Tensor:
        scores = self.branches(x)
        return scores.square().mean() if self.one_number else scores.argmax(1)


@pytest.mark.parametrize("sensitivity", ["measured", "fisher"])
def test_outputs_without_floats_have_no_harm_and_one_number_has(batches: list[Tensor], sensitivity: Any) -> None:
    options: dict[str, Any] = {
        "mean_bits": 6,
        "weight_bits": (2, 8),
        "keep": (),
        "points": 0,
        "sensitivity": sensitivity,
    }
    with pytest.raises(ValueError, match="hold no floats"):
        allocate(Decided(False), "w8a8", batches, **options)
    layers = allocate(Decided(True), "w8a8", batches, **options).record.layers
    assert sum(layer.harm or 0.0 for layer in layers) > 0


def test_one_name_to_keep_is_a_list_of_one(batches: list[Tensor]) -> None:
    allocation = allocate(Branches(), "w4a8", batches, size=720, keep="left", weight_bits=(2, 4), points=0)
    assert [layer.layer for layer in allocation.record.layers if layer.kept] == ["left"]


def test_latency_comes_from_a_table_of_measured_times(tmp_path: Path, batches: list[Tensor]) -> None:
    """With four bits slower than eight, as on some processors, no layer takes them."""
    names = ("stem", "left", "right", "first", "last", "head")
    path = tmp_path / "times.yaml"
    path.write_text("\n".join(f"{name}: {{w8a8: 1.0, w4a8: 2.0, w2a8: 0.25}}" for name in names))
    model = Branches()
    allocation = allocate(model, "w4a8", batches, latency=4.6, latency_table=path, weight_bits=(2, 4, 8), points=0)
    widths = [layer.weight_bits for layer in allocation.record.layers]
    assert 4 not in widths
    assert widths.count(2) == 2
    plain = {name: {"w8a8": 1.0, "w4a8": 2.0, "w2a8": 0.25} for name in names}
    options: dict[str, Any] = {"latency": 4.6, "weight_bits": (2, 4, 8), "points": 0}
    assert allocate(model, "w4a8", batches, latency_table=plain, **options).record.layers == allocation.record.layers
    with pytest.raises(ValueError, match="latency_table is not a table of layer times: write for example"):
        allocate(model, "w4a8", batches, latency_table=[plain], **options)
    with pytest.raises(ValueError, match="has no time of left in w3a8"):
        allocate(model, "w4a8", batches, latency=3, latency_table=LatencyTable.read(path), weight_bits=(3, 8))
    with pytest.raises(ValueError, match=r"has no time of stem in w8a8 \(it has nothing\)"):
        allocate(model, "w4a8", batches, latency_table=plain | {"stem": {}}, **options)
    with pytest.raises(ValueError, match="stem=3 is not possible: write milliseconds"):
        allocate(model, "w4a8", batches, latency_table=LatencyTable({"stem": 3}), **options)  # type: ignore[dict-item]
    path.write_text("left: fast")
    with pytest.raises(ValueError, match="left='fast' is not possible"):
        LatencyTable.read(path)


def test_milliseconds_above_float_are_possible_where_float_is_faster(batches: list[Tensor]) -> None:
    table = LatencyTable({name: {"w8a8": 2.0, "w2a8": 3.0, "float": 1.0} for name in ("0", "2")})
    model, options = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), {"weight_bits": (2, 8), "keep": []}
    with pytest.raises(ValueError, match=r"it goes from 4 to 6 ms; the float network has 2\."):
        allocate(model, "w8a8", [torch.rand(4, 8)], latency=3.9, latency_table=table, points=0, **options)  # type: ignore[arg-type]
    found = allocate(model, "w8a8", [torch.rand(4, 8)], latency=5, latency_table=table, points=0, **options)  # type: ignore[arg-type]
    assert found.record.costs[0].value <= 5


def test_a_record_survives_its_file(found: Allocation, tmp_path: Path) -> None:
    assert Allocation.load(found.save(tmp_path / "allocation.json")) == found
    assert "<- chosen" in str(found)
    assert "shares with left" in str(found)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is not an allocation"):
        Allocation.load(tmp_path / "other.json")


def test_the_front_falls_and_no_uniform_choice_is_below_it(found: Allocation) -> None:
    mixed = [point for point in found.record.points if point.mixed]
    assert all(a.predicted >= b.predicted for a, b in pairwise(mixed))
    (chosen,) = [point for point in found.record.points if point.chosen]
    below = [p for p in found.record.points if not p.mixed and p.cost <= chosen.cost]
    assert below
    assert all(point.predicted >= chosen.predicted for point in below)


def test_fisher_is_the_diagonal_of_the_information_of_all_labels() -> None:
    """Oracle: gradients of each sample and each label, weighted with the label's probability."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    x = torch.rand(8, 3)
    policy = qat.load_policy({"preset": "w2a4", "first_last_bits": None})
    with prepared_with(model, policy, [x]) as prepared:
        found = quantizers(prepared)
        estimated = fisher_harms(prepared, found.values(), [x], draws=1000)
        exact = {}
        for name in ("0", "2"):
            quantizer, weight = found[f"{name}.weight_quantizer"], model.get_submodule(name).weight
            information = torch.zeros_like(weight)
            for sample in x:
                logits = model(sample)
                for probability, log in zip(logits.softmax(0), logits.log_softmax(0), strict=True):
                    (gradient,) = torch.autograd.grad(log, weight, retain_graph=True)
                    information += probability.detach() * gradient**2 / len(x)
            with torch.no_grad():
                error = quantizer.dequantize(quantizer.quantize(weight)) - weight
            exact[name] = 0.5 * float((information * error**2).sum())
        for name, value in exact.items():
            assert estimated[found[f"{name}.weight_quantizer"]] == pytest.approx(value, rel=0.1)


class Branching(nn.Module):
    """No graph: forward depends on values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.a(x) if bool(x.sum() > 0) else self.b(x)))


def test_a_model_without_a_graph_has_bits_but_no_bit_operations() -> None:
    batches = [torch.rand(8, 8), -torch.rand(8, 8)]
    options = {"weight_bits": (2, 8), "keep": [], "points": 0}
    found = allocate(Branching(), "w4a4", batches, mean_bits=5, **options)  # type: ignore[arg-type]
    assert {layer.weight_bits for layer in found.record.layers} == {2, 8}
    with pytest.raises(ValueError, match="Branching has no graph"):
        allocate(Branching(), "w4a4", batches, bops=100, **options)  # type: ignore[arg-type]


def test_inputs_with_dynamic_ranges_keep_their_bits(batches: list[Tensor]) -> None:
    found = allocate(
        Branches(), "w8_dynamic", batches, mean_bits=6, weight_bits=(4, 8), activation_bits=(3, 8), points=0
    )
    assert {layer.activation_bits for layer in found.record.layers} == {8}


def test_a_match_holds_for_one_layer_alone() -> None:
    policy = qat.load_policy({"preset": "w4a8", "rules": {"own": {"match": exactly("first"), "weight": {"bits": 3}}}})
    layers = [(name, "Linear") for name in ("a", "first", "b")]
    assert [name for name, rule in policy.assign(layers).items() if rule is policy.rules["own"]] == ["first"]
