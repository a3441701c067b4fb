import io
import os
from pathlib import Path

import pytest
import torch

from qat.training.checkpoint.atomic_io import AtomicCheckpointIO


def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_nothing_is_written_outside_of_the_checkpoints_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    original = Path.open

    def noting(self: Path, *args: object, **options: object) -> io.IOBase:
        opened.append(self)
        return original(self, *args, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(Path, "open", noting)
    monkeypatch.setattr("tempfile.mkstemp", lambda *_, **__: pytest.fail("the system's temporary folder is used"))
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "run" / "last.ckpt")
    assert opened
    assert all(path.is_relative_to(tmp_path / "run") for path in opened)
