"""The coverage command: what it counts is compared with numbers worked out by hand; what is wrong must be seen."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import qat
from benchmarks.coverage import agreement, file_contents, judge, table
from benchmarks.coverage.case import Case, images
from benchmarks.coverage.measure import BATCH, measure
from benchmarks.coverage.networks import cases
from benchmarks.coverage.segments import with_moved_codes
from benchmarks.coverage.worker import measure_in_process


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


SMALL = Case("mine/small", small_network, images(8))


def test_a_right_network():
    record = measure(SMALL)
    assert judge.faults(record) == []
    assert record["captured"] == "torch.fx"
    assert record["multiply_adds"] == {
        "layers": BATCH * (4 * 8 * 8 * 27 + 256 * 10),
        "layers_in_integers": BATCH * (4 * 8 * 8 * 27 + 256 * 10),
        "products": 0,
        "products_in_integers": 0,
    }
    assert record["integer_share"] == record["weights_in_integers"] == 1.0
    assert record["gradients"] == {"wanted": 6, "missing": 0, "not_finite": 0}
    assert record["running"] is None


@pytest.mark.parametrize("alarm", ["", "far from the prepared network"])
def test_a_wrong_file_is_seen_although_verification_finds_nothing(alarm, monkeypatch):
    """An integer model that lost an operation, with a file that agrees with it."""
    convert, verify = qat.convert, qat.verify

    def losing(prepared: nn.Module) -> nn.Module:
        broken = copy.deepcopy(prepared)
        with torch.no_grad():
            broken.get_submodule("1").bias += 3
        return convert(broken)

    def saying(*arguments: Any) -> qat.Verification:
        return dataclasses.replace(verify(*arguments), alarm=alarm)

    monkeypatch.setattr(qat, "convert", losing)
    monkeypatch.setattr(qat, "verify", saying)
    record = measure(SMALL)
    assert record["local_mismatches"] == 0
    assert judge.silently_wrong(record) is (not alarm)
    assert not judge.right(record)
    assert "the integer model's 0 is" in judge.faults(record)[0]


def test_a_stage_that_fails_is_recorded(monkeypatch):
    def refuse(*arguments: object) -> None:
        raise ValueError("a | b\nmore")

    monkeypatch.setattr(qat, "export_onnx", refuse)
    record = measure(SMALL)
    assert judge.faults(record) == ["export: ValueError: a | b"]
    assert judge.stage_reached(record) == "export"
    assert not judge.silently_wrong(record)


def test_a_network_that_amplifies_noise_is_not_called_wrong():
    """Far from the prepared network, but no further than that is from itself, and every segment is right."""
    record = {
        "failures": {},
        "exported": True,
        "off_equal": True,
        "worst_segment": "x",
        "segment_db": 45.0,
        "integer_db": 8.0,
        "file_db": 8.0,
    }
    assert judge.right({**record, "sensitivity_db": 7.0})
    assert not judge.right({**record, "sensitivity_db": 15.0})
    assert judge.right({**record, "sensitivity_db": 15.0, "moved_codes_db": 7.0})
    assert not judge.right(record)
    assert not judge.right({**record, "sensitivity_db": 7.0, "segment_db": 9.0})
    assert not judge.right({**record, "sensitivity_db": 7.0, "off_equal": False, "off_db": 60.0})
    assert judge.right({**record, "sensitivity_db": 7.0, "off_equal": False, "off_db": 140.0})
    assert judge.falsely_alarmed({**record, "sensitivity_db": 7.0, "alarm": "far"})


def test_products_of_activations_count_apart_from_layers(tmp_path):
    """x (N, 2, 3) times a weight (3, 5), then (N, 2, 5) times its own transpose: all in float."""
    weight = numpy_helper.from_array(torch.randn(3, 5).numpy(), "weight")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
        helper.make_node("Transpose", ["y"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["y", "t"], ["z"]),
    ]
    ends = (("x", ["batch", 2, 3]), ("z", ["batch", 2, 2]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], [weight])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    count = file_contents.multiply_adds(path, [torch.randn(4, 2, 3)])
    assert vars(count) == {
        "layers": 4 * 2 * 3 * 5,
        "layers_in_integers": 0,
        "products": 4 * 2 * 5 * 2,
        "products_in_integers": 0,
    }
    assert file_contents.elements_of_codes(path) == 0


def test_decibels():
    x = torch.tensor([3.0, 4.0])
    assert agreement.decibels([x], [x + torch.tensor([0.0, 0.5])]) == pytest.approx(20.0)
    assert agreement.decibels([x, x], [x, -x]) == pytest.approx(-6.02)
    assert agreement.decibels([x], [x]) == agreement.HIGHEST
    assert agreement.decibels([x], [x[:1]]) == -agreement.HIGHEST
    masked = torch.tensor([3.0, float("-inf")])
    assert agreement.decibels([masked], [masked]) == agreement.HIGHEST
    assert agreement.decibels([masked], [x]) == -agreement.HIGHEST


def test_names_are_unique_and_sources_known():
    assert len({case.source for case in cases().values()}) == 8
    assert len(cases()) > 175


def test_table():
    good = {
        "failures": {}, "off_equal": True, "exported": True, "captured": "torch.fx", "segment_db": 41.6, "codes": 1000,
        "local_mismatches": 0,
        "integer_db": 41.6, "file_db": 41.2, "other_batch_db": 40.0, "integer_share": 0.95, "weights_in_integers": 1.0,
        "file_predictions": 1.0, "seconds": {"prepare": 1.0, "contents": 2.0}, "gradients": {}, "commit": "0123456789ab",
    }  # fmt: skip
    silent = {**good, "integer_db": -3.0, "integer_share": None}
    failing = {"failures": {"prepare": "TypeError: a | b"}, "seconds": {"build": 1.0, "prepare": 0.0}, "commit": None}
    networks = {"timm/good": good, "timm/silent": silent, "torchvision/failing": failing}
    machine = {"cpu": "A CPU", "versions": {"torch": "9.9"}}
    text = table.page(
        {
            "command": "c",
            "environment": machine,
            "limits": {"threads": 1},
            "packages": {"timm": "1.0"},
            "networks": networks,
        }
    )
    assert "| timm | 2 | 2 (100%) | 2 (100%) | 2 (100%) | 2 (100%) | 2 (100%) | 1 (50%) | 1 (50%) | 1 | 0 |" in text
    assert "| torchvision/failing | prepare | prepare: TypeError: a \\| b |" in text
    assert "| timm/silent | contents | the integer model is -3.0 dB from the prepared network |" in text
    assert "| timm/good | torch.fx | yes | yes | 95% | 100% | 0 of 1,000 | 42 | 41 |  | 100% | 3 |" in text
    assert text.endswith("`c`; A CPU, 1 thread; torch 9.9, timm 1.0; commit 0123456789, unknown.")
    assert table.page(None) == "not measured"


@pytest.mark.slow
def test_a_process_that_takes_too_long_is_stopped_and_says_where():
    record = measure_in_process("hand-written/300 layers", seconds=1, memory=8, threads=1)
    assert list(record["failures"].values()) == ["stopped after 1 seconds"]
    assert not judge.right(record)


def test_codes_that_rounding_moves_are_moved_at_random():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.GELU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(4, 3, 10, 10)
    prepared = qat.prepare(network, "w8a8", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared.eval())
    found = with_moved_codes(prepared, integer, (x,))
    assert found is not None
    assert 30 < found < agreement.HIGHEST
    for site in prepared.sites.children():
        assert not site._forward_hooks
