"""Checkpoints that a Trainer reads: a sentence with the file's name, whatever is wrong with them, and nothing executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qat.training.callbacks import QuantizationAwareTraining
from tests.training.importable_modules import WithHyperparameters
from tests.training.user_modules import LIGHTNING, Data, trainer
from tests.transform.test_load_checkpoint import Executed

pytestmark = LIGHTNING


def fitting(folder: Path) -> tuple[Any, WithHyperparameters]:
    return trainer(
        folder, QuantizationAwareTraining("w4a8", quantizer_lr_ratio=0.01, calibration_images=64)
    ), WithHyperparameters(hidden=8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("written")
    of_fit, module = fitting(folder)
    of_fit.fit(module, datamodule=Data())
    of_fit.save_checkpoint(folder / "good.ckpt")
    content: dict[str, Any] = torch.load(folder / "good.ckpt", weights_only=True)
    return content


@pytest.mark.parametrize(
    "changes",
    [
        {"loops": {}},
        {"loops": [1]},
        {"optimizer_states": 3},
        {"qat": {"policy": 1}},
        {"qat_resume": [{"where": {"evil": 1}}]},
        {"qat_resume": [{}]},
        {"state_dict": {"a": 1}},
        {"hyper_parameters": Executed()},
    ],
    ids=lambda changes: "-".join(f"{key}-{type(value).__name__}" for key, value in changes.items()),
)
def test_a_checkpoint_of_wrong_types_is_one_sentence(changes: Any, written: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "foreign.ckpt"
    torch.save({**written, **changes}, path)
    of_fit, module = fitting(tmp_path)
    with pytest.raises(ValueError, match=r"foreign\.ckpt|^the record of its quantizers in the checkpoint") as error:
        of_fit.fit(module, datamodule=Data(), ckpt_path=path)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_not_tested(written: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "damaged.ckpt"
    torch.save(written, path)
    content = bytearray(path.read_bytes())
    weight = next(value for name, value in written["state_dict"].items() if name.endswith("conv1.weight"))
    content[content.find(weight.numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    of_test, module = fitting(tmp_path)
    with pytest.raises(ValueError, match=r"damaged\.ckpt is not a checkpoint \(the checksum of"):
        of_test.validate(module, datamodule=Data(), ckpt_path=path)
