"""YAML, images, ONNX files and results: what unpacks to much, or is something else than its name says, is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from qat.data.image_files import open_image
from qat.experiment import recorded_run
from qat.experiment.folders import resumed_by
from qat.export.onnx.onnx_file import read_onnx
from qat.reading.array_file import read_arrays
from qat.reading.yaml_file import read_yaml
from qat.report.results.json_records import SchemaError
from qat.report.results.results_file import read_results


def test_yaml_is_plain_and_its_aliases_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    for text, reason in {
        "\n".join(lines): "more than 100,000 values",
        "a: !!python/object/apply:os.system ['false']": "could not determine a constructor",
        "a: [": "while parsing",
        "[1, 2]": "it is a list",
        "a: &a [*a]": "it contains itself",
        "a: '" + "x" * (1 << 20) + "'": "more than 1,048,576 bytes",
        "[" * 1000: "maximum recursion depth",
        "a: 1\nb: {c: 1,\n c: 2}": "line 3 has the key 'c' again, and the last alone would count",
        "a: {0: 1, 0.0: 2}": "line 1 has the key 0.0 again",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"policy\.yaml is not a YAML file of keys and values \(.*{reason}"):
            read_yaml(path)
    path.write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match=r"policy\.yaml"):
        read_yaml(path)
    path.write_text("")
    assert read_yaml(path) == {}
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: [*a, *a]}")
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 2}}


def png(width: int, height: int) -> bytes:
    """The start of a picture of that size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 16)))


def test_images_are_images_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(9000, 9000))
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded \(it has 9000x9000 pixels, more than 67,108,864\)"):
        open_image(path, 3)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    path.write_bytes((tmp_path / "a.eps").read_bytes())  # a program of a page description language
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded"):
        open_image(path, 3)


def network(*nodes: onnx.NodeProto, constants: tuple[TensorProto, ...]) -> onnx.ModelProto:
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    return helper.make_model(helper.make_graph(list(nodes), "g", [], outputs, list(constants)))


def test_an_onnx_file_has_the_constants_that_it_declares(tmp_path: Path) -> None:
    path, weight = tmp_path / "a.onnx", numpy_helper.from_array(np.ones(4, np.float32), "w")
    good = network(helper.make_node("Identity", ["w"], ["y"]), constants=(weight,))
    onnx.save(good, path)
    assert read_onnx(path) == good
    large = network(helper.make_node("Identity", ["w"], ["y"]), constants=(weight,))
    large.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]
    elsewhere = network(helper.make_node("Identity", ["w"], ["y"]), constants=(weight,))
    elsewhere.graph.initializer[0].ClearField("raw_data")
    elsewhere.graph.initializer[0].data_location = TensorProto.EXTERNAL
    elsewhere.graph.initializer[0].external_data.add(key="location", value="../secret")
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "shape")
    asks = network(helper.make_node("ConstantOfShape", ["shape"], ["y"]), constants=(shape,))
    path.write_bytes(elsewhere.SerializeToString())
    with pytest.raises(
        ValueError, match=r"a\.onnx keeps 'w' in another file, .*: write one file with .*external_data=False"
    ):
        read_onnx(path)
    for reason, model in {"has 16 bytes": large, "asks for more": asks}.items():
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match=rf"a\.onnx is not an ONNX file, or is damaged \(.*{reason}"):
            read_onnx(path)
    for content in (b"", b"text", path.read_bytes()[:20]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.onnx is not an ONNX file, or is damaged"):
            read_onnx(path)


def test_results_of_any_depth_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("[" * 200_000)
    with pytest.raises(SchemaError, match=r"results\.json is not complete JSON"):
        read_results(path)


def test_arrays_are_no_larger_than_their_file_and_no_objects(tmp_path: Path) -> None:
    for array in (np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(3, np.int8)):
        np.save(tmp_path / "a.npy", array)
        np.savez_compressed(tmp_path / "a.npz", x=array, y=array)
        found = {"npy": read_arrays(tmp_path / "a.npy"), **read_arrays(tmp_path / "a.npz")}
        for name in ("npy", "x", "y"):
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    content = (tmp_path / "a.npy").read_bytes().replace(b"()", b"(9999999999,)")
    (tmp_path / "large.npy").write_bytes(content)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(80 << 20, np.uint8))
    for name in ("objects.npy", "large.npy", "bomb.npz"):
        with pytest.raises(ValueError, match=rf"{name} holds no arrays that can be read"):
            read_arrays(tmp_path / name)


def test_a_run_of_somebody_else_names_data_sets_of_the_project_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {_target_: os.system, command: 'false'}")
    with pytest.raises(ValueError, match=r"config\.yaml is not the configuration of a run \(its data are os\.system"):
        next(recorded_run.test_inputs(tmp_path / "best.ckpt"))
    (tmp_path / "config.yaml").write_text("resume: ${oc.env:HOME}")
    with pytest.raises(ValueError, match=r"config\.yaml .* refers to values outside of it"):
        resumed_by(tmp_path)
