"""Products with parameters, however they are written, are layers; torch computes what they must give."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.capture import capture
from qat.capture.graphs.compiled import CompiledGraph
from qat.nn import is_quantized

Product = Callable[[Tensor, Tensor], Tensor]


class Calling(nn.Module):
    """A function of x and of a parameter."""

    def __init__(self, function: Product, *shape: int) -> None:
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w)


LAYERS: dict[str, tuple[Product, tuple[int, ...], tuple[int, ...], str]] = {
    "einsum of experts": (lambda x, w: torch.einsum("bi,eio->beo", x, w), (4, 5), (3, 5, 2), "Linear"),
    "einsum of a list": (lambda x, w: torch.einsum("bi,eio->beo", [x, w]), (4, 5), (3, 5, 2), "Linear"),
    "einsum of heads": (lambda x, w: torch.einsum("bhte, hed -> btd", x, w), (4, 2, 3, 5), (2, 5, 6), "Linear"),
    "einsum, one matrix each": (lambda x, w: torch.einsum("bni,nio->bno", x, w), (4, 3, 5), (3, 5, 2), "Conv1d"),
    "einsum of maps": (lambda x, w: torch.einsum("abcdei,cio->abcdeo", x, w), (2, 2, 3, 2, 2, 4), (3, 4, 2), "Conv3d"),
    "einsum, weight first": (lambda x, w: torch.einsum("oi,bit->bot", w, x), (4, 5, 3), (2, 5), "Linear"),
    "einsum with an ellipsis": (lambda x, w: torch.einsum("...i,io->...o", x, w), (3, 4, 5), (5, 2), "Linear"),
    "einsum, ellipsis of a stack": (lambda x, w: torch.einsum("...i,...io->...o", x, w), (4, 3, 5), (3, 5, 2), "Conv1d"),
    "einsum without an arrow": (lambda x, w: torch.einsum("bi,io", x, w), (4, 5), (5, 2), "Linear"),
    "einsum that sums over x": (lambda x, w: torch.einsum("bto,oc->bc", x, w), (4, 3, 5), (5, 2), "Linear"),
    "bmm": (torch.bmm, (3, 4, 5), (3, 5, 2), "Conv1d"),
    "bmm by keywords": (lambda x, w: torch.bmm(input=x, mat2=w), (3, 4, 5), (3, 5, 2), "Conv1d"),
    "method bmm": (lambda x, w: x.bmm(w), (3, 4, 5), (3, 5, 2), "Conv1d"),
    "baddbmm": (lambda x, w: torch.baddbmm(w[:, :1], x, w), (3, 4, 5), (3, 5, 2), "Conv1d"),
    "matmul with a stack": (lambda x, w: x @ w, (4, 5), (3, 5, 2), "Linear"),
    "matmul of samples with a stack": (lambda x, w: x[:, None] @ w, (4, 3, 5), (2, 5, 6), "Linear"),
    "matmul of stacks": (lambda x, w: x.matmul(w), (2, 3, 4, 5), (3, 5, 6), "Conv1d"),
    "matmul with a stack of one": (lambda x, w: x @ w, (2, 3, 4, 5), (1, 5, 6), "Linear"),
    "matmul with a vector": (lambda x, w: x @ w, (4, 3, 5), (5,), "Linear"),
    "weight on the left": (lambda x, w: w @ x, (4, 5, 3), (2, 5), "Linear"),
    "mm, weight on the left": (lambda x, w: w.mm(x.t()), (4, 5), (3, 5), "Linear"),
    "mv": (lambda x, w: x.mv(w), (4, 5), (5,), "Linear"),
    "inner": (torch.inner, (4, 3, 5), (2, 3, 5), "Linear"),
    "tensordot": (lambda x, w: torch.tensordot(x, w, dims=1), (4, 3, 5), (5, 2, 2), "Linear"),
    "tensordot over negative axes": (lambda x, w: torch.tensordot(x, w, ([-1, 1], [0, -2])), (4, 3, 5), (5, 3, 2), "Linear"),
    "linear, whose weight is x": (lambda x, w: F.linear(w, x), (4, 5), (3, 5), "Linear"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_product_with_a_parameter_is_a_layer(name: str) -> None:
    function, x, w, layer = LAYERS[name]
    model, x = Calling(function, *w), torch.randn(x)
    expected = model(x)
    graph = capture(model, (x,)).graph
    assert [type(model.get_submodule(str(n.target))).__name__ for n in graph.nodes if n.op == "call_module"] == [layer]
    torch.testing.assert_close(CompiledGraph(graph).forward(model, x), expected)


def test_whatever_the_equation_the_graph_computes_it() -> None:
    chosen, layers = random.Random(0), 0
    for _ in range(150):
        sizes = {c: chosen.choice((1, 2, 3, 3)) for c in "abcdef"}
        first, second = (chosen.sample("abcdef", chosen.randint(1, 4)) for _ in range(2))
        either = sorted({*first, *second})
        result = "".join(chosen.sample(either, chosen.randint(0, len(either))))
        equation = f"{''.join(first)},{''.join(second)}->{result}"
        weight_first = chosen.random() < 0.4
        function: Product = lambda x, w, e=equation, last=weight_first: torch.einsum(e, *((w, x) if last else (x, w)))  # type: ignore[misc]  # noqa: E731
        of_x, of_w = (second, first) if weight_first else (first, second)
        model, x = Calling(function, *(sizes[c] for c in of_w)), torch.randn([sizes[c] for c in of_x])
        expected = model(x)
        graph = capture(model, (x,)).graph
        layers += any(n.op == "call_module" for n in graph.nodes)
        torch.testing.assert_close(CompiledGraph(graph).forward(model, x), expected, msg=equation)
    assert layers > 15


class Experts(nn.Module):
    """Every token goes through a stack of matrices, a matrix for each position, and attention that is written as einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.stack, self.of_position = nn.Parameter(torch.randn(3, 8, 6) / 3), nn.Parameter(torch.randn(4, 6, 5) / 3)
        self.heads = nn.Parameter(torch.randn(5, 3, 4) / 2)
        self.last = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.einsum("bti,eio->bteo", x, self.stack)).mean(2)
        x = F.relu((x.transpose(0, 1) @ self.of_position).transpose(0, 1))
        h = torch.einsum("bti,ihe->bhte", x, self.heads)
        scores = (torch.einsum("bhte,bhse->bhts", h, h) + h @ h.mT).softmax(-1)
        return self.last(torch.einsum("bhts,bhse->bthe", scores, h).flatten(2))


