"""What quantizers do with the tensors that pass through them."""

from __future__ import annotations

from enum import Enum


class Mode(Enum):
    """What quantizers do with the tensors that pass through them."""

    OFF = "off"
    """Nothing: the network computes in float."""
    OBSERVE = "observe"
    """Pass the tensor on unchanged and show it to the observer."""
    QUANTIZE = "quantize"
    """Round the tensor to its grid."""
