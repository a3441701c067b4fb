"""Files that were changed after they were written: none goes unseen, whatever the data."""

from __future__ import annotations

import copy
import importlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import qat
from qat.capture import CaptureError
from qat.export.onnx import proof
from qat.export.verification import DamagedFileError
from tests.networks import build

SIZE = (3, 8, 8)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.inner(x)).relu().mean((2, 3)))


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 8), nn.GELU(), nn.Linear(8, 5))


class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 6, 3, 2), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.Hardswish()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "residual": (Residual, "w4a4"),
    "perceptron": (Perceptron, "w8a8"),
    "depthwise": (Depthwise, "w4a8"),
    "weights alone": (Perceptron, "w4"),
    "dynamic": (Perceptron, "w8_dynamic"),
}
Tamper = Callable[[onnx.ModelProto, random.Random], object]


def change_constant(file: onnx.ModelProto, chance: random.Random) -> None:
    tensor = chance.choice([t for t in file.graph.initializer if numpy_helper.to_array(t).size])
    array = numpy_helper.to_array(tensor).copy()
    at = chance.randrange(array.size)
    value = array.reshape(-1)[at : at + 1]
    if array.dtype == np.float32:
        value[:] = chance.choice([np.nextafter(value, np.inf), value * np.float32(1.01) + 1e-30, value * 1000 + 1])
    else:
        value[:] = (value.astype(np.int64) ^ 1).astype(array.dtype)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def change_constant_everywhere(file: onnx.ModelProto, chance: random.Random) -> None:
    tensor = chance.choice([t for t in file.graph.initializer if t.data_type == onnx.TensorProto.FLOAT])
    array = numpy_helper.to_array(tensor)
    factor = np.float32(chance.choice([1.01, 1000.0, -1.0]))
    tensor.CopyFrom(numpy_helper.from_array(array * factor + np.float32(1e-30), tensor.name))


def change_attribute(file: onnx.ModelProto, chance: random.Random) -> None:
    attribute = chance.choice([a for n in file.graph.node for a in n.attribute if a.type in (1, 2, 7)])
    attribute.i, attribute.f = attribute.i + 1, attribute.f + 1
    attribute.ints[:] = [1 + x for x in attribute.ints]


def change_operator(file: onnx.ModelProto, chance: random.Random) -> None:
    node = chance.choice(list(file.graph.node))
    node.op_type = "Neg" if node.op_type != "Neg" else "Abs"


def swap_inputs(file: onnx.ModelProto, chance: random.Random) -> None:
    node = chance.choice([n for n in file.graph.node if len(n.input) > 1 and n.input[0] != n.input[1]])
    node.input[:] = [node.input[1], node.input[0], *node.input[2:]]


def change_surroundings(file: onnx.ModelProto, chance: random.Random) -> None:
    entry = chance.choice([p for p in file.metadata_props if p.key.startswith("qat.")])
    chance.choice(
        [
            lambda: setattr(entry, "value", entry.value + "0"),
            lambda: setattr(file.opset_import[0], "version", 20),
            lambda: setattr(file.graph.output[0], "name", "other"),
            lambda: setattr(file.graph.node[0], "name", "renamed"),
            lambda: file.graph.initializer.append(numpy_helper.from_array(np.zeros(1), "unread")),
            lambda: file.metadata_props.remove(entry),
            lambda: file.metadata_props.add(key=entry.key, value="{}"),
            lambda: file.graph.value_info.add(name=file.graph.node[0].output[0]),
        ]
    )()


TAMPERS: list[Tamper] = [
    change_constant, change_constant, change_constant_everywhere, change_attribute, change_operator, swap_inputs,
    change_surroundings, change_surroundings,
]  # fmt: skip


def unseen(network: str, tampers: int, folder: Path) -> list[str]:
    """The changes that `verify` does not see, half of them looked for with images, half with zeros."""
    make, policy = NETWORKS[network]
    images = torch.randn(8, *SIZE, generator=torch.Generator().manual_seed(1))
    prepared = qat.prepare(build(make), policy, images)
    qat.calibrate(prepared, [images])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, images[:2], folder / "model.onnx")
    for data in (images, torch.zeros_like(images)):
        assert qat.verify(folder / "model.onnx", integer, [data]).exact, network
    chance, found = random.Random(network), []
    for i in range(tampers):
        file = onnx.load(folder / "model.onnx")
        tamper = TAMPERS[i % len(TAMPERS)]
        tamper(file, chance)
        path = folder / f"{i}.onnx"
        onnx.save(file, path)
        try:
            seen = not qat.verify(path, integer, [images if i % 2 else torch.zeros_like(images)]).exact
        except ValueError as error:
            seen = str(path) in str(error)
        if not seen or qat.verify(path).passed:
            found.append(f"{i}: {tamper.__name__}")
    return found


def hashed_again(file: onnx.ModelProto) -> None:
    """Make the file's own hashes fit, as whoever knows the format can."""
    proof._write(file, proof._metadata(file))