@pytest.mark.parametrize("policy", ["w8a8", "w4"])
def test_stacks_of_matrices_are_stored_in_integers_and_verified(policy: str, tmp_path: Path) -> None:
    batches = [torch.randn(4, 4, 8) for _ in range(2)]
    prepared = qat.prepare(Experts().eval(), policy, batches[0])
    qat.calibrate(prepared, batches)
    share = qat.inspect(prepared).share
    assert share is not None
    assert share.weights == 1.0
    assert share.multiply_adds == (1.0 if policy == "w8a8" else 0.0)
    integer = qat.convert(prepared)
    qat.export_onnx(integer, batches[0], tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, batches, prepared=prepared).passed


class LowRank(nn.Module):
    """A weight with a product of two parameters added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.a, self.b = nn.Linear(6, 4), nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight + self.b @ self.a, self.layer.bias)


def test_a_product_that_calculates_a_weight_is_part_of_the_weight() -> None:
    model, x = LowRank().eval(), torch.randn(3, 6)
    prepared = qat.prepare(model, "w8a8", x)
    qat.calibrate(prepared, [x])
    assert [m.weight.shape for m in prepared.modules() if is_quantized(m)] == [(4, 6)]
    prepared(x).sum().backward()
    assert all(p.grad is not None for p in (prepared.a, prepared.b, prepared.layer.weight))  # type: ignore[union-attr]


class OfEachSample(nn.Module):
    """A convolution whose weights are made of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.last = nn.Linear(4, 4 * 4 * 9), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.make(x.mean((2, 3))).reshape(-1, 4, 3, 3)
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weights, padding=1, groups=x.shape[0])
        return self.last(y.reshape(x.shape))


def test_weights_of_each_sample_are_refused_a_file_when_prepared() -> None:
    with pytest.warns(
        UserWarning, match="conv2d has groups of channels for each sample, .*: no file can hold it; write it as"
    ):
        prepared = qat.prepare(OfEachSample(), "w8a8", torch.randn(3, 4, 6, 6))
    with pytest.warns(UserWarning, match="multiply-adds are in integers"):
        assert "no file can hold it" in qat.inspect(prepared).notes[0]


def test_without_example_inputs_what_depends_on_axes_stays_in_float() -> None:
    prepared = qat.prepare(nn.Sequential(nn.Linear(4, 4), Calling(torch.matmul, 3, 4, 4)), "w8a8")
    assert qat.inspect(prepared).notes == ["weights of other layers stay in float, 75% of all: 1.w."]
