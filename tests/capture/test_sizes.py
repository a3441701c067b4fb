"""A graph of torch.export refuses sizes for which forward takes other branches; it computed those of its example."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import qat
from qat.capture.exported.sizes import check_sizes_of_inputs


class _Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)


class Scan(_Layers):
    """A loop over time."""

    def forward(self, x: Tensor) -> Tensor:
        gate, state, states = self.a(x).sigmoid(), x[:, 0], []
        for step in range(1, x.size(1)):
            state = gate[:, step] * state + x[:, step]
            states.append(state)
        return self.b(torch.stack(states, 1))


class Branches(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        h = h[:, ::2] if x.shape[1] > 10 else h
        h = h * 2 if x.shape[1] % 2 else h
        return self.b(h.mean(1))


class Excluded(_Layers):
    """Branches whose conditions look like those that torch.export notes without a reason."""

    def __init__(self, doubles: Callable[[torch.Size], bool]) -> None:
        super().__init__()
        self.doubles = doubles

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.b((h * 2 if self.doubles(x.shape) else h).mean(1))


class Nested(_Layers):
    """Branches on the sizes of tensors inside an argument."""

    def forward(self, x: Tensor, others: dict[str, list[Tensor]]) -> Tensor:
        y = others["y"][0]
        return self.b(F.relu(self.a(x)) * (1 if 2 * x.shape[0] > y.shape[0] else 3)) + y.mean()


def _nested(batch: int, rows: int) -> tuple[Tensor, dict[str, list[Tensor]]]:
    return torch.randn(batch, 4), {"y": [torch.randn(rows, 3)]}


CASES: dict[str, tuple[nn.Module, tuple[Any, ...], list[tuple[Any, ...]], dict[str, tuple[Any, ...]]]] = {
    "a loop": (
        Scan(),
        (torch.randn(3, 3, 4),),
        [(torch.randn(1, 3, 4),), (torch.randn(5, 3, 4),)],
        {
            r"x has the shape \(3, 9, 4\).* x\.shape\[1\] == 3 alone": (torch.randn(3, 9, 4),),
            r"x has the shape \(3, 4\).* x\.ndim == 3 alone": (torch.randn(3, 4),),
        },
    ),
    "bounds": (
        Branches(),
        (torch.randn(3, 6, 4),),
        [(torch.randn(1, 2, 4),), (torch.randn(5, 10, 4),)],
        {
            r"\(3, 12, 4\).* x\.shape\[1\] <= 10 alone": (torch.randn(3, 12, 4),),
            r"\(3, 7, 4\).* x\.shape\[1\] % 2 == 0 alone": (torch.randn(3, 7, 4),),
        },
    ),
    "one step": (
        Excluded(lambda shape: shape[1] > 1),
        (torch.randn(3, 6, 4),),
        [(torch.randn(1, 6, 4),), (torch.randn(5, 2, 4),)],
        {r"\(3, 1, 4\).* x\.shape\[1\] >= 2 alone": (torch.randn(3, 1, 4),)},
    ),
    "one sample": (
        Excluded(lambda shape: shape[0] != 1),
        (torch.randn(3, 6, 4),),
        [(torch.randn(2, 1, 4),), (torch.randn(5, 7, 4),)],
        {r"\(1, 6, 4\).* x\.shape\[0\] >= 2 alone": (torch.randn(1, 6, 4),)},
    ),
    "seven steps": (
        Excluded(lambda shape: shape[1] != 7),
        (torch.randn(3, 6, 4),),
        [(torch.randn(1, 1, 4),), (torch.randn(7, 8, 4),)],
        {r"\(3, 7, 4\).* x\.shape\[1\] != 7 alone": (torch.randn(3, 7, 4),)},
    ),
    "a product": (
        Excluded(lambda shape: shape[0] * shape[1] < 24),
        (torch.randn(3, 6, 4),),
        [(torch.randn(1, 1, 4),), (torch.randn(5, 4, 4),)],
        {r"\(6, 6, 4\).* x\.shape\[1\] \* x\.shape\[0\] < 24 alone": (torch.randn(6, 6, 4),)},
    ),
    "nested": (
        Nested(),
        _nested(3, 5),
        [_nested(8, 2)],
        {r"x has the shape \(2, 4\) and others\['y'\]\[0\] has the shape \(9, 3\).* > others.* alone": _nested(2, 9)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_that_forward_treats_otherwise_are_refused(name: str) -> None:
    model, example, allowed, refused = CASES[name]
    prepared = qat.prepare(model.eval(), "w8a8", example)
    assert "torch.export" in qat.inspect(prepared).capture
    qat.calibrate(prepared, [example])
    networks = [prepared, copy.deepcopy(prepared), qat.convert(prepared.eval())]
    for sentence, inputs in refused.items():
        for network in networks:
            with pytest.raises(ValueError, match=sentence):
                network(*inputs)
    with qat.mode(prepared, qat.Mode.OFF), torch.no_grad():
        for inputs in allowed:
            assert torch.equal(prepared(*inputs), model(*inputs))


def test_an_example_of_one_sample_is_followed_as_two_and_serves_any_number() -> None:
    model = Scan().eval()
    prepared = qat.prepare(model, "w8a8", torch.randn(1, 3, 4))
    with qat.mode(prepared, qat.Mode.OFF), torch.no_grad():
        for batch in (1, 2, 5):
            x = torch.randn(batch, 3, 4)
            assert torch.equal(prepared(x), model(x))


@pytest.mark.parametrize(
    ("guard", "shown"),
    [
        ("L['x'].size()[1] <= 32", "x.shape[1] <= 32"),
        ("L['x'].size()[1] == L['y'].size()[0]", "x.shape[1] == y.shape[0]"),
        ("((-1) + (L['x'].size()[1] // 5)) >= 3", "-1 + x.shape[1] // 5 >= 3"),
        ("(L['x'].size()[1] % 2) != 0", "x.shape[1] % 2 != 0"),
        ("L['x'].size()[1] != 2", None),  # as x[:, :2] notes, which is x itself there
        ("((-1) + L['x'].size()[1]) >= 2", None),  # not 1
        ("(L['x'].size()[1]*L['y'].size()[0]) < (L['x'].size()[0]*L['x'].size()[1])", None),  # contiguous memory
        ("torch.sym_max(1, L['x'].size()[1]) == 9", None),
        ("L['x'].size()[1] == 10", None),  # not even so for the example
    ],
)
def test_conditions_without_which_the_graph_computes_the_same_are_not_checked(guard: str, shown: str | None) -> None:
    graph, tensors = fx.Graph(), {"x": torch.zeros(2, 25), "y": torch.zeros(25)}
    for name in tensors:
        graph.placeholder(name).meta["val"] = torch.zeros(())
    check_sizes_of_inputs(graph, [guard], tensors, lambda shapes: True)
    found = [text for node in graph.nodes if node.op == "call_function" for text, _ in node.args[0]]
    assert [text for text in found if "ndim" not in text] == ([] if shown is None else [shown])
