"""A captured and prepared network computes, with quantizers off, what the float network computes: results and gradients."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import qat
from qat.capture import capture
from qat.nn import is_quantized
from tests.capture.networks import (
    Asserting,
    CalledAround,
    Conv1D,
    ConvSame,
    Counting,
    DropoutAround,
    FrozenNorm,
    LinearAround,
    Masked,
    NormAct,
    NormAround,
    Remembering,
    Shifted,
    Spectral,
    Storing,
    Tied,
    Untraceable,
    Windows,
)

IMAGE, ROWS = (2, 4, 6, 6), (3, 4)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "padding inside": (lambda: ConvSame(4, 4, 2, padding=5), IMAGE, ["1"]),
    "activation inside": (lambda: NormAct(4), IMAGE, []),
    "call around a layer": (lambda: LinearAround(4, 4), ROWS, ["1"]),
    "call around dropout": (lambda: DropoutAround(0.0), ROWS, []),
    "buffers combined": (FrozenNorm, IMAGE, []),
    "weight in, out": (Conv1D, ROWS, ["1.linear"]),
    "masked": (Masked, ROWS, ["1.linear"]),
    "one weight, two layers": (Tied, ROWS, ["1.linear", "1.table_2"]),
    "assert": (Asserting, ROWS, ["1.fc"]),
    "stores": (Storing, ROWS, ["1.fc"]),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), ROWS, ["1"]),
    "weight_norm of old": (lambda: nn.utils.weight_norm(nn.Linear(4, 4)), ROWS, ["1"]),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), ROWS, ["1"]),
    "weight_norm inside": (lambda: parametrizations.weight_norm(ConvSame(4, 4, 2)), IMAGE, ["1"]),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape, _ = CASES[name]
    ends = (nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)) if len(shape) == 4 else (nn.Linear(4, 4), nn.LazyLinear(2))
    model, x = nn.Sequential(ends[0], make(), ends[1]), torch.randn(shape)
    model(x)
    return model, x


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_off_is_the_float_network_in_results_gradients_and_statistics(name: str) -> None:
    model, x = network(name)
    prepared = qat.prepare(model, "w8a8", x)
    assert [n for n, m in prepared.named_modules() if is_quantized(m) and n not in ("0", "2")] == CASES[name][2]
    assert (qat.inspect(prepared).notes, qat.inspect(prepared).capture) == ([], "captured with torch.fx")
    with qat.mode(prepared, qat.Mode.OFF):
        for training in (True, False):
            results = []
            for candidate in (model, prepared):
                candidate.train(training).zero_grad()
                y = candidate(x)
                y.square().mean().backward()
                results.append(y)
            assert torch.equal(*results)
            ours = dict(prepared.named_parameters())
            assert all(torch.equal(p.grad, ours[n].grad) for n, p in model.named_parameters())
    state = prepared.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_norm_with_a_call_of_its_own_is_more_than_a_norm() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(4, 4, 1), NormAround(4), nn.Conv2d(4, 4, 1)), torch.randn(IMAGE)
    prepared = qat.prepare(model, "w8a8", x)
    with qat.mode(prepared, qat.Mode.OFF):
        for training in (True, False):
            assert torch.equal(model.train(training)(x), prepared.train(training)(x))


def test_complex_numbers_that_forward_overwrites_have_a_gradient() -> None:
    torch.manual_seed(0)
    model, x = Spectral(), torch.randn(3, 6, 4)
    prepared = qat.prepare(model, "w8a8", x)
    with qat.mode(prepared, qat.Mode.OFF):
        for network in (model, prepared):
            network(x).square().mean().backward()
    ours = dict(prepared.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad)


class RootAround(CalledAround, nn.Sequential):
    """A network that is more than its forward."""


class TypedCall(nn.Sequential):
    """Its `__call__` only has a type."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x)


def test_what_the_call_of_a_network_computes_around_forward_is_deployed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 4)
    prepared = qat.prepare(RootAround(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), "w8a8", x).eval()
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    torch.testing.assert_close(integer(x), prepared(x))
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [x[:3]], prepared).passed


def test_a_call_that_computes_nothing_leaves_the_graph() -> None:
    model = TypedCall(nn.Linear(4, 4))
    assert qat.inspect(qat.prepare(model, "w8a8", torch.randn(3, 4))).capture == "captured with torch.fx"
    without = qat.inspect(qat.prepare(model, "w8a8")).capture
    assert "TypedCall has a __call__ of its own, and there are no example inputs" in without