def store_twice(file: onnx.ModelProto) -> None:
    tensor = next(t for t in file.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    tensor.float_data.extend(2 * numpy_helper.to_array(tensor).ravel())


def metadata_entry(file: onnx.ModelProto, key: str) -> onnx.StringStringEntryProto:
    return next(p for p in file.metadata_props if p.key == key)


WITHOUT_HASHES: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "constant": (lambda f: change_constant(f, random.Random(0)), "stored numbers"),
    "a second form of a constant": (store_twice, "is stored twice"),
    "shape of an inner tensor": (lambda f: f.graph.value_info.add(name=f.graph.node[0].output[0]), "inner tensors"),
    "hash of the model": (
        lambda f: setattr(metadata_entry(f, "qat.model_sha256"), "value", "0" * 64),
        "entry qat.model_sha256 is not that",
    ),
    "policy": (lambda f: f.metadata_props.remove(metadata_entry(f, "qat.policy_sha256")), "entry qat.policy_sha256"),
    "target": (lambda f: f.metadata_props.add(key="qat.target", value="nothing"), "has metadata that cannot be read"),
    "versions": (lambda f: f.metadata_props.remove(metadata_entry(f, "qat.versions")), "entry qat.versions"),
}


def test_whoever_makes_the_hashes_fit_is_seen_with_the_model(tmp_path: Path) -> None:
    images = torch.randn(8, *SIZE, generator=torch.Generator().manual_seed(1))
    prepared = qat.prepare(build(Residual), "w4a4", images)
    qat.calibrate(prepared, [images])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, images[:2], tmp_path / "model.onnx")
    said = {}
    for name, (change, _) in WITHOUT_HASHES.items():
        file = onnx.load(tmp_path / "model.onnx")
        change(file)
        hashed_again(file)
        onnx.save(file, tmp_path / "changed.onnx")
        try:
            found = qat.verify(tmp_path / "changed.onnx", integer, [torch.zeros_like(images)])
            said[name] = " ".join(found.sentences) if not found.exact else ""
        except ValueError as error:
            said[name] = str(error)
    assert {name: text for name, text in said.items() if WITHOUT_HASHES[name][1] not in text} == {}
    bare = onnx.load(tmp_path / "model.onnx")
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    found = qat.verify(tmp_path / "bare.onnx", integer, [images])
    assert not found.exact
    assert "The file's metadata was removed." in found.sentences


def grow(file: onnx.ModelProto, times: int) -> None:
    """Double the output again and again, and cut it."""
    name, node = file.graph.output[0].name, file.graph.node[-1]
    node.output[0] = "grown_0"
    for i in range(times):
        file.graph.node.append(onnx.helper.make_node("Concat", [f"grown_{i}"] * 2, [f"grown_{i + 1}"], axis=1))
    file.graph.initializer.extend(numpy_helper.from_array(np.array([n]), f"at_{n}") for n in (0, 5, 1))
    file.graph.node.append(onnx.helper.make_node("Slice", [f"grown_{times}", "at_0", "at_5", "at_1"], [name]))


def write_for_many(file: onnx.ModelProto, samples: object) -> None:
    metadata_entry(file, "qat.example_shapes").value = json.dumps([[samples, *SIZE]])


@pytest.mark.parametrize("has_graph", [True, False])
def test_a_file_that_asks_for_more_memory_is_not_run(
    has_graph: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_graph:
        monkeypatch.setattr(importlib.import_module("qat.transform.prepare"), "capture", refuse_to_capture)
        monkeypatch.setattr(importlib.import_module("qat.integer.convert"), "capture", refuse_to_capture)
    images = torch.randn(4, *SIZE)
    prepared = qat.prepare(build(Residual), "w4a4", images)
    qat.calibrate(prepared, [images])
    integer, path = qat.convert(prepared), tmp_path / "model.onnx"
    qat.export_onnx(integer, images[:2], path)
    original = onnx.load(path)
    assert qat.verify(path, integer, [images]).exact
    for fits in (True, False):
        file = copy.deepcopy(original)
        grow(file, 4)
        if fits:
            hashed_again(file)
        onnx.save(file, path)
        found = qat.verify(path, integer, [images])
        assert not found.exact
        assert found.operators == {}  # the runtime has not seen it
        assert re.search(r"was not run.* The file's output is computed by Slice, not \w+\.", found.failure(path))
    for samples in (10**9, -1, "many", None):
        file = copy.deepcopy(original)
        write_for_many(file, samples)
        onnx.save(file, path)
        with pytest.raises(DamagedFileError, match="has metadata that cannot be read"):
            qat.verify(path, integer, [images])


def refuse_to_capture(model: nn.Module, *arguments: object) -> None:
    raise CaptureError(f"{type(model).__name__} is not traced here")


def test_no_tampering_of_a_small_network_goes_unseen(tmp_path: Path) -> None:
    assert unseen("residual", 8, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_no_tampering_goes_unseen(network: str, tmp_path: Path) -> None:
    assert unseen(network, 32, tmp_path) == []
