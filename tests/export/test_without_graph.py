"""The file of a network without a graph: torch.onnx around our quantizers and stored weights."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.capture import CaptureError
from qat.export import OnnxRuntimeNetwork


class Optional(nn.Module):
    """One argument has a default; one layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        h = F.relu(self.conv(x)).mean((2, 3))
        if mask is not None:
            h = h.masked_fill(mask, 0.0)
        return {"logits": self.head(F.softmax(self.linear(F.relu(self.linear(h))), -1))}


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else x


@pytest.fixture(autouse=True)
def without_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has a graph."""

    def refuse(model: nn.Module, *arguments: object) -> None:
        raise CaptureError(f"{type(model).__name__} is not traced here")

    for module in ("qat.transform.prepare", "qat.integer.convert"):
        monkeypatch.setattr(importlib.import_module(module), "capture", refuse)


@pytest.mark.parametrize(("policy", "kind"), [("w8a8", "INT8"), ("w4a8", "INT4")])
def test_the_file_computes_what_the_module_computes(policy: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(16, 3, 6, 6), torch.rand(16, 8) < 0.2
    prepared = qat.prepare(Optional().eval(), qat.load_policy(policy, first_last_bits=None), (x, mask))
    qat.calibrate(prepared, [(x, mask)])
    integer = qat.convert(prepared)
    path = tmp_path / "m.onnx"
    qat.export_onnx(integer, {"x": x[:1], "mask": mask[:1]}, path)
    with torch.no_grad():
        expected = integer(x, mask)["logits"].numpy()
    result = OnnxRuntimeNetwork(path)(x, mask).numpy()
    assert np.abs(result - expected).max() < 1e-4 * np.abs(expected).max()
    check = qat.verify(path, integer, [(x, mask)])
    assert check.exact, check.sites
    assert len([site for site in check.sites if site.name.endswith(".weight")]) == 3
    file = onnx.load(path)
    assert [v.name for v in (*file.graph.input, *file.graph.output)] == ["x", "mask", "output_logits"]
    codes = {t.name: t for t in file.graph.initializer if "_weight_codes" in t.name}
    assert len(codes) == 3
    assert {onnx.TensorProto.DataType.Name(t.data_type) for t in codes.values()} == {kind}
    assert sum(n.op_type == "QuantizeLinear" for n in file.graph.node) == 4


def test_a_file_with_other_outputs_is_one_of_another_model(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 6, 6)
    prepared = qat.prepare(Optional().eval(), "w8a8", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    path = tmp_path / "model.onnx"
    qat.export_onnx(integer, x, path)
    file = onnx.load(path)
    for outputs in ([file.graph.output[0]] * 2, [onnx.ValueInfoProto(name=file.graph.node[0].output[0])]):
        changed = onnx.ModelProto()
        changed.CopyFrom(file)
        del changed.graph.output[:]
        changed.graph.output.extend(outputs)
        if len(outputs) == 2:  # a second result of the same values
            changed.graph.node.append(onnx.helper.make_node("Identity", [outputs[0].name], ["again"]))
            changed.graph.output[1].name = "again"
        onnx.save(changed, path)
        found = qat.verify(path, integer, [x])
        assert not found.exact
        assert "was not run" in found.failure(path)
        assert "outputs have other names, types or shapes" in found.failure(path)


class OfPair(nn.Module):
    """Takes a pair of tensors, and returns a score for each pixel and class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.conv(pair[0] - pair[1])


def test_samples_are_counted_in_a_pair_and_decisions_for_each_pixel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair = torch.randn(16, 3, 6, 6), torch.randn(16, 3, 6, 6)
    prepared = qat.prepare(OfPair().eval(), qat.load_policy("w8a8", first_last_bits=None), (pair,))
    qat.calibrate(prepared, [(pair,)])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, (pair,), tmp_path / "m.onnx")
    check = qat.verify(tmp_path / "m.onnx", integer, [(pair,)])
    assert (check.exact, check.samples, check.top1_agreement) == (True, 16, 1.0)


class TwoNames(nn.Module):
    """Modules with two names, called in two spellings."""

    def __init__(self) -> None:
        super().__init__()
        block, recurrent = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.GRU(8, 8, batch_first=True)
        up = nn.ConvTranspose1d(6, 6, 3, stride=2)
        self.first, self.second, self.up, self.up_again = block, block, up, up
        self.read, self.read_again = recurrent, recurrent
        self.last = self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read_again(input=self.read(self.second(input=self.first(x)))[0])[0]
        x = self.up_again(input=self.up(x, [18])[..., :8], output_size=[18])[..., :8]
        return self.head(input=self.last(x))


