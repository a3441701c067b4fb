"""Check the policy of a checkpoint before its weights are restored.

Afterwards the only error left would be a list of names that do not match.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from qat.reading.bounds import check_nesting
from qat.transform import Policy, set_bits
from qat.transform.checkpoint_record import MAX_PLAIN_VALUES
from qat.transform.policy_record import CHECKPOINT_KEY, check_same_policy


def check_policy(checkpoint: Mapping[str, Any], policy: Policy) -> int | None:
    """Check that a checkpoint holds a network that was prepared with `policy`.

    Returns:
        The bits of the stage in which it was written; None if they are the policy's.

    Raises:
        ValueError: it holds a network without quantizers, or one that was prepared with another policy.
    """
    record = checkpoint.get(CHECKPOINT_KEY)
    if record is not None and not (isinstance(record, Mapping) and isinstance(record.get("policy"), Mapping)):
        raise ValueError(
            "the record of its quantizers in the checkpoint has no policy: give one that a fit has written."
        )
    if record is None:
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
