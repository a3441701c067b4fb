"""Quantizers that numbers reach instead of tensors."""

from __future__ import annotations

import torch
from torch import nn


class PassesNumbers(nn.Module):
    """What a quantizer knows of operands that are not tensors of real numbers: without examples a graph cannot tell."""

    @property
    def passes(self) -> bool:
        """Whether calibration saw nothing but numbers, 0-d tensors, indices and masks here, which need no range."""
        return "passes_all" in self._buffers

    def set_passes(self, passes: bool) -> None:
        """Set `passes`. It travels with the checkpoint, as a buffer that others do not have."""
        if passes:
            self.register_buffer("passes_all", torch.tensor(True))
        else:
            self._buffers.pop("passes_all", None)
