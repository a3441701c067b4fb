"""Public functions say in a sentence that an argument is of another kind than they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qat
from qat.sparsity.channels import remove_channels


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


X = torch.rand(2, 1, 4, 4)
OF_NETWORKS: dict[str, Callable[[Any], object]] = {
    "prepare": lambda model: qat.prepare(model, "w8a8"),
    "calibrate": lambda model: qat.calibrate(model, [X]),
    "convert": qat.convert,
    "inspect": qat.inspect,
    "inspect with data": lambda model: qat.inspect(model, "w8a8", [X]),
    "export_onnx": lambda model: qat.export_onnx(model, X, "model.onnx"),
    "save_quantized": lambda model: qat.save_quantized(model, "folder"),
    "mode": lambda model: qat.mode(model, qat.Mode.OFF).__enter__(),
    "allocate": lambda model: qat.search.allocate(model, "w4a8", [X], size=1000),
    "measure_latency": lambda model: qat.search.measure_latency(model, "w4a8", X),
    "export_float_onnx": lambda model: qat.export.export_float_onnx(model, X, "model.onnx"),
    "QuantizeStatic": lambda model: qat.export.QuantizeStatic()(model, [X], "folder"),
    "set_bits": lambda model: qat.transform.set_bits(model, 4),
    "is_prepared": qat.transform.is_prepared,
    "stored_bytes": qat.integer.stored_bytes,
    "remove_channels": lambda model: remove_channels(model, 0.5),
    "save_weights": lambda model: qat.models.save_weights(model, "weights.safetensors"),
    "load_weights": lambda model: qat.models.load_weights(model, "weights.safetensors"),
}
OF_PATHS: dict[str, Callable[[Any], object]] = {
    "load_checkpoint": qat.load_checkpoint,
    "latest_checkpoint": qat.latest_checkpoint,
    "load_quantized": qat.load_quantized,
    "save_quantized": lambda path: qat.save_quantized(small(), path),
    "verify": qat.verify,
    "export_onnx": lambda path: qat.export_onnx(small(), X, path),
    "ExportONNX": qat.callbacks.ExportONNX,
    "export_float_onnx": lambda path: qat.export.export_float_onnx(small(), X, path),
    "OnnxRuntimeNetwork": qat.export.OnnxRuntimeNetwork,
    "operators": qat.export.operators,
    "LatencyTable.read": qat.search.LatencyTable.read,
    "Allocation.load": qat.search.Allocation.load,
    "save_weights": lambda path: qat.models.save_weights(small(), path),
    "load_weights": lambda path: qat.models.load_weights(small(), path),
}
OF_BATCHES: dict[str, Callable[[Any], object]] = {
    "calibrate": lambda batches: qat.calibrate(qat.prepare(small(), "w8a8", X), batches),
    "inspect": lambda batches: qat.inspect(small(), "w8a8", batches),
    "allocate": lambda batches: qat.search.allocate(small(), "w4a8", batches, size=1000),
    "QuantizeStatic": lambda batches: qat.export.QuantizeStatic()(small(), batches, "folder"),
}
OF_CLASSES: dict[str, Callable[[Any], object]] = {
    "load_quantized": lambda allow: qat.load_quantized("folder", allow=allow),
    "load_checkpoint": lambda allow: qat.load_checkpoint("best.ckpt", allow=allow),
}


@pytest.mark.parametrize("value", [None, 3, "resnet18", X], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", OF_NETWORKS)
def test_what_is_no_network_is_called_that(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"^model=.{1,60} is not a torch.nn.Module: write the network itself"):
        OF_NETWORKS[name](value)


@pytest.mark.parametrize("value", [None, 3, X], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", OF_PATHS)
def test_what_is_no_path_is_called_that(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"^(path|folder)=.{1,60} is not a path: write a string or a pathlib.Path"):
        OF_PATHS[name](value)


@pytest.mark.parametrize("value", [3, "images", X], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", OF_BATCHES)
def test_what_is_no_list_of_batches_is_called_that(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"^batches.{1,60}: write (a list of batches, )?\[tensor"):
        OF_BATCHES[name](value)


@pytest.mark.parametrize("value", [3, "MyQuantizer", nn.Linear, ["MyQuantizer"]], ids=str)
@pytest.mark.parametrize("name", OF_CLASSES)
def test_what_is_no_list_of_classes_is_called_that(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"^allow=.{1,60} is not a list of classes: write allow=\[MyClass\]"):
        OF_CLASSES[name](value)


def test_a_file_is_run_with_as_many_tensors_as_it_has_inputs(tmp_path: Path) -> None:
    qat.export.export_float_onnx(small(), X, tmp_path / "m.onnx")
    network = qat.export.OnnxRuntimeNetwork(tmp_path / "m.onnx")
    assert network(X).shape == (2, 3)
    for arguments, number in (((), 0), ((X, X), 2), ((X.numpy(),), 0)):
        with pytest.raises(ValueError, match=rf"the file takes 1 tensor \(\w+\), not {number}: write the arguments"):
            network(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("m.onnx", X), "paths='m.onnx' is not possible: write name -> file"),
        (({}, X), "paths={} is not possible: write name -> file"),
        (({"a": "m.onnx"}, X, (0,)), r"batch_sizes=\(0,\) is not possible: write whole numbers"),
        (({"a": "m.onnx"}, X, 32), "batch_sizes=32 is not possible: write whole numbers"),
        (({"a": "m.onnx"}, X, ()), r"batch_sizes=\(\) is not possible: write whole numbers"),
        (({"a": "m.onnx"}, X, (1,), "many"), "rounds='many' is not possible: write a whole number"),
        (({"a": "m.onnx"}, X, (1,), 1, 0.5), "threads=0.5 is not possible: write a whole number"),
    ],
    ids=["paths", "no paths", "samples", "a number", "no samples", "rounds", "threads"],
)
def test_what_cannot_be_timed_is_called_that(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qat.export.latency(*arguments)


@pytest.mark.parametrize(
    "function",
    [
        lambda loss: qat.inspect(small(), "w8a8", [X], loss=loss),
        lambda loss: qat.search.allocate(small(), "w4a8", [X], mean_bits=7, keep=(), loss=loss),
    ],
    ids=["inspect", "allocate"],
)
def test_what_is_no_loss_is_called_that(function: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match=r"^loss='mse' is not possible: write a function of \(outputs, batch\)"):
        function("mse")
    with pytest.raises(ValueError, match=r"^loss returned a NoneType: write a function of \(outputs, batch\)"):
        function(lambda outputs, batch: None)
    with pytest.raises(ValueError, match=r"^loss returned a tensor of shape \(2, 3\): write .* loss.mean\(\)"):
        function(lambda outputs, batch: outputs)


SPEC = qat.QuantSpec(qat.Grid(4))
WHOLE: dict[str, Callable[[Any], object]] = {
    "candidates of MSE": lambda value: qat.observers.MSE(SPEC, candidates=value),
    "candidates of KL": lambda value: qat.observers.KL(SPEC, candidates=value),
    "intervals": lambda value: qat.quantizers.LCQ(SPEC, (2, 2), intervals=value),
    "group_size": qat.PerGroup,
    "group_size of a rule": lambda value: qat.TensorRule(4, "per_group", 0 if value is None else value),
    "bits": qat.Grid,
    "candidates of HessianMSE": qat.ptq.HessianMSE,
    "rounds": qat.ptq.CrossLayerEqualization,
    "iterations": qat.ptq.AdaRound,
    "batch_size": lambda value: qat.ptq.BRECQ(batch_size=value),
    "multiple": lambda value: remove_channels(small(), 0.5, multiple=value),
    "num_classes": lambda value: qat.models.LeNet5(value),
    "in_channels": lambda value: qat.models.LeNet5(10, value),
    "width": lambda value: qat.models.ResNetCifar(8, width=value),
    "classes of torchvision": lambda value: qat.models.torchvision_model("resnet18", value),
}
NUMBERS: dict[str, Callable[[Any], object]] = {
    "percentile": lambda value: qat.observers.Percentile(SPEC, value),
    "momentum": lambda value: qat.observers.MovingAverage(SPEC, value),
    "alpha of DSQ": qat.estimators.DSQ,
    "delta": qat.estimators.EWGS,
    "alpha of SmoothQuant": qat.ptq.SmoothQuant,
    "damping": qat.ptq.GPTQ,
    "lr": lambda value: qat.ptq.AdaRound(lr=value),
    "scale_lr": lambda value: qat.ptq.BRECQ(scale_lr=value),
    "drop": lambda value: qat.ptq.BRECQ(drop=value),
    "share": lambda value: remove_channels(small(), value),
    "val_fraction": lambda value: qat.data.Split(value),
}
TYPES: dict[str, Callable[[Any], object]] = {
    "mode": lambda value: qat.mode(small(), value).__enter__(),
    "again": lambda value: qat.calibrate(qat.prepare(small(), "w8a8"), [X], again=value),
    "rules": lambda value: qat.Policy(rules={"a": value}),
    "match": lambda value: qat.Rule(value, None, None),
    "match in a dict": lambda value: qat.load_policy({"rules": {"a": {"match": [value], "weight": {"bits": 4}}}}),
    "weight": lambda value: qat.Rule("*", value, None),
    "activation": lambda value: qat.Rule("*", None, value),
    "grid": qat.QuantSpec,
    "granularity": lambda value: qat.QuantSpec(qat.Grid(8), value),
    "symmetric": lambda value: qat.QuantSpec(qat.Grid(8), symmetric=value),
    "axis": lambda value: qat.PerChannel((value,)),  # type: ignore[arg-type]
    "signed": lambda value: qat.Grid(8, value),
    "narrow": lambda value: qat.Grid(8, narrow=value),
    "passes": lambda value: qat.ptq.apply_passes(value, small(), "w8a8", [X]),
    "network of passes": lambda value: qat.ptq.apply_passes([qat.ptq.Calibrate()], value, "w8a8", [X]),
    "batches of passes": lambda value: qat.ptq.apply_passes([qat.ptq.Calibrate()], small(), "w8a8", value),
    "target": lambda value: qat.prepare(small(), "w8a8", target=[value]),  # type: ignore[arg-type]
    "inplace": lambda value: qat.prepare(small(), "w8a8", inplace=value),
    "record": lambda value: qat.verify(__file__, record=value),
    "for_litert": lambda value: qat.to_pt2e(small(), value),
    "sign of packed codes": lambda value: qat.unpack(qat.pack(torch.arange(4), 2), 2, (4,), value),
    "shape of packed codes": lambda value: qat.unpack(qat.pack(torch.arange(4), 2), 2, value, False),
    "forward": lambda value: qat.calibrate(qat.prepare(small(), "w8a8"), [X], value),
    "batch": lambda value: qat.search.measure_latency(small(), "w4a8", value),
    "chosen": lambda value: remove_channels(small(), 0.5, value),
    "example of a float file": lambda value: qat.export.export_float_onnx(small(), value, "model.onnx"),
    "example of a file": lambda value: qat.export_onnx(small(), value, "model.onnx"),
    "metadata": lambda value: qat.models.save_weights(small(), "weights.safetensors", value),
    "spec of an observer": lambda value: qat.observers.MinMax(value),
    "spec of a quantizer": lambda value: qat.quantizers.LSQ(value),
    "shape of a quantizer": lambda value: qat.quantizers.LSQ(SPEC, value),
    "depth": lambda value: qat.models.ResNetCifar(value),
    "limit_train": lambda value: qat.data.digits(limit_train=value and str(value)),
    "seed of a split": lambda value: qat.data.digits(split_seed=str(value)),
    "crop_padding": lambda value: qat.data.digits(crop_padding=str(value)),
    "flip": lambda value: qat.data.digits(flip=value),
    "pad_mode": lambda value: qat.data.digits(pad_mode=value),
    "mean": lambda value: qat.data.BatchTransform(value, [0.5]),
    "std": lambda value: qat.data.BatchTransform([0.5], value),
    "fields of a policy": lambda value: qat.load_policy(qat.load_policy("w8a8"), weight=value),
}


@pytest.mark.parametrize("value", [None, "3", 2.5, float("nan"), True, 0, -1, [4]], ids=repr)
@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_whole_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"write (a|for example) (positive )?whole number"):
        WHOLE[name](value)


@pytest.mark.parametrize("value", [None, "0.5", float("nan"), float("inf"), True, -1.0, [0.5]], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r": write (a|the|for example)"):
        NUMBERS[name](value)


@pytest.mark.parametrize("value", [3, 2.5, object()], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", TYPES)
def test_values_of_other_types_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"write|known keys|for example"):
        TYPES[name](value)


def test_a_mode_is_not_a_text() -> None:
    """It turned every quantizer off."""
    with (
        pytest.raises(ValueError, match=r"mode 'quantize' is not a qat\.Mode: write qat\.Mode\.OFF"),
        qat.mode(small(), "quantize"),  # type: ignore[arg-type]
    ):
        pass


NEEDED: dict[str, dict[str, Any]] = {"QuantizationAwareTraining": {"policy": "w8a8"}, "Pruning": {"sparsity": 0.5}}
OPTIONS = [
    (callback, option)
    for callback in qat.callbacks.__all__
    for option in inspect.signature(getattr(qat.callbacks, callback)).parameters
    if option != "dataloaders"  # which may be anything that can be iterated
]


@pytest.mark.parametrize(("callback", "option"), OPTIONS)
def test_an_option_of_another_kind_is_named_when_a_callback_is_made(callback: str, option: str) -> None:
    """Not in the middle of a fit, nor in a traceback."""
    given = NEEDED.get(callback, {}) | {option: object()}
    with pytest.raises(ValueError, match=rf"\b{option}\b"):
        getattr(qat.callbacks, callback)(**given)


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        (
            "QuantizationAwareTraining",
            {"calibration_images": 2.5},
            "calibration_images=2.5 is not possible: write a number",
        ),
        (
            "QuantizationAwareTraining",
            {"calibration_seed": True},
            "calibration_seed=True is not possible: write a whole number",
        ),
        (
            "QuantizationAwareTraining",
            {"quantizer_lr_ratio": float("inf")},
            "quantizer_lr_ratio=inf is not finite: write 1.0",
        ),
        (
            "QuantizationAwareTraining",
            {"batches": "images"},
            "batches='images' is not a list of batches: write",
        ),
        ("PTQBaselines", {"ladder": "MSE"}, r"ladder='MSE' is not possible: write \['MinMax', 'MSE'\]"),
        ("PTQBaselines", {"ladder": {"PTQ": [qat.ptq.Calibrate]}}, "ladder 'PTQ': .* is not a pass"),
        ("ExportONNX", {"path": "model.txt"}, "model.txt is not the name of a file for onnxruntime: write model.onnx"),
        (
            "ExportONNX",
            {"float_path": "float.txt"},
            "float.txt is not the name of a file for onnxruntime: write float.onnx",
        ),
    ],
)
def test_an_option_of_a_callback_that_cannot_be_is_refused(
    callback: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(qat.callbacks, callback)(**NEEDED.get(callback, {}), **options)


def test_an_integer_model_is_not_inspected() -> None:
    prepared = qat.prepare(small(), "w8a8", X)
    qat.calibrate(prepared, [X])
    with pytest.raises(ValueError, match=r"is an integer model: inspect what qat\.prepare returned"):
        qat.inspect(qat.convert(prepared))


def test_a_prepared_network_is_prepared_again_as_a_copy() -> None:
    """Its quantizers, with or without ranges, are no fault of its forward."""
    prepared = qat.prepare(small(), "w4a4", X)
    assert type(qat.prepare(prepared, "w4a4", X)) is type(prepared)
    qat.calibrate(prepared, [X])
    again = qat.prepare(prepared, "w4a4", X)
    assert again is not prepared
    torch.testing.assert_close(again(X), prepared(X), rtol=0, atol=0)
    with pytest.raises(ValueError, match="already prepared with policy 'w4a4', not 'w8a8'"):
        qat.prepare(prepared, "w8a8", X)


@pytest.mark.parametrize(
    "function",
    [
        lambda: qat.Grid(X),  # type: ignore[arg-type]
        lambda: qat.QuantSpec(X),  # type: ignore[arg-type]
        lambda: qat.TensorRule(4, X),  # type: ignore[arg-type]
        lambda: qat.prepare(small(), X),  # type: ignore[arg-type]
        lambda: qat.inspect(small(), "w8a8", [X], loss=X),  # type: ignore[arg-type]
    ],
    ids=["bits", "grid", "granularity", "policy", "loss"],
)
def test_a_tensor_is_not_spelled_out_in_a_sentence(function: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*\ba Tensor\b[^\n]*$"):
        function()
