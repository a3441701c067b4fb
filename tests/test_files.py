"""Files are written whole or not at all, and a full disk is told by the file's name."""

import errno
import os
from pathlib import Path

import pytest

from qat.files import atomic_path, write_atomically


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomically(tmp_path / "model.onnx", "old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "write":
        monkeypatch.setattr(Path, "write_bytes", fail)
    else:
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*model\.onnx") as raised:
        write_atomically(path, b"new")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert [file.name for file in tmp_path.rglob("*")] == ["model.onnx"]
    assert path.read_text() == "old"


def test_errors_of_other_files_keep_their_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_path(tmp_path / "model.onnx"):
        (tmp_path / "elsewhere").read_bytes()


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(OSError, match=r"Is a device or a pipe, not a file: .*model\.onnx"):
        write_atomically(tmp_path / "model.onnx", b"new")
    assert (tmp_path / "model.onnx").is_fifo()
