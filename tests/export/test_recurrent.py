"""Recurrent layers in the file: one operation for each, however long the sequences are."""

from collections import Counter
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

import qat
from qat.export.onnx.equivalents import WritableFunctions
from qat.export.onnx.graph_writer import OPSET
from qat.export.onnx.runtime import session
from qat.export.onnx.torch_exporter import export_with_torch


class AllKinds(nn.Module):
    """All results of all layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.GRU(3, 4, bidirectional=True),
                nn.RNN(3, 6),
                nn.RNN(3, 6, nonlinearity="relu", bidirectional=True),
            ]
        )
        self.batch_first = nn.LSTM(3, 5, num_layers=2, bidirectional=True, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        results = [layer(x) for layer in self.layers] + [self.batch_first(x.transpose(0, 1))]
        return [t for out, state in results for t in (out, *([state] if isinstance(state, Tensor) else state))]


def test_every_kind_computes_in_onnx_runtime_what_it_computes_in_torch() -> None:
    torch.manual_seed(0)
    network, free = AllKinds().eval(), torch.export.Dim.AUTO
    with WritableFunctions():
        shapes = ({0: free, 1: free},)
        file = export_with_torch(network, (torch.randn(7, 4, 3),), opset_version=OPSET, dynamic_shapes=shapes)
    kinds = Counter(node.op_type for node in file.graph.node)
    assert [kinds[k] for k in ("LSTM", "GRU", "RNN")] == [2, 1, 2]
    assert kinds.keys().isdisjoint({"Tanh", "MatMul", "Loop"})  # no step of its own
    x = torch.randn(11, 2, 3)  # neither the length nor the batch size of the example
    runtime = session(file.SerializeToString())
    found = runtime.run(None, {runtime.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = network(x)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=0.0, atol=2e-6)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn, self.last = nn.Linear(3, 8), nn.RNN(8, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rnn(self.first(x))[0][:, -1])


def test_a_long_sequence_ends_in_a_small_verified_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 150, 3)
    prepared = qat.prepare(Plain().eval(), "w8a8", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared.eval())
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert [n.op_type for n in nodes].count("RNN") == 1
    assert len(nodes) < 60, Counter(n.op_type for n in nodes)
    check = qat.verify(tmp_path / "model.onnx", integer, [x, torch.randn(3, 150, 3)], prepared)
    assert check.passed, check