@pytest.mark.parametrize("name", ["padding inside", "weight in, out", "pruned"])
def test_a_prepared_network_is_copied_and_pickled(name: str) -> None:
    model, x = network(name)
    prepared = qat.prepare(model, "w8a8", x).eval()
    qat.calibrate(prepared, [x])
    for again in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(again(x), prepared(x))
        with torch.no_grad():
            next(again.get_submodule("1").parameters()).add_(1.0)
        assert not torch.equal(again(x), prepared(x))  # the copy's own weight, not that of the original


def test_what_forward_stores_stays_available_and_has_a_gradient() -> None:
    model = qat.prepare(Storing(), "w8a8")
    assert not hasattr(model, "penalty")
    qat.calibrate(model, [torch.randn(3, 4)])
    model(torch.randn(3, 4))
    model.penalty.backward()
    assert model.fc.weight.grad is not None


def test_a_forward_that_changes_numbers_of_its_own_is_not_captured() -> None:
    prepared = qat.prepare(Counting(), "w8a8", torch.randn(3, 4))
    with pytest.warns(UserWarning, match="in integers"):
        assert "layers own their input quantizers" in qat.inspect(prepared).notes[0]
    qat.calibrate(prepared, [torch.randn(3, 4)])
    before = prepared.total
    prepared.train()(torch.randn(3, 4))
    assert prepared.total != before


def test_attention_is_products_of_layers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    model, x = nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3)).eval(), torch.randn(1, 5, 4)
    prepared = qat.prepare(model, "w8a8", x)
    names = ["0", "1.self_attn.out_proj", "1.self_attn.in_proj", "1.linear1", "1.linear2", "2"]
    assert [n for n, m in prepared.named_modules() if is_quantized(m)] == names
    assert list(model.state_dict()) == [
        n for n in prepared.state_dict() if not n.startswith("sites") and "_quant" not in n
    ]
    graph = capture(prepared).graph
    assert sum(node.target is torch.matmul for node in graph.nodes) == 2
    other = torch.randn(3, 7, 4)
    with qat.mode(prepared, qat.Mode.OFF):
        torch.testing.assert_close(prepared(other), model(other))
        drops = [m for n, m in prepared.named_modules() if n.startswith("attention_dropout")]
        assert [(m.p, m.training) for m in drops] == [(0.5, False)]


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # unpickled by torch 2.12
def test_torch_export_captures_what_torch_fx_cannot_trace() -> None:
    torch.manual_seed(0)
    model, x = Untraceable().eval(), torch.randn(1, 3, 8, 8)
    prepared = qat.prepare(model, "w8a8", {"image": x})
    assert [n for n, m in prepared.named_modules() if is_quantized(m)] == ["conv", "fc"]
    assert qat.inspect(prepared).capture.startswith("captured with torch.export, because Untraceable cannot be traced")
    other = torch.randn(5, 3, 10, 8)  # the batch of 1 and the height of the example are not constants
    with qat.mode(prepared, qat.Mode.OFF):
        assert torch.equal(prepared(other)["y"], model(other)["y"])
        assert torch.equal(prepared(other, twice=True)["y"], model(other, twice=True)["y"])  # forward itself
        prepared.train()(other)["y"].sum().backward()
    assert not torch.equal(prepared.norm.running_mean, model.norm.running_mean)
    assert prepared.drop.training
    assert pickle.loads(pickle.dumps(prepared))(other)["y"].shape == (5, 2) if qat.calibrate(prepared, [x]) else False


