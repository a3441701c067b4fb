"""Graphs of torch.export after the model has moved; recurrent layers inside them; layers of their own kind without a graph."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.nn import quantized_weights


class Masked(nn.Module):
    """Makes a position, a mask in the dtype of the model and an upper bound itself; **options keep torch.fx away."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor | None = None) -> Tensor:
        assert x is not None
        steps = torch.arange(x.shape[1], device=x.device)
        mask = torch.full((x.shape[1], x.shape[1]), -1.0, device=x.device, dtype=self.fc.weight.dtype).triu(1)
        weight = (steps > 0).to(self.fc.weight.dtype)[:, None]
        return self.out(mask @ (self.fc(x) * weight))


X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


def test_constants_of_the_graph_follow_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Masked().eval()
    prepared = qat.prepare(model, "w8a8", X)
    with pytest.warns(UserWarning, match="45% matmul"):  # the mask is not an activation
        assert "torch.export" in qat.inspect(prepared).capture
    qat.calibrate(prepared, [X])
    for dtype in (torch.float64, torch.bfloat16):
        moved = qat.prepare(model, "w8a8", X).to(dtype)
        with qat.mode(moved, qat.Mode.OFF):
            found = moved.eval()(X.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), model(X), atol=0.05, rtol=0.05)
    with qat.mode(abroad := qat.prepare(model, "w8a8", X).to("meta"), qat.Mode.OFF):
        assert abroad(X.to("meta")).device.type == "meta"
    integer = qat.convert(prepared)
    qat.export_onnx(integer, X, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [X], prepared).exact


class Recurrent(nn.Module):
    """An LSTM of two layers, a GRU and a cell, in a forward that torch.fx does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.gru, self.cell, self.fc = nn.GRU(12, 5, batch_first=True), nn.LSTMCell(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor | None = None) -> Tensor:
        assert x is not None
        x, (h, c) = self.lstm(x)
        x, last = self.gru(x)
        h, c = self.cell(x[:, -1] + last[0] + h.mean() + c.mean())
        return self.fc(h + c)


def test_recurrent_layers_in_a_graph_of_torch_export_keep_their_weights() -> None:
    torch.manual_seed(0)
    model = Recurrent().eval()
    prepared = qat.prepare(model, "w4", X)
    assert "torch.export" in qat.inspect(prepared).capture
    share = qat.inspect(prepared).share
    assert share is not None
    assert share.weights == 1.0
    qat.calibrate(prepared, [X])
    assert all(quantized_weights(m) for m in (prepared.lstm, prepared.gru, prepared.cell, prepared.fc))
    assert not torch.equal(prepared.eval()(X), model(X))
    integer = qat.convert(prepared)
    torch.testing.assert_close(integer(X), prepared(X), atol=1e-5, rtol=1e-5)


class PadsItself(nn.Conv2d):
    """A convolution that pads on its own, after a branch on values."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1)) if x.shape[0] else x
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Scales(nn.Linear):
    """A linear layer with more in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) * 2


class Branching(nn.Module):
    """Depends on values, so that nothing captures it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.fc = nn.Embedding(7, 4), PadsItself(4, 4, 3), Scales(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids).permute(0, 3, 1, 2)
        x = self.conv(x) if float(x.detach().sum()) > -1e9 else x
        return self.fc(x.mean((2, 3)))


def test_layer_by_layer_quantizes_subclasses_with_a_forward_of_their_own_and_embeddings() -> None:
    torch.manual_seed(0)
    model, ids = Branching().eval(), torch.randint(7, (6, 5, 5))
    prepared = qat.prepare(model, "w8a8")
    qat.calibrate(prepared, [ids])
    with pytest.warns(UserWarning, match="only 0% of the multiply-adds"):
        lines = qat.inspect(prepared).lines
    table = {line.name: (line.weight[:4], line.activation[:4]) for line in lines}
    assert table == {"table": ("int8", ""), "conv.weight": ("int8", "int8"), "fc.weight": ("int8", "int8")}
    found = prepared(ids)
    assert not torch.equal(found, model(ids))
    torch.testing.assert_close(found, model(ids), atol=0.05, rtol=0.1)
    conv = prepared.conv  # rounded input, rounded weight, its own forward
    x = conv.input_quantizer(prepared.table(ids).permute(0, 3, 1, 2))
    weight = conv.weight_quantizers["weight"](conv.weight)
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, conv.bias)
    assert torch.equal(conv(prepared.table(ids).permute(0, 3, 1, 2)), expected)
    torch.testing.assert_close(qat.convert(prepared)(ids), found, atol=1e-5, rtol=1e-5)


def test_a_group_size_that_does_not_divide_a_recurrent_matrix_is_said() -> None:
    rules = {"all": {"match": "*", "weight": {"bits": 4, "granularity": "per_group", "group_size": 4}}}
    model = nn.Sequential(nn.LSTM(8, 6))
    with pytest.warns(UserWarning, match="0.weight_hh_l0 has one scale per row: its rows of 6 are not groups of 4"):
        prepared = qat.prepare(model, qat.load_policy({"rules": rules}))
    assert any("0.weight_hh_l0" in note for note in qat.inspect(prepared).notes)
    assert {line.name: line.weight for line in qat.inspect(prepared).lines} == {
        "0.weight_ih_l0": "int4 per group of 4, LSQ",
        "0.weight_hh_l0": "int4 per channel, LSQ",
    }


@pytest.mark.parametrize("policy", ["w8_dynamic", "w8_dynamic_per_token"])
def test_dynamic_sites_have_decibels(policy: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(8, 4)
    prepared = qat.prepare(model, policy, x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    found = qat.verify(tmp_path / "model.onnx", integer, [x], prepared)
    assert all(site.sqnr_db is not None and site.sqnr_db > 100 for site in found.sites)
