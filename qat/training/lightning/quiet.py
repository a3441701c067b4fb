"""Runs of Lightning without its messages about devices and small data."""

from __future__ import annotations

from contextlib import AbstractContextManager

from qat.contexts import quiet


def quiet_lightning() -> AbstractContextManager[None]:
    """Inside the `with` block, Lightning logs errors only, and its warnings are ignored."""
    return quiet(["lightning.pytorch"], ["lightning", "torch.utils._pytree"], drop_output=False)
