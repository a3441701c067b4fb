"""Checkpoints that are either complete or absent, even if the process is killed while it writes one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from qat.files import write_atomically
from qat.training.lightning.private_api import is_local_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the file that it replaces and then renames it.

    Lightning writes to the system's temporary folder and moves the file from there. If that is another file system, the move
    is a copy over the previous checkpoint, and a process that is killed during the copy has neither.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None or not is_local_path(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(path, content.getvalue())
