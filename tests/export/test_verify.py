"""What `qat.verify` sees: changes of a file, differences that spread, an integer model that is not what was trained."""

from __future__ import annotations

import copy
import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.export.onnx.stored import stored_differences
from qat.export.verification import DamagedFileError, SiteAgreement, Verification
from qat.models import ResNetCifar
from tests.networks import build

SIZE = (3, 8, 8)


class Mixed(nn.Module):
    """Convolution, residual add, concatenation, table, a float subgraph, weights in float, a clipped ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(3, 1, 1, divisor_override=8)
        self.conv3, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn(self.conv1(x)))
        x = self.act(x + self.conv2(x))
        x = torch.cat([x, F.max_pool2d(x, 3, 1, 1)], 1)
        return self.head(F.relu(self.conv3(x)).mean((2, 3)))


def batch(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, *SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(prepared network, integer model, its file); copy what you change."""
    prepared = qat.prepare(build(Mixed), "w4a4", batch(2))
    qat.calibrate(prepared, [batch(32)])
    integer = qat.convert(prepared)
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    qat.export_onnx(integer, batch(2), path)
    return prepared, integer, path


def tampered(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Copies, each with one small change: every constant in four ways, attributes, connections, versions."""
    for i, tensor in enumerate(model.graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        for how, changed in changed_arrays(array):
            other = copy.deepcopy(model)
            other.graph.initializer[i].CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
            yield f"{tensor.name} {how}", other
    for i, node in enumerate(model.graph.node):
        other = copy.deepcopy(model)
        if node.attribute:
            attribute = other.graph.node[i].attribute[0]
            attribute.i, attribute.f = attribute.i + 1, attribute.f + 1
            attribute.ints[:] = [1 + x for x in attribute.ints]
            yield f"{node.output[0]} {attribute.name}", other
        elif len(node.input) > 1:
            other.graph.node[i].input[:] = [node.input[1], node.input[0], *node.input[2:]]
            yield f"{node.output[0]} inputs swapped", other
    for change in VERSIONS:
        other = copy.deepcopy(model)
        change(other)
        yield "versions", other


def changed_arrays(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    first = array.reshape(-1)[:1]
    if array.dtype == np.float32:
        values = {"one ulp": np.nextafter(first, np.inf), "x 1.01": first * np.float32(1.01), "x 1000": first * 1000}
    else:
        values = {"one code": (first.astype(np.int64) ^ 1).astype(array.dtype)}
    for how, value in values.items():
        changed = array.copy()
        changed.reshape(-1)[:1] = value
        if changed.tobytes() != array.tobytes():
            yield how, changed


VERSIONS: list[Callable[[onnx.ModelProto], object]] = [
    lambda m: setattr(m.opset_import[0], "version", 20),
    lambda m: setattr(m.graph.output[0], "name", "other"),
    lambda m: m.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1), "unread")),
]


def test_no_change_of_a_file_goes_unseen(written) -> None:
    _, _, path = written
    model = onnx.load(path)
    assert stored_differences(model, copy.deepcopy(model)) == []
    attempts = list(tampered(model))
    assert len(attempts) > 60
    unseen = [what for what, other in attempts if not stored_differences(model, other)]
    assert unseen == []
    named = {what: stored_differences(model, other)[0].name for what, other in attempts if " " in what}
    assert [what for what, name in named.items() if name != what.split(" ")[0]] == []


def test_names_inside_a_file_do_not_matter(written) -> None:
    model = onnx.load(written[2])
    other = copy.deepcopy(model)
    inner = {t.name for t in model.graph.initializer} | {n for node in model.graph.node for n in node.output}
    inner -= {o.name for o in model.graph.output}
    for tensor in other.graph.initializer:
        tensor.name = f"{tensor.name}/renamed"
    for node in other.graph.node:
        node.input[:] = [f"{n}/renamed" if n in inner else n for n in node.input]
        node.output[:] = [f"{n}/renamed" if n in inner else n for n in node.output]
    assert stored_differences(model, other) == []


def test_zeros_as_data_hide_no_changed_bias(written, tmp_path) -> None:
    _, integer, path = written
    model = onnx.load(path)
    bias = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT32 and len(t.dims) == 1)
    scale_of_bias = next(n for n in model.graph.node if n.input[0] == bias.name).input[1]
    tensor = next(t for t in model.graph.initializer if t.name == scale_of_bias)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(model, tmp_path / "tampered.onnx")
    zeros = [torch.zeros(4, *SIZE)]
    result = qat.verify(tmp_path / "tampered.onnx", integer, zeros)
    assert not result.exact
    assert [d.name for d in result.stored] == [scale_of_bias]
    untouched = qat.verify(path, integer, zeros)
    assert untouched.exact
    assert "All inputs are zero" in str(untouched)


def test_a_difference_counts_where_it_begins_and_not_where_it_spreads(written) -> None:
    _, integer, path = written
    other = copy.deepcopy(integer)
    other.conv1.bias += 40
    result = qat.verify(path, other, [batch(16)])
    sites = {s.name: s for s in result.sites}
    assert [name for name, s in sites.items() if s.code_mismatches] == ["conv1"]
    assert sites["output"].propagated > 0
    assert result.propagated == sum(s.propagated for s in result.sites) > sites["conv1"].code_mismatches
    assert sites["conv1"].propagated == sites["x_input"].propagated == 0
    assert result.code_mismatches == sites["conv1"].code_mismatches + other.conv1.bias.numel()
    assert not result.exact


class Nudged(nn.AvgPool2d):
    """Another order of additions, exaggerated."""

    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


@pytest.mark.parametrize(("factor", "ties"), [(1 + 1e-4, True), (1 + 3e-3, False)])
def test_few_ties_behind_a_float_operation_are_told_apart_from_faults(written, factor: float, ties: bool) -> None:
    _, integer, path = written
    other = copy.deepcopy(integer)
    other.act = Nudged(3, 1, 1, divisor_override=8)
    other.act.factor = factor
    result = qat.verify(path, other, [batch(64)])
    site = next(s for s in result.sites if s.name == "act_")
    assert site.max_step_difference == 1
    assert [found.name for found in result.stored] == ["metadata entry qat.model_sha256"]  # it is another model
    assert (site.float_ties > 0) == ties
    assert (site.code_mismatches > 0) != ties
    assert all(s.code_mismatches == s.float_ties == 0 for s in result.sites if s is not site)


def test_an_integer_model_that_lost_an_activation_raises_the_alarm(written) -> None:
    prepared, integer, path = written
    result = qat.verify(path, integer, [batch(16)], prepared=prepared)
    assert result.exact
    assert result.alarm == ""
    assert result.prediction_changes == 0
    compared = {s.name: s.sqnr_db for s in result.sites if s.sqnr_db is not None}
    assert {"x_input", "conv1", "conv1_to_4_bits", "conv2", "act_", "conv3", "output"} <= set(compared)
    assert all(db > 30 for db in compared.values())
    trained = copy.deepcopy(prepared)
    with torch.no_grad():
        trained.conv2.weight.neg_()
    with pytest.warns(UserWarning, match=r"does not compute what was trained: its conv2 is -?\d"):
        result = qat.verify(path, integer, [batch(16)], prepared=trained)
    assert "conv2" in result.alarm


def test_codes_on_the_other_side_of_a_rounding_edge_are_no_alarm(tmp_path) -> None:
    """With 2 bits a few of them change so much behind them that the sites are far apart, though each segment is right."""
    network = build(partial(ResNetCifar, 14))
    prepared = qat.prepare(network, "w2a2")
    qat.calibrate(prepared, [batch(64)])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, batch(2), tmp_path / "model.onnx")
    result = qat.verify(tmp_path / "model.onnx", integer, [batch(32)], prepared=prepared)
    assert min(s.sqnr_db for s in result.sites if s.sqnr_db is not None) < 15
    assert result.alarm == ""


@pytest.mark.parametrize("tolerance", [0.0, 1e-5])
def test_equal_infinities_agree_and_nan_is_a_fault_of_its_own(tolerance: float) -> None:
    site = SiteAgreement("output", (5,))
    ours = Tensor([1.0, torch.inf, -torch.inf, torch.inf, torch.nan])
    theirs = Tensor([1.0, torch.inf, -torch.inf, -torch.inf, torch.nan])
    site.compare(ours, theirs, tolerance)
    assert (site.code_mismatches, site.not_a_number) == (1, 1)
    fine = SiteAgreement("x", (3,))
    fine.compare(ours[:3], theirs[:3], tolerance)
    assert Verification(sites=[fine], codes_compared=3).exact
    fine.compare(ours[4:], theirs[4:], tolerance)
    assert not Verification(sites=[fine], codes_compared=4).exact


def test_a_file_carries_its_proof(written, tmp_path) -> None:
    prepared, integer, original = written
    path = tmp_path / "model.onnx"
    qat.export_onnx(copy.deepcopy(integer), batch(2), path)
    assert path.read_bytes() == original.read_bytes(), "no time stamps"
    assert "recorded in it: qat.verify(path, integer, batches, record=True) records one." in str(qat.verify(path))
    qat.verify(path, integer, [batch(4)], prepared=prepared, record=True)
    proof = qat.verify(path)
    assert proof.intact
    assert proof.verification["exact"]
    assert "over 4 samples" in str(proof)
    assert qat.verify(path, integer, [batch(4)]).exact
    model = onnx.load(path)
    model.graph.node[0].name = "renamed"
    onnx.save(model, path)
    assert not qat.verify(path).intact
    forged = onnx.load(original)
    next(p for p in forged.metadata_props if p.key == "qat.policy_sha256").value = "0"
    onnx.save(forged, path)
    assert "was changed" in str(qat.verify(path))
    del forged.metadata_props[:]
    onnx.save(forged, path)
    assert "carries no hash" in str(qat.verify(path))


@pytest.mark.parametrize("junk", [b"\xfa\x01\x03abc", b"\x08\x0a"], ids=["an unknown field", "a known field again"])
def test_fields_behind_the_end_of_an_onnx_file_are_noticed(junk: bytes, written, tmp_path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(written[2].read_bytes())
    assert qat.verify(path).intact
    path.write_bytes(written[2].read_bytes() + junk)
    assert not qat.verify(path).intact


def test_the_format_of_a_file_for_devices_tells_damage_without_its_runtime(tmp_path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("model/data", bytes(100))
    flat = struct.pack("<I4s", 40, b"TFL3") + bytes(28) + struct.pack("<HH", 4, 4) + struct.pack("<i", 4)
    program = struct.pack("<I4s4sIQQQ", 52, b"ET12", b"eh00", 32, 56, 64, 8) + bytes(8)
    program += struct.pack("<HHi", 4, 4, 4) + bytes(16)
    for suffix, whole, at in ((".pt2", archive.getvalue(), 60), (".tflite", flat, 4), (".pte", program, 4)):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(whole)
        assert not qat.verify(path).recorded
        for damaged in (whole[: len(whole) // 2], whole[:-9], b"", whole[:at] + b"X" + whole[at + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(DamagedFileError, match=f"model{suffix} is not a {suffix} file, or is damaged"):
                qat.verify(path)


CHANGES = {
    "one weight": lambda net: net.head.weight[0, 0].mul_(0.9),
    "a bias": lambda net: net.conv3.bias[1].add_(0.01),
    "a statistic": lambda net: net.bn.running_mean[0].add_(0.01),
    "a range": lambda net: net.get_submodule("conv1.weight_quantizer").scale.mul_(1.001),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_an_integer_model_of_an_earlier_state_of_the_network_is_seen(change, written):
    prepared, integer, path = written
    later = copy.deepcopy(prepared)
    with torch.no_grad():
        change(later)
    with pytest.warns(match="was not converted from the prepared network as it is now: its .* differs"):
        result = qat.verify(path, integer, [batch(8)], later)
    assert result.exact
    assert not result.passed
    assert qat.verify(path, integer, [batch(8)], copy.deepcopy(prepared).train()).passed
    assert qat.verify(path, copy.deepcopy(integer), [batch(8)], prepared).passed
