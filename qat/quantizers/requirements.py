"""Checks of a spec, for quantizers that do not support every one."""

from __future__ import annotations

from qat.spec import QuantSpec


class Requirements:
    """The checks that the constructors of quantizers call."""

    spec: QuantSpec
    is_weight: bool

    def require_symmetric(self) -> None:
        """Raise ValueError for an affine spec."""
        if not self.spec.symmetric:
            raise ValueError(
                f"{type(self).__name__} has no zero-point: write symmetric: true, or quantizer: LSQPlus, which has one."
            )

    def require_weight(self) -> None:
        """Raise ValueError for an activation, and for a grid that is not symmetric and signed."""
        if not self.is_weight:
            raise ValueError(
                f"{type(self).__name__} is for weights: give activations another quantizer, for example "
                "policy.activation.quantizer=LSQ."
            )
        self.require_symmetric()
        if not self.spec.grid.signed:
            raise ValueError(f"{type(self).__name__} is for weights, which can be negative: write signed: true.")

    def require_bits(self, *possible: int) -> None:
        """Raise ValueError for a width that is not in `possible`, whose first entry the message recommends."""
        if self.spec.grid.bits not in possible:
            raise ValueError(
                f"{type(self).__name__} has {' or '.join(map(str, sorted(possible)))} bits, not {self.spec.grid.bits}: write "
                f"bits: {possible[0]}, or give this layer another quantizer (for the first and the last layer, "
                "first_last_quantizer: LSQ)."
            )
