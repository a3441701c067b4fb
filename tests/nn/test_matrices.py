"""Weight matrices that no layer reaches. The oracle is torch's own module, on weights that numpy has rounded."""

import copy
import pickle
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import qat
from qat.nn import quantized_weights


class Recurrent(nn.Module):
    """Two recurrent layers forth and back."""

    def __init__(self, kind: Any = nn.LSTM, inputs: int = 6) -> None:
        super().__init__()
        self.rnn = kind(inputs, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class Packed(Recurrent):
    """Reads sequences of 5, 3 and 1 steps; has no graph."""

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([5, 3, 1])
        return self.head(pad_packed_sequence(self.rnn(pack_padded_sequence(x, lengths, batch_first=True))[0], True)[0])


class Others(nn.Module):
    """One of each of the other classes with matrices, in a forward without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.bilinear = nn.GRUCell(6, 8), nn.Bilinear(8, 6, 4)
        self.bag, self.attention = nn.EmbeddingBag(9, 4), nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        y = self.bilinear(self.cell(x[:, 0]), x[:, 1]) + self.bag(torch.arange(6).expand(len(x), 6))
        return self.attention(y[:, None], x[..., :4], x[..., 2:])[0]


def policy(bits: int = 4, **weight: Any) -> Any:
    return {"weight": {"observer": "MinMax", "quantizer": "Static", **weight}, "rules": {
        "all": {"match": "*", "weight": {"bits": bits}, "activation": None}}}  # fmt: skip


def rounded(network: nn.Module, highest: int = 7) -> nn.Module:
    """The float network with weights rounded row by row."""
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            w = parameter.detach().numpy().reshape(len(parameter), -1)
            scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(highest)
            parameter.data = torch.from_numpy(np.rint(w / scale) * scale).reshape(parameter.shape)
    return network


def prepared(network: nn.Module, x: Tensor, content: Any) -> nn.Module:
    result = qat.prepare(network, qat.load_policy(content))
    qat.calibrate(result, [x])
    return result


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("network", [Recurrent, Packed])
def test_recurrent_layers_compute_and_learn_as_torchs_own_on_rounded_weights(network, kind):
    torch.manual_seed(0)
    network, x = network(kind), torch.randn(3, 5, 6)
    ours, oracle = prepared(network, x, policy()), rounded(network)
    y, expected = ours(x), oracle(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, parameter in oracle.named_parameters():  # the names are the same; straight through the rounding
        weight = network.get_parameter(name)
        ends = weight.abs() >= weight.abs().amax(-1, keepdim=True) if weight.ndim > 1 else torch.zeros_like(weight) > 0
        torch.testing.assert_close(gradients[name][~ends], parameter.grad[~ends])
    torch.testing.assert_close(qat.convert(ours)(x), expected)


def test_the_other_classes_compute_as_torchs_own_on_rounded_weights():
    torch.manual_seed(0)
    network, x = Others(), torch.randn(3, 5, 6)
    ours = prepared(network, x, policy())
    torch.testing.assert_close(ours(x), rounded(network)(x))
    torch.testing.assert_close(qat.convert(ours)(x), rounded(network)(x))
    names = [line.name for line in qat.inspect(ours).lines]
    assert names == ["cell.weight_ih", "cell.weight_hh", "bilinear.weight", "bag.weight",
                     "attention.in_proj_weight", "attention.out_proj.weight"]  # fmt: skip
    with torch.no_grad():  # codes in 4 bits, one scale of 32 a row, and the biases
        matrices = [p for p in network.parameters() if p.ndim > 1]
        bits = sum(4 * p.numel() + 32 * len(p) for p in matrices) + 32 * sum(
            p.numel() for p in network.parameters() if p.ndim == 1
        )
    assert qat.integer.stored_bytes(ours) == bits // 8


def test_copies_and_pickles_after_a_forward_are_what_they_were_and_follow_their_own_weights():
    torch.manual_seed(0)
    network, x = Recurrent(), torch.randn(3, 5, 6)
    ours = prepared(network, x, policy())
    y = ours(x)
    assert isinstance(ours.rnn, nn.LSTM)
    assert network.state_dict().keys() <= ours.state_dict().keys()
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours).double().float()):
        assert torch.equal(twin(x), y)
        with torch.no_grad():
            twin.rnn.weight_hh_l1.zero_()
        assert not torch.equal(twin(x), y)
    assert torch.equal(ours(x), y)


def test_rules_match_by_name_and_type_and_groups_apply_where_they_divide():
    rules = {"lstm": {"match": "type:LSTM", "weight": {"bits": 4, "granularity": "per_group", "group_size": 4}},
             "head": {"match": "last", "weight": {"bits": 8}}}  # fmt: skip
    with pytest.warns(UserWarning, match="rnn.weight_ih_l0 has one scale per row: its rows of 6 are not groups of 4"):
        prepared = qat.prepare(Recurrent(), qat.load_policy({"rules": rules}))
    table = {line.name: line for line in qat.inspect(prepared).lines}
    assert table["rnn.weight_hh_l0"].weight == "int4 per group of 4, LSQ"
    assert table["rnn.weight_ih_l0"].weight == "int4 per channel, LSQ"  # rows of 6
    assert table["head"].weight == "int8 per channel, LSQ"
    both = qat.inspect(qat.prepare(Recurrent(), "w4a4")).lines  # the only layer is the first and the last
    assert [line.weight[:4] for line in both if line.kind == "layer"] == ["int4"] * 8 + ["int8"]


@pytest.mark.slow
def test_the_file_holds_the_codes_and_verify_sees_a_changed_one(tmp_path):
    torch.manual_seed(0)
    network, x, path = Recurrent(nn.GRU), torch.randn(3, 5, 6), tmp_path / "model.onnx"
    ours = prepared(network, x, policy())
    integer = qat.convert(ours)
    qat.export_onnx(integer, x, path)
    result = qat.verify(path, integer, [x], ours)
    assert result.exact
    assert not result.alarm
    assert len([site for site in result.sites if site.name.startswith("rnn.weight_")]) == 8
    model = onnx.load(path)
    floats = sum(np.prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert floats <= sum(2 * len(p) for p in network.parameters())  # scales, biases
    tensor = next(t for t in model.graph.initializer if t.name.startswith("rnn_weight_hh_l1_codes"))
    assert tensor.data_type == onnx.TensorProto.INT4
    tensor.raw_data = bytes(255 - byte for byte in tensor.raw_data)
    onnx.save(model, path)
    changed = {site.name: site.code_mismatches for site in qat.verify(path, integer, [x]).sites}
    assert changed["rnn.weight_hh_l1"] == network.rnn.weight_hh_l1.numel()


@pytest.mark.parametrize("put", [
    lambda module, name: prune.l1_unstructured(module, name, 0.5),
    lambda module, name: nn.utils.weight_norm(module, name),
], ids=["prune", "weight_norm"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:RNN module weights are not part")
def test_every_matrix_with_a_quantizer_is_read_and_one_that_a_hook_computes_is_said_to_stay_float(put: Any) -> None:
    torch.manual_seed(0)
    network, x = Recurrent(), torch.randn(3, 5, 6)
    put(network.rnn, "weight_hh_l1_reverse")
    put(network.rnn, "weight_ih_l0")
    prepared = qat.prepare(network.eval(), policy(), x)
    qat.calibrate(prepared, [x])
    rounded: list[Tensor] = []
    weights = quantized_weights(prepared.rnn)  # type: ignore[arg-type]
    assert [name for name, _, _ in weights if "_l0_reverse" in name] == ["weight_ih_l0_reverse", "weight_hh_l0_reverse"]
    for _, _, quantizer in weights:
        quantizer.register_forward_hook(lambda module, inputs, output: rounded.append(output))
    output = prepared(x).sum()
    assert len(rounded) == len(weights) == 6
    assert all(bool(g is not None and g.any()) for g in torch.autograd.grad(output, rounded, allow_unused=True))
    assert "weight_ih_l0" in str(qat.inspect(prepared)).partition("weights of other layers stay in float")[2]