def test_an_embedding_that_is_tied_to_a_linear_layer_and_read_by_both() -> None:
    """As in GPT-2 and OPT, from functions of one parameter."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.words.weight

        def forward(self, words: Tensor, **unused: Tensor) -> Tensor:
            return self.head(self.words(words).tanh())

    model, words = Tied().eval(), torch.randint(9, (2, 5))
    prepared = qat.prepare(model, "w8a8", words)
    assert [n for n, m in prepared.named_modules() if is_quantized(m)] == ["words", "head"]
    prepared.head.weight.data.add_(1)
    model.head.weight.data.add_(1)
    with qat.mode(prepared, qat.Mode.OFF):
        assert torch.equal(prepared(words), model(words))


def test_torch_export_follows_slices_that_are_overwritten_and_keeps_constants() -> None:
    model, x = Shifted().eval(), torch.randn(2, 5, 4)
    prepared = qat.prepare(model, "w8a8", x)
    assert qat.inspect(prepared).capture.startswith("captured with torch.export")
    other = torch.randn(3, 5, 4)
    with qat.mode(prepared, qat.Mode.OFF):
        assert torch.equal(prepared(other), model(other))


def test_a_function_that_torch_fx_does_not_look_into_hides_no_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Windows().eval(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        model.qkv.weight.mul_(3)
    prepared = qat.prepare(model, "w8a8", x)
    assert [n for n, m in prepared.named_modules() if is_quantized(m)] == ["first", "last", "qkv"]
    with qat.mode(prepared, qat.Mode.OFF):
        torch.testing.assert_close(prepared(x[:2]), model(x[:2]))
    qat.calibrate(prepared, [x])
    found = qat.inspect(prepared)
    assert "torch.fx sees no layers in '_attend_in_windows'" in found.capture
    assert found.share is not None
    assert found.share.multiply_adds == 1  # both products of activations among them
    assert not any("zeros" in edge for edge in found.float_edges), "a mask is a constant"
    integer = qat.convert(prepared)
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [x], prepared).passed


def test_a_language_model_is_quantized_without_its_cache_and_still_has_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batch = Remembering().eval(), {"words": torch.randint(9, (3, 5)), "types": torch.randn(3, 5)}
    prepared = qat.prepare(model, "w8a8", batch)
    qat.calibrate(prepared, [batch])
    assert qat.inspect(prepared).capture.startswith("captured with torch.export")
    for call in ({}, {"use_cache": False}):
        assert torch.equal(prepared(**batch, **call)["logits"], prepared(**batch)["logits"]), "the sites are part of it"
        assert set(prepared(**batch, **call)) == {"logits"}
    first = prepared(**batch, use_cache=True)  # what generate does
    again = prepared(**batch, cache=first["cache"], use_cache=True)
    assert not torch.equal(first["logits"], again["logits"])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, batch, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [batch], prepared).passed


def test_convolutions_that_pad_with_other_values_than_zeros_are_computed_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    twice = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=(1, 2), padding_mode="reflect"),
        nn.ReLU(),
        *(twice, nn.ReLU(), twice, nn.ReLU()),
        nn.Conv2d(8, 8, (3, 4), padding="same", padding_mode="replicate"),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(1),
    ).eval()
    x = torch.randn(2, 3, 7, 6)
    prepared = qat.prepare(model, "w8a8", x)
    with qat.mode(prepared, qat.Mode.OFF):
        assert torch.equal(prepared(x), model(x))
    qat.calibrate(prepared, [x])
    share = qat.inspect(prepared).share
    assert share is not None
    assert share.multiply_adds == 1.0
    integer = qat.convert(prepared)
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    found = qat.verify(tmp_path / "model.onnx", integer, [x], prepared)
    assert found.passed
    assert found.operators["QLinearConv"] == 5


@pytest.mark.parametrize("indices", [False, True])
def test_max_pools_of_torch_export_return_values_unless_indices_are_read(indices: bool, tmp_path: Path) -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor | None = None) -> Tensor:
            assert x is not None
            y, where = F.adaptive_max_pool2d(F.relu(self.a(x)), (4, 2), return_indices=True)
            return self.b(y) + where.float().mean() * 1e-3 if indices else self.b(y)

    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 6)
    prepared = qat.prepare(Pools().eval(), "w8a8", x)
    assert "torch.export" in qat.inspect(prepared).capture
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    torch.testing.assert_close(integer(x), prepared(x), rtol=0, atol=0.05)
    if not indices:  # which ONNX Runtime does not compute for adaptive pools
        qat.export_onnx(integer, x, tmp_path / "model.onnx")
        assert qat.verify(tmp_path / "model.onnx", integer, [x], prepared).passed


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y: Tensor = torch.empty_like(self.layer(x), memory_format=torch.preserve_format).zero_() + self.layer(x)
        return y.to(memory_format=torch.contiguous_format)


def test_memory_formats_in_a_graph_are_saved(tmp_path: Path) -> None:
    """torch.save pickles by protocol 2, by which torch cannot pickle them."""
    x = torch.randn(2, 3, 4, 4)
    prepared = qat.prepare(ChannelsLast(), "w8a8", x)
    qat.calibrate(prepared, [x])
    for model in (prepared.eval(), qat.convert(prepared)):
        torch.save(model, tmp_path / "model.pt")
        assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(x), model(x))
