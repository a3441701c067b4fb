"""What a quantizer's tensors are outside of training."""

from __future__ import annotations

from typing import ClassVar


class StoredForm:
    """Facts of a class of quantizers that files and the integer model go by."""

    scaled_codes: ClassVar[bool] = True
    """Whether values are (code - zero_point) * scale, so that layers can multiply codes."""
    scale_bits: ClassVar[int] = 32
    """How many bits a file needs for each scale."""
    for_layer_inputs: ClassVar[bool] = False
    """Whether, of activations, it quantizes inputs of layers alone, in front of each: tensors between layers stay float."""
    is_dynamic: bool = False
    """Whether an activation gets a scale of its own in every call. Of a class: whether its activations do."""
