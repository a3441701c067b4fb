"""Folders that were cut off, changed, or written by somebody else."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import qat
from qat.export.packed import folder as folder_module
from tests.export.packed.networks import convolutions, trained


@pytest.fixture(scope="module", params=["prepared", "integer"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    prepared = trained(convolutions(), "w4a8", torch.randn(4, 3, 6, 6))
    model = prepared if request.param == "prepared" else qat.convert(prepared)
    return qat.save_quantized(model, tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def weights(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def test_every_changed_byte_and_every_cut_is_refused(folder: Path) -> None:
    for file in (weights(folder), folder / "manifest.json"):
        content = file.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 25)):
            for spoiled in (content[:place], content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]):
                file.write_bytes(spoiled)
                with pytest.raises(ValueError, match=str(folder)):
                    qat.load_quantized(folder)
        file.write_bytes(content)
    qat.load_quantized(folder)
    weights(folder).unlink()
    with pytest.raises(ValueError, match="is missing"):
        qat.load_quantized(folder)
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        qat.load_quantized(folder / "nowhere")


def test_an_interrupted_save_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: value.clone() for name, value in qat.load_quantized(folder).state_dict().items()}
    write = folder_module.write_atomically

    def interrupted(path: Path, content: Any) -> Path:
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        return write(path, content)

    other = trained(convolutions(), "w2", torch.randn(4, 3, 6, 6))
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "write_atomically", interrupted)
        with pytest.raises(KeyboardInterrupt):
            qat.save_quantized(other, folder)
    assert all(torch.equal(v, before[name]) for name, v in qat.load_quantized(folder).state_dict().items())
    qat.save_quantized(other, folder)
    assert len(list(folder.iterdir())) == 2
    qat.load_quantized(folder)


def forged(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Another manifest, with the hash that it needs."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256")
    change(manifest)
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**manifest, "sha256": digest}))


def set_at(*path: Any) -> Callable[[dict[str, Any]], None]:
    *keys, last, value = path

    def change(manifest: dict[str, Any]) -> None:
        found: Any = manifest
        for key in keys:
            found = found[key]
        found[last] = value

    return change


HOSTILE = "antigravity.Module"


@pytest.mark.parametrize(
    "change",
    [
        set_at("weights", "file", "../../etc/passwd"),
        set_at("version", 2),
        set_at("kind", "other"),
        set_at("tensors", "constant", [["float32", [1 << 40], 0.0, ["x"]]]),
        lambda manifest: [entry.update(shape=[1 << 40]) for entry in manifest["tensors"]["codes"].values()],
        set_at("aliases", None),
    ],
)
def test_forged_files(change: Callable[[dict[str, Any]], None], folder: Path) -> None:
    forged(folder, change)
    with pytest.raises(ValueError, match=str(folder)):
        qat.load_quantized(folder)


@pytest.mark.parametrize("saved", ["prepared"], indirect=True)
@pytest.mark.parametrize(
    "change",
    [
        set_at("architecture", "class", HOSTILE),
        set_at("architecture", "class", "torch.nn.modules.module.warnings"),
        set_at("architecture", "children", "0", "class", "qat.grid.Grid"),
        set_at("architecture", "children", "0", "attributes", "forward", 1),
        set_at("architecture", "children", "0", "attributes", "_modules", 1),
        set_at("architecture", "children", "0", "attributes", "x", {"function": "os.system"}),
        set_at("architecture", "children", "0", "attributes", "x", {"object": "pathlib.Path", "state": {}}),
        set_at("policy", "rules", "all", "weight", "quantizer", HOSTILE),
        set_at("policy", "rules", "all", "weight", "observer", {"_target_": "MSE", "estimator": HOSTILE}),
    ],
)
def test_nothing_that_a_prepared_network_names_is_imported(
    change: Callable[[dict[str, Any]], None], folder: Path
) -> None:
    forged(folder, change)
    with pytest.raises(ValueError, match=str(folder)):
        qat.load_quantized(folder)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("saved", ["integer"], indirect=True)
@pytest.mark.parametrize(
    "node",
    [
        ["call_function", "x_1", "os.system", [], {"dict": []}],
        ["call_function", "x_1", "torch.load", [], {"dict": []}],
        ["call_function", "x_1", "torch.hub.load", [], {"dict": []}],
        ["call_function", "x_1", "operator.methodcaller", [], {"dict": []}],
        ["call_function", "x_1", "builtins.eval", ["1"], {"dict": []}],
        ["call_function", "x_1", "ops.aten.from_file.default", ["x"], {"dict": []}],
        ["call_function", "x_1", "builtins.getattr", [1, "__class__"], {"dict": []}],
        ["call_function", "x_1", "qat.files.write_atomically", ["x", "y"], {"dict": []}],
        ["call_method", "x_1", "numpy", [1], {"dict": []}],
        ["call_method", "x_1", "t() or print", [1], {"dict": []}],
        ["call_method", "x_1", "__reduce_ex__", [1], {"dict": []}],
        ["placeholder", "x_1", "x=print()", [], {"dict": []}],
        ["get_attr", "x_1", "a'); print(", [], {"dict": []}],
        ["call_module", "x_1", "a'); print(", [], {"dict": []}],
        ["call_function", "import", "operator.add", [1, 2], {"dict": []}],
        ["call_function", "x_1", "torch.add", [1], {"dict": [["other=print(), x", 1]]}],
        ["exec", "x_1", "print()", [], {"dict": []}],
    ],
    ids=lambda node: node[2],
)
def test_nothing_that_a_graph_names_is_called(node: list[Any], folder: Path) -> None:
    forged(folder, lambda manifest: manifest["graph"].insert(0, node))
    with pytest.raises(ValueError, match=str(folder)):
        qat.load_quantized(folder)
