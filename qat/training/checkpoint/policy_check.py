"""Check the policy of a checkpoint before its weights are restored.

Afterwards the only error left would be a list of names that do not match.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from qat.reading.bounds import check_nesting
from qat.transform import Policy, set_bits
from qat.transform.checkpoint_record import MAX_PLAIN_VALUES
from qat.transform.policy_record import CHECKPOINT_KEY, check_not_weights_alone, check_same_policy


def check_policy(checkpoint: Mapping[str, Any], policy: Policy) -> int | None:
    """Check that a checkpoint holds a network that was prepared with `policy`.

    Returns:
        The bits of the stage in which it was written; None if they are the policy's.

    Raises:
        ValueError: it holds a network without quantizers or their policy, or one that was prepared with another policy.
    """
    record = checkpoint.get(CHECKPOINT_KEY)
    if record is not None and not (isinstance(record, Mapping) and isinstance(record.get("policy"), Mapping)):
        raise ValueError(
            "the record of its quantizers in the checkpoint has no policy: give one that a fit has written."
        )
    if record is None:
        check_not_weights_alone(checkpoint, "the checkpoint")
        raise ValueError(
            "the checkpoint holds a network without quantizers: load it into the LightningModule before the fit, "
            "model.load_state_dict(torch.load(path)['state_dict']), and do not pass it as ckpt_path."
        )
    check_nesting(record, MAX_PLAIN_VALUES)
    check_same_policy(record["policy"], policy, "the checkpoint was trained")
    bits: int | None = record.get("bits")
    return bits


def restore_bits(network: nn.Module, bits: int | None, staged: bool, fitting: bool) -> None:
    """Set the bits with which a checkpoint was written.

    Args:
        network: the prepared network, in place.
        bits: those of the checkpoint; None: the policy's.
        staged: whether a `ProgressiveBits` sets the bits of the network.
        fitting: whether a fit resumes the checkpoint.

    Raises:
        ValueError: a fit without `ProgressiveBits` resumes a checkpoint of an earlier stage.
    """
    if bits is not None and not staged and fitting:
        raise ValueError(
            f"the checkpoint was written at {bits} bits, on the way to fewer: put the ProgressiveBits of that fit "
            "beside QuantizationAwareTraining."
        )
    if bits is not None or staged:
        set_bits(network, bits)


def make_room_for_double(trainer: L.Trainer, module: L.LightningModule) -> None:
    """With precision="64-true": Lightning does it after weights are restored, which would be rounded to float32."""
    if isinstance(trainer.precision_plugin, DoublePrecision):
        module.double()


def what_was_prepared(float_network: nn.Module | None, channels: Mapping[str, int]) -> dict[str, Any]:
    """What a checkpoint keeps of the network before it was prepared: its sha256, and the channels that are left."""
    found: dict[str, Any] = {"channels": channels} if channels else {}
    return found if float_network is None else {**found, "float_network": _sha256(float_network)}


def check_float_network(trainer: L.Trainer, record: Mapping[str, Any], float_network: nn.Module | None) -> None:
    """Check that a resumed fit compares with the float network that it began with, if a callback compares at all.

    The module's weights are those of the checkpoint afterwards, so nothing else would tell.

    Raises:
        ValueError: it is another one.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    reading = [type(c).__name__ for c in callbacks if getattr(c, "reads_float_network", False)]
    recorded = record.get("float_network") if trainer.state.fn == TrainerFn.FITTING else None
    if reading and recorded is not None and float_network is not None and recorded != _sha256(float_network):
        raise ValueError(
            f"the fit of this checkpoint began with other float weights than the module has now, which {reading[0]} would "
            "measure: load those weights into the module before trainer.fit(module, ckpt_path=...), as that fit did."
        )


def _sha256(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