def test_a_module_with_two_names_has_one_weight_under_both(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 8)
    prepared = qat.prepare(TwoNames().eval(), "w2a8", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    torch.testing.assert_close(integer(x), prepared(x), atol=1e-5, rtol=1e-5)
    qat.export_onnx(integer, x, tmp_path / "m.onnx")
    check = qat.verify(tmp_path / "m.onnx", integer, [x], prepared)
    assert check.passed, check
    file = onnx.load(tmp_path / "m.onnx")
    assert sum(n.op_type == "QuantizeLinear" for n in file.graph.node) == 6  # one for each call of a layer


def test_a_network_that_is_one_recurrent_layer_is_converted() -> None:
    x = torch.randn(2, 6, 8)
    prepared = qat.prepare(nn.LSTM(8, 8, batch_first=True).eval(), "w8a8", x)
    qat.calibrate(prepared, [x])
    torch.testing.assert_close(qat.convert(prepared)(x)[0], prepared(x)[0])


def test_control_flow_that_depends_on_values_is_refused(tmp_path: Path) -> None:
    prepared = qat.prepare(Choosing(), "w8a8")
    qat.calibrate(prepared, [torch.rand(4, 4)])
    with pytest.raises(
        ValueError, match=r"Choosing cannot be exported: it has no graph, and torch.export cannot follow"
    ):
        qat.export_onnx(qat.convert(prepared), torch.rand(2, 4), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


class Branching(Choosing):
    """Chooses in a way that torch.export can follow."""

    def forward(self, x: Tensor) -> Tensor:
        chosen: Tensor = torch.cond(x.sum() > 0, torch.neg, torch.sin, (self.linear(x),))
        return chosen


def test_branches_run_in_torch_and_are_named_when_a_file_is_asked_for(tmp_path: Path) -> None:
    x = torch.rand(4, 4)
    prepared = qat.prepare(Branching(), "w8a8", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    with torch.no_grad():
        assert torch.equal(integer(x), prepared.eval()(x))
    with pytest.raises(ValueError, match=r"its forward chooses what it computes \(torch.cond, a loop\), which is If"):
        qat.export_onnx(integer, x, tmp_path / "m.onnx")


class CountsCalls(nn.Module):
    """Has other state after each call, in evaluation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.b(torch.relu(self.a(x)))


def test_a_model_that_counts_its_calls_is_still_the_one_that_was_written(tmp_path) -> None:
    x = torch.randn(8, 6)
    prepared = qat.prepare(CountsCalls().eval(), "w8a8", (x,))
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, (x,), tmp_path / "model.onnx")
    integer(x)
    assert qat.verify(tmp_path / "model.onnx", integer, [x], prepared).passed


class WithLoss(nn.Module):
    """As Wav2Vec2ForCTC: forward looks at the labels, and takes options that it does not name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, labels: Tensor | None = None, **options: object
    ) -> dict[str, Tensor]:
        logits = self.head(self.linear(x).relu())
        if labels is not None and labels.max() >= 3:
            raise ValueError("a label is no class")
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_labels_in_the_batches_of_a_verification_are_ignored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = {"labels": torch.arange(16) % 3, "x": torch.randn(16, 4)}
    prepared = qat.prepare(WithLoss().eval(), "w8a8", batch)
    qat.calibrate(prepared, [batch])
    path, integer = tmp_path / "m.onnx", qat.convert(prepared)
    qat.export_onnx(integer, batch, path)
    check = qat.verify(path, integer, [batch], prepared)
    assert check.passed, check
    assert [v.name for v in onnx.load(path).graph.output] == ["output_logits"]


class Reading(nn.Module):
    """Reads the type, the numbers and the options of its layers, as networks of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x.to(self.conv.weight.dtype)).mean((2, 3)) / self.conv.kernel_size[0]
        h = self.linear(h) + F.linear(h, self.linear.weight)
        return h.reshape(-1, self.linear.out_features)


def test_what_forward_reads_of_a_layer_is_there_when_its_weight_is_codes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 6, 6)
    prepared = qat.prepare(Reading().eval(), "w8", x)
    qat.calibrate(prepared, [x])
    path, integer = tmp_path / "m.onnx", qat.convert(prepared)
    with torch.no_grad():
        weight = prepared.linear.weight_quantizer(prepared.linear.weight)
        h = prepared.conv(x).mean((2, 3)) / 3
        torch.testing.assert_close(integer(x), prepared.linear(h) + F.linear(h, weight))
    assert integer.conv.state_dict()["weight"].dtype == torch.int8
    qat.export_onnx(integer, x, path)
    check = qat.verify(path, integer, [x])
    assert check.passed, check
    np.testing.assert_allclose(OnnxRuntimeNetwork(path)(x).numpy(), integer(x).detach().numpy(), rtol=1e-4, atol=1e-5)
