"""What forward stores in lists, dicts and deques is stored by the prepared network, too. The float network is the reference."""

from __future__ import annotations

import importlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.torch_private import tree_leaves
from qat.transform.record import LAYERS, record_of


class Keeping(nn.Module):
    """Two layers; `store` keeps something of what they return."""

    def __init__(self, kept: Any, store: Callable[[Any, Tensor, Tensor], None]) -> None:
        super().__init__()
        self.first, self.second, self.kept, self.store = nn.Linear(4, 4), nn.Linear(4, 2), kept, store

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        y = self.second(h)
        self.store(self, h, y)
        return y


def _reset(module: Any, h: Tensor, y: Tensor) -> None:
    module.kept = []
    module.kept.append(h.abs().mean())


def _emptied(module: Any, h: Tensor, y: Tensor) -> None:
    module.kept.clear()
    module.kept += [h.mean(), (1, y.mean())]


def _of_lists(module: Any, h: Tensor, y: Tensor) -> None:
    module.kept.clear()
    module.kept["a"].append(h.mean())
    module.kept["a"].append(y.mean())


def _another_dict(module: Any, h: Tensor, y: Tensor) -> None:
    module.kept = {"a": {"b": [h.mean()]}, 3: y.mean()}


IN_GRAPH: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor, Tensor], None]]] = {
    "key of a dict": (dict, lambda m, h, y: m.kept.update(a=h.abs().mean())),
    "key beside others": (lambda: {"other": 3}, lambda m, h, y: m.kept.update(a=h.abs().mean())),
    "list that grows": (list, lambda m, h, y: m.kept.append(h.mean())),
    "list that grows from something": (lambda: [1], lambda m, h, y: m.kept.append(h.mean())),
    "list that is emptied": (list, _emptied),
    "another list": (list, _reset),
    "another dict": (dict, _another_dict),
    "dict of lists": (lambda: defaultdict(list), _of_lists),
    "deque": (lambda: deque(maxlen=2), lambda m, h, y: m.kept.append(h.mean())),
    "deque of one": (lambda: deque(maxlen=1), lambda m, h, y: m.kept.append(y.mean())),
}  # fmt: skip
LAYER_BY_LAYER: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor, Tensor], None]]] = {
    "counter": (Counter, lambda m, h, y: m.kept.update(calls=1)),
    "number in a dict": (dict, lambda m, h, y: m.kept.update(n=m.kept.get("n", 0) + 1)),
    "new number": (lambda: None, lambda m, h, y: setattr(m, "calls", getattr(m, "calls", 0) + 1)),
    "list in a dict": (lambda: {"a": []}, lambda m, h, y: m.kept["a"].append(h.mean())),
    "class of its own": (dict, lambda m, h, y: setattr(m, "kept", OrderedDict(a=h.mean()))),
    "deque of numbers": (deque, lambda m, h, y: m.kept.append(1)),
}


def _kept(model: nn.Module, x: Tensor) -> tuple[list[Any], list[Any]]:
    """What is kept after two steps in training, and the gradients of its tensors."""
    for _ in range(2):
        model.train()(x)
    kept = tree_leaves((model.kept, getattr(model, "calls", 0)))
    tensors = [leaf for leaf in kept if isinstance(leaf, Tensor)]
    if tensors:
        sum(tensors, torch.zeros(())).backward()
    return kept, [layer.weight.grad for layer in (model.first, model.second)]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [*IN_GRAPH, *LAYER_BY_LAYER])
def test_the_prepared_network_keeps_what_the_float_network_keeps(name: str) -> None:
    make, store = (IN_GRAPH | LAYER_BY_LAYER)[name]
    torch.manual_seed(0)
    model, x = Keeping(make(), store), torch.randn(3, 4)
    prepared = qat.prepare(model, "w8a8")
    assert ("torch.fx" if name in IN_GRAPH else LAYERS) == record_of(prepared).way  # type: ignore[union-attr]
    with qat.mode(prepared, qat.Mode.OFF):
        found = _kept(prepared, x)
    expected = _kept(model, x)
    assert type(prepared.kept) is type(model.kept)
    torch.testing.assert_close(found, expected)


class AttentionBesideLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.lstm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LSTM(8, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.attention(x, x, x, need_weights=False)[0])[0]


def test_lists_that_torch_export_builds_again_are_no_change() -> None:
    prepared = qat.prepare(AttentionBesideLSTM(), "w8a8", torch.randn(2, 3, 8))
    assert record_of(prepared).way == "torch.export"
    assert prepared.get_submodule("attention.out_proj").weight_quantizer is not None


class OfRecords(nn.Module):
    """Records that nobody changes, as timm's `feature_info` and transformers' `_weight_conversions`; torch.export traces it."""

    def __init__(self, records: Any) -> None:
        super().__init__()
        self.linear, self.records = nn.Linear(4, 4), records

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y if x.shape[1] == 4 else y[:1]


@pytest.mark.parametrize(
    "records",
    [[object()], [{"stage": 1, "part": object()}], {"parts": [object()]}, deque([[object()]]), [(1, [torch.ones(2)])]],
    ids=["list", "list of dicts", "dict of lists", "deque of lists", "tuple in a list"],
)
def test_records_that_torch_export_rebuilds_are_no_change(records: Any) -> None:
    model = OfRecords(records)
    prepared = qat.prepare(model, "w8a8", torch.randn(2, 4))
    assert record_of(prepared).way == "torch.export"  # type: ignore[union-attr]
    assert model.records is records


def test_inspect_says_why_torch_export_did_not_see_into_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a guard on values")

    monkeypatch.setattr(importlib.import_module("qat.capture.capture"), "exported", fails)
    prepared = qat.prepare(AttentionBesideLSTM(), "w8a8", torch.randn(2, 3, 8))
    said = "captured with torch.fx, although torch.fx sees no layers in 'attention'; torch.export: a guard on values"
    with pytest.warns(UserWarning, match="only 0% of the multiply-adds are in integers"):
        assert said in str(qat.inspect(prepared))
