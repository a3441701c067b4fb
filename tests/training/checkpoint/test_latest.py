import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import qat
from qat.training.checkpoint.latest import checkpoint_to_resume, defect


class Hyperparameters:
    """An object that torch.load(weights_only=True) refuses; never made here."""


def written(path: Path, step: int, at: float = 0.0, **content: Any) -> Path:
    """Writes the part of Lightning's checkpoints that matters here."""
    path.parent.mkdir(exist_ok=True)
    state = {
        "epoch": 70000,
        "global_step": step,
        "state_dict": {"w": torch.rand(50)},
        "loops": {},
        "optimizer_states": [],
    }
    torch.save({**state, **content}, path)
    os.utime(path, (at, at))
    return path


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(3000))


def one_flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(torch.load(path, weights_only=True)["state_dict"]["w"].numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("step", [0, 3, 300, 70_000, 3_000_000_000])
def test_the_newest_checkpoint_is_the_one_with_the_most_steps(step: int, tmp_path: Path) -> None:
    newest = written(tmp_path / "checkpoints" / "a.ckpt", step + 1, at=1.0, hyper_parameters={"x": Hyperparameters()})
    written(tmp_path / "checkpoints" / "b.ckpt", step, at=2.0)
    for where in (tmp_path, tmp_path / "checkpoints", str(tmp_path)):
        assert qat.latest_checkpoint(where) == newest
    assert checkpoint_to_resume(tmp_path) == newest


@pytest.mark.parametrize("damage", [truncated, emptied, garbage, one_flipped_bit])
def test_a_damaged_checkpoint_is_left_out_with_a_warning(damage: Any, tmp_path: Path) -> None:
    before = written(tmp_path / "step=1.ckpt", 1, at=1.0)
    last = written(tmp_path / "step=2.ckpt", 2, at=2.0)
    later = written(tmp_path / "step=3.ckpt", 3, at=3.0)
    assert checkpoint_to_resume(last) == last
    damage(last)
    os.utime(last, (2.0, 2.0))
    why = "is empty" if damage is emptied else "is damaged"
    with pytest.warns(match=f"{last} {why}: step=1.ckpt, of step 1, is used"):
        assert checkpoint_to_resume(last) == before
    with pytest.warns(match="step=2.ckpt"):
        assert qat.latest_checkpoint(tmp_path) == later


def test_a_file_of_weights_is_not_a_checkpoint_of_a_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save({"global_step": 9, "state_dict": {}, "loops": {}}, path)
    assert defect(path) == "holds only weights"
    with pytest.raises(ValueError, match=r"weights.ckpt holds only weights: give a checkpoint that a fit has written"):
        checkpoint_to_resume(path)


def test_a_folder_without_a_readable_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint: give a \.ckpt file"):
        qat.latest_checkpoint(tmp_path)
    only = written(tmp_path / "only.ckpt", 4)
    emptied(only)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read \(only.ckpt is empty\)"):
        qat.latest_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"neither .*only.ckpt nor an older checkpoint beside it can be read"):
        checkpoint_to_resume(only)


def test_undamaged_checkpoints_cause_no_warning(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ckpt", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert qat.latest_checkpoint(tmp_path) == path
