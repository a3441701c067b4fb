"""Checkpoints that a Trainer reads: checked first, and what does not fit is one sentence with the file's name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO

from qat.reading.checkpoint import check_container, read_checkpoint
from qat.reading.malformed import reason
from qat.training.checkpoint.latest import DAMAGES, checkpoint_to_resume, defect
from qat.training.lightning.hooks import unwrap_hook, wrap_hook
from qat.training.lightning.private_api import RESTORING, checkpoint_connector

FAULTS_OF_A_FILE = (LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError)


def check_reading(trainer: L.Trainer, replaces_damaged: bool = False) -> None:
    """Check every checkpoint that `trainer` reads from now on.

    Args:
        trainer: the Trainer.
        replaces_damaged: instead of a damaged checkpoint, read the one before it, with a warning.
    """
    wrap_hook(trainer.strategy.checkpoint_io, "load_checkpoint", partial(_checked, replaces_damaged))
    for name in RESTORING:
        wrap_hook(checkpoint_connector(trainer), name, partial(_in_one_sentence, trainer))


def stop_checking(trainer: L.Trainer) -> None:
    """Undo `check_reading`."""
    unwrap_hook(trainer.strategy.checkpoint_io, "load_checkpoint")
    for name in RESTORING:
        unwrap_hook(checkpoint_connector(trainer), name)


def _checked(replaces_damaged: bool, hook: Callable[..., Any]) -> Callable[..., Any]:
    def load_checkpoint(path: str | Path, *args: Any, **options: Any) -> Any:
        if not Path(path).is_file():
            return hook(path, *args, **options)
        if replaces_damaged and defect(Path(path)) in DAMAGES:
            path = checkpoint_to_resume(path)
        is_plain = isinstance(getattr(hook, "__self__", None), TorchCheckpointIO)
        if options.get("weights_only") is False or not is_plain:  # the caller trusts the file, or reads another format
            if is_plain:
                check_container(Path(path))
            return hook(path, *args, **options)
        return read_checkpoint(Path(path))

    return load_checkpoint


def _in_one_sentence(trainer: L.Trainer, hook: Callable[..., Any]) -> Callable[..., Any]:
    def restore(*args: Any, **options: Any) -> Any:
        try:
            return hook(*args, **options)
        except FAULTS_OF_A_FILE as error:
            if not trainer.ckpt_path:
                raise
            raise ValueError(
                f"checkpoint {trainer.ckpt_path} does not fit this run ({type(error).__name__}: {reason(error)}): give a "
                "checkpoint that this fit has written."
            ) from error

    return restore
