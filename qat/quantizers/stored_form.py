"""What files and the integer model need to know about a quantizer."""

from __future__ import annotations

from typing import ClassVar


class StoredForm:
    """Facts about a class of quantizers that decide how its tensors are stored and computed with."""

    scaled_codes: ClassVar[bool] = True
    """Whether values are (code - zero_point) * scale, so that layers can multiply codes."""
    scale_bits: ClassVar[int] = 32
    """How many bits a file needs for each scale."""
    for_layer_inputs: ClassVar[bool] = False
    """Whether it quantizes activations only as inputs of layers, right before each; tensors between layers stay in float."""
    is_dynamic: bool = False
    """Whether an activation gets a new scale in every call. On the class: whether its activations do."""
