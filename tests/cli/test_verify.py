"""`qat verify`: what it answers, and the exit status that CI sees."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import qat
from qat.cli.main import main
from qat.models import ResNetCifar
from qat.training.callbacks import QuantizationAwareTraining
from qat.transform.policy_record import BUILT_FROM_KEY
from tests.training.user_modules import LIGHTNING, Data, trainer

pytestmark = LIGHTNING


class OneBatch(L.LightningModule):
    """A fit of the bundled network without a step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = ResNetCifar(8, num_classes=4, in_channels=1)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        network = {"_target_": "qat.models.ResNetCifar", "depth": 8, "num_classes": 4, "in_channels": 1}
        checkpoint[BUILT_FROM_KEY] = network

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a file that was verified with it, and data."""
    folder = tmp_path_factory.mktemp("run")
    fitting = trainer(folder, QuantizationAwareTraining("w4a8", calibration_images=32), max_steps=1)
    fitting.fit(OneBatch(), Data().train_dataloader())
    fitting.save_checkpoint(folder / "best.ckpt")
    prepared = qat.load_checkpoint(folder / "best.ckpt")
    images = Data().test.tensors[0]
    integer = qat.convert(prepared)
    qat.export_onnx(integer, images[:1], folder / "unchecked.onnx")
    (folder / "model.onnx").write_bytes((folder / "unchecked.onnx").read_bytes())
    qat.verify(folder / "model.onnx", integer, [images], prepared, record=True)
    np.save(folder / "images.npy", images.numpy())
    np.save(folder / "zeros.npy", np.zeros_like(images.numpy()))
    return folder


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = main(["verify", *map(str, arguments)])
    return status, capsys.readouterr().out


def test_a_record_is_read_without_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = answer(capsys, folder / "model.onnx")
    assert (status, said.splitlines()[-1]) == (0, f"VERIFIED: {folder / 'model.onnx'}")
    assert "Not known without the model" in said
    status, said = answer(capsys, folder / "unchecked.onnx", "--json")
    assert (status, json.loads(said)["status"]) == (3, "not proven")


def test_everything_is_computed_anew_with_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    computed = [folder / "unchecked.onnx", "--model", folder, "--json", "--data"]
    status, said = answer(capsys, *computed, folder / "images.npy", "--samples", 20, "--runtime", "onnxruntime")
    found = json.loads(said)
    assert found["verification"]["runtime"].startswith("ONNX Runtime 1.")
    assert (status, found["status"], found["verification"]["samples"]) == (0, "verified", 20)
    assert found["hashes"].keys() == {"file", "content", "model", "policy"}
    assert found["verification"]["codes_compared"] > 1000
    status, said = answer(capsys, *computed, folder / "zeros.npy")
    assert (status, "All inputs are zero" in said) == (3, True)


@pytest.mark.parametrize("kind", ["own", "digits", "random", "folder", "npz"])
def test_data_are_spelled_as_in_other_commands(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.load(folder / "images.npy")
    code = f"    yield from torch.tensor(numpy.load({str(folder / 'images.npy')!r})).split(8)"
    (tmp_path / "own.py").write_text(f"import numpy, torch\n\ndef batches():\n{code}\n")
    np.savez(tmp_path / "images.npz", x=images)
    for i in range(6):
        path = tmp_path / "pictures" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, images.shape[2:], dtype=np.uint8)).save(path)
    data = {"own": f"{tmp_path}/own.py:batches", "folder": tmp_path / "pictures", "npz": tmp_path / "images.npz"}
    asked = [folder / "unchecked.onnx", "--model", folder, "--samples", 3, "--json", "--data", data.get(kind, kind)]
    status, said = answer(capsys, *asked)
    assert (status, json.loads(said)["verification"]["samples"]) == (0, 3)


def test_a_changed_file_fails_with_and_without_the_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = onnx.load(folder / "model.onnx")
    scale = next(t for t in file.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    array = onnx.numpy_helper.to_array(scale)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.nextafter(array, np.float32(9)), scale.name))
    onnx.save(file, tmp_path / "changed.onnx")
    assert answer(capsys, tmp_path / "changed.onnx")[0] == 1
    data = ["--model", folder, "--data", folder / "images.npy"]
    status, said = answer(capsys, tmp_path / "changed.onnx", *data)
    assert (status, said.splitlines()[-1]) == (1, f"NOT VERIFIED: {tmp_path / 'changed.onnx'}")
    (tmp_path / "cut.onnx").write_bytes((folder / "model.onnx").read_bytes()[:2000])
    assert answer(capsys, tmp_path / "cut.onnx", *data)[0] == 1


def test_mistakes_are_one_sentence_and_status_2(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    in_openvino = ("--data", folder / "images.npy", "--runtime", "openvino")
    for arguments, named in {
        ("missing.onnx",): "missing.onnx does not exist",
        (folder / "model.onnx", "--model", folder): "config.yaml does not exist, so the data",
        (folder / "model.onnx", "--model", folder / "images.npy"): "images.npy",
        (folder / "model.onnx", "--model", folder, "--data", folder / "best.ckpt"): "best.ckpt",
        (folder / "model.onnx", "--model", folder, *in_openvino): "OpenVINO is not installed: pip install",
        (folder / "model.onnx", "--model", folder, "--data", "nothing"): "a folder of images, digits",
    }.items():
        assert main(["verify", *map(str, arguments)]) == 2, arguments
        said = capsys.readouterr().err
        assert said.startswith("qat verify: error: ")
        assert named in said
        assert said.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        main(["verify", str(folder / "model.onnx"), "--runtime", "openvino"])
    with pytest.raises(SystemExit, match="2"):
        main(["verify", str(folder / "model.onnx"), "--samples", "3"])
