"""How the weight and the input of some layers are quantized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from qat.quantizers import DynamicPerToken, ScaledFloat
from qat.quantizers.codebook import Codebook
from qat.transform.class_names import resolve_quantizer
from qat.transform.tensor_rule import TensorRule

LARGEST_REDUCED = 64
"""Two products of an 8-bit code with weights up to this fit 16 bits: 2 x 255 x 64 < 2**15."""


@dataclass(frozen=True)
class Rule:
    """How the weight and the input of some layers are quantized; None leaves the tensor in float.

    match: which layers: a glob on their names ("layer1.*"), a type ("type:Linear"), "first" or "last" (of the quantizable
    layers, in the order in which they run).
    required: whether it is an error if there are none.
    """

    match: str
    weight: TensorRule | None
    activation: TensorRule | None
    required: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.match, str):
            raise ValueError(f"match={self.match!r} of a Rule is not a text: write for example 'layer1.*'.")
        for name in ("weight", "activation"):
            if not isinstance(value := getattr(self, name), TensorRule | None):
                raise ValueError(
                    f"{name}={value!r} of the rule for {self.match!r}: write qat.TensorRule(8), or None for float."
                )
        if self.activation is not None and self.activation.granularity != "per_tensor":
            raise ValueError(
                f"activation granularity={self.activation.granularity} of the rule for {self.match!r} is not possible, because "
                "an activation has one scale: write per_tensor."
            )

    def input_of(self, layer: type[nn.Module]) -> TensorRule | None:
        """How the input of a layer of this class is quantized.

        Convolutions have no tokens, so they get a range per tensor, or blocks along the channels.
        """
        rule = self.activation
        if rule is None or issubclass(layer, nn.Linear):
            return rule
        if issubclass(rule.quantizer_class, DynamicPerToken):
            return replace(rule, symmetric=False, quantizer="Dynamic")
        if issubclass(rule.quantizer_class, ScaledFloat):
            _, options = resolve_quantizer(rule.quantizer)
            options |= {"_target_": rule.quantizer_class, "axis": rule.quantizer_class.axis_of_convolutions}
            return replace(rule, quantizer=options)
        return rule

    def reduced(self, name: str) -> Rule:
        """The rule with 7-bit weights in place of 8-bit ones: two products with 8-bit inputs fit 16 bits. name: its name.

        Raises:
            ValueError: the weights' levels are codes of an 8-bit grid.
        """
        weight, activation = self.weight, self.activation
        if weight is None or activation is None or activation.bits < 8 or weight.granularity == "per_group":
            return self
        if any(issubclass(tensor.quantizer_class, ScaledFloat) for tensor in (weight, activation)):
            return self
        if issubclass(weight.quantizer_class, Codebook):
            codebook = weight.build((2, 2))
            assert isinstance(codebook, Codebook)
            if float(codebook.levels().detach().abs().max()) > LARGEST_REDUCED:
                raise ValueError(
                    f"reduce_range cannot keep the weights of rule {name!r} small, whose levels are codes of 8 bits "
                    f"({weight.quantizer_class.__name__}): write weight: {{quantizer: LSQ}}, or reduce_range: false."
                )
            return self
        return replace(self, weight=replace(weight, bits=min(weight.bits, 7)))

    def matches(self, name: str, type_name: str, position: int, count: int) -> bool:
        """Whether the rule is for the layer `name` of type `type_name`, number `position` of `count`."""
        if self.match in ("first", "last"):
            return position == (0 if self.match == "first" else count - 1)
        if self.match.startswith("type:"):
            return type_name == self.match.removeprefix("type:")
        return fnmatchcase(name, self.match)
