"""The network that a fit ends with: the best checkpoint's."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import lightning as L
from torch import nn

from qat.transform import bits_in_force
from qat.transform.policy_record import KEY

if TYPE_CHECKING:
    from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining


class Best(NamedTuple):
    """The prepared network, on the CPU, in float32, in evaluation mode.

    epoch: where it is from, counted from 1; 0: the last weights.
    """

    network: nn.Module
    epoch: int


def best_model(trainer: L.Trainer, pl_module: L.LightningModule, qat: QuantizationAwareTraining) -> Best:
    """A copy of the prepared network with the weights of the best checkpoint, or as it is, if none was written.

    A checkpoint that was written at other bits than the policy's (`ProgressiveBits`) is none of this network.

    Raises:
        RuntimeError: the fit ended at other bits than the policy's.
    """
    if qat.staged and (bits := bits_in_force(qat.network_of(pl_module))) is not None:
        raise RuntimeError(
            f"the fit ended at {bits} bits, before the last stage of ProgressiveBits: resume it, so that it ends with the "
            "bits of the policy."
        )
    network = copy.deepcopy(qat.network_of(pl_module)).cpu().float().eval()
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not path:
        return Best(network, 0)
    # Written by this very fit, so it may hold whatever objects the user's hyperparameters are.
    checkpoint = trainer.strategy.load_checkpoint(path, weights_only=False)
    if checkpoint.get(KEY, {}).get("bits") is not None:
        return Best(network, 0)
    prefix = f"{qat.network_name}." if qat.network_name else ""
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    network.load_state_dict(state)
    return Best(network, int(checkpoint["epoch"]) + 1)
