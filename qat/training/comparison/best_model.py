"""The network that a fit ends with: the best checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import lightning as L
from torch import nn

from qat.capture import copy_model
from qat.reading.checkpoint import read_without_objects
from qat.training.lightning.selection import NEWEST_MONITORS
from qat.transform import bits_in_force
from qat.transform.policy_record import CHECKPOINT_KEY


class BestModel(NamedTuple):
    """The prepared network on the CPU, in float32 and evaluation mode.

    epoch: the epoch of its checkpoint, counted from 1; 0 if these are the last weights.
    """

    network: nn.Module
    epoch: int


def best_model(trainer: L.Trainer, network: nn.Module, network_name: str, staged: bool) -> BestModel:
    """A copy of the prepared network with the weights of the best checkpoint, or with its own if there is none.

    A callback that monitors no metric keeps the newest checkpoint, not the best, so it does not count; nor does a checkpoint
    written at other bits than the policy's (`ProgressiveBits`).

    Args:
        trainer: the Trainer whose fit has ended.
        network: the prepared network.
        network_name: its name in the LightningModule, "" for the module itself.
        staged: whether the fit trains in stages of different bits.

    Raises:
        RuntimeError: the fit ended at other bits than the policy's.
    """
    if staged and (bits := bits_in_force(network)) is not None:
        raise RuntimeError(
            f"the fit ended at {bits} bits, before the last stage of ProgressiveBits: resume it, so that it ends with the "
            "bits of the policy."
        )
    best = copy_model(network).cpu().float().eval()
    if not (path := _best_path(trainer)):
        return BestModel(best, 0)
    # A fit that was resumed has this path from a file, and the user's hyperparameters in it may be any objects.
    checkpoint = read_without_objects(Path(path))
    if checkpoint.get(CHECKPOINT_KEY, {}).get("bits") is not None:
        return BestModel(best, 0)
    prefix = f"{network_name}." if network_name else ""
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    best.load_state_dict(state)
    return BestModel(best, int(checkpoint["epoch"]) + 1)


def _best_path(trainer: L.Trainer) -> str:
    """The best checkpoint of the first callback that monitors a metric; "" if there is none."""
    for callback in trainer.checkpoint_callbacks:
        path: str = getattr(callback, "best_model_path", "")
        if path and getattr(callback, "monitor", None) not in NEWEST_MONITORS:
            return path
    return ""
