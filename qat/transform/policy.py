"""Where quantization goes: named, ordered rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qat.grid import Grid
from qat.quantizers import LookupTableQuantizer
from qat.transform.class_names import Part
from qat.transform.rule import Rule
from qat.transform.target_grids import TargetGrids, target_grids
from qat.transform.tensor_rule import TensorRule


@dataclass(frozen=True)
class Policy:
    """Named, ordered rules. The last rule that matches a layer decides on it, as a whole.

    residual_bits: width of the tensors that flow through adds, concatenations and pools. A tensor that feeds such an
    operation and a layer of fewer bits is quantized to residual_bits and requantized in front of the layer. None: the bits
    of the first rule's activation.
    quantize_outputs: whether what the network returns is quantized, too, to residual_bits: for processors that have no floats.
    reduce_range: whether 8-bit weights of layers with 8-bit inputs get 7 bits: x86 processors without VNNI add products in
    pairs, in 16 bits, and 2 x 255 x 63 fits, so that their fast sums are exact.
    target: what the file is for: a name of `TARGET_GRIDS`. Rules that it cannot run are refused, and where a rule leaves the
    sign of activations open, the target decides. None: any that can run the policy.

    >>> from qat.transform.presets import load_policy
    >>> policy = load_policy("w4a4")
    >>> list(policy.rules), policy.rules["all"].weight.bits, policy.rules["last"].weight.bits, policy.residual_bits
    (['all', 'first', 'last'], 4, 8, 8)
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)
    residual_bits: int | None = 8
    name: str = "custom"
    target: str | None = None
    quantize_outputs: bool = False
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("a policy without rules quantizes nothing: name a preset such as w4a8, or write rules.")
        if not isinstance(self.rules, Mapping) or not all(isinstance(rule, Rule) for rule in self.rules.values()):
            raise ValueError(
                f"rules={self.rules!r} of a Policy are not rules by name: write a preset such as 'w4a8' instead."
            )
        if self.residual_bits is not None:
            try:
                Grid(self.residual_bits)
            except ValueError as error:
                raise ValueError(f"residual_bits: {error}") from None
        if self.target is not None:
            self._constrain(target_grids(self.target))
        if self.reduce_range:
            object.__setattr__(self, "rules", {name: rule.reduced(name) for name, rule in self.rules.items()})

    def _constrain(self, grids: TargetGrids) -> None:
        """Let the target choose what rules leave open.

        Raises:
            ValueError: it cannot run a rule.
        """
        for name, rule in self.rules.items():
            for fault in grids.faults(name, rule):
                raise ValueError(fault)
        rules = {
            name: rule if rule.activation is None else replace(rule, activation=grids.activation(rule.activation))
            for name, rule in self.rules.items()
        }
        object.__setattr__(self, "rules", rules)
        residual = self.residual_rule()
        who = f"target={grids.name} cannot run residual_bits={self.residual_bits}"
        for fault in () if residual is None else grids.faults_of_activation(who, residual):
            raise ValueError(fault)

    def assign(self, layers: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]] = ()) -> dict[str, Rule]:
        """The rule of each layer. Layers without a rule stay in float.

        Args:
            layers: (name, type name) in the order in which they run.
            others: other modules with weight matrices (recurrent layers, ...), to which the weight's part of a rule applies.
                They are never first or last, unless there is no layer.

        Raises:
            ValueError: a rule matches no layer.
        """
        layers, others = (layers, others) if layers else (others, ())
        assigned: dict[str, Rule] = {}
        for rule_name, rule in self.rules.items():
            matched = [n for i, (n, type_name) in enumerate(layers) if rule.matches(n, type_name, i, len(layers))]
            matched += [n for n, type_name in others if rule.matches(n, type_name, 1, 3)]  # neither first nor last
            if not matched and rule.required:
                names = ", ".join(n for n, _ in (*layers, *others)) or "none at all"
                raise ValueError(
                    f"rule {rule_name!r} with match={rule.match!r} matches no layer; quantizable layers: {names}."
                )
            assigned.update(dict.fromkeys(matched, rule))
        return assigned

    def residual_rule(self) -> TensorRule | None:
        """How tensors between layers (adds, concatenations, pools) are quantized.

        They get the quantizer of the first rule's activation, or LSQ if that one is for inputs of layers only (a lookup
        table).

        Returns:
            The rule; None if these tensors stay in float: the first rule has no activation, or one for inputs of layers only.
        """
        activation = next(iter(self.rules.values())).activation
        if activation is None or activation.quantizer_class.for_layer_inputs:
            return None
        quantizer = "LSQ" if issubclass(activation.quantizer_class, LookupTableQuantizer) else activation.quantizer
        rule = replace(activation, bits=self.residual_bits or activation.bits, quantizer=quantizer)
        return rule if self.target is None else target_grids(self.target).activation(rule)

    def with_parts(self, quantizer: Part, observer: Part, weight_observer: Part | None = None) -> Policy:
        """The same policy with another quantizer and observer but for formats and dynamic ranges, as PTQ baselines need it.

        Args:
            observer: of activations, and of weights unless `weight_observer` is given.
        """

        def swap(tensor: TensorRule | None, observer: Part) -> TensorRule | None:
            if tensor is None or tensor.quantizer_class.for_layer_inputs:
                return tensor
            return replace(tensor, quantizer=quantizer, observer=observer)

        weight_observer = observer if weight_observer is None else weight_observer
        rules = {
            name: replace(rule, weight=swap(rule.weight, weight_observer), activation=swap(rule.activation, observer))
            for name, rule in self.rules.items()
        }
        return replace(self, rules=rules)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints and YAML; `load_policy` reads it back. Some options are left out at their defaults."""
        content = dataclasses.asdict(self)
        for rule in content["rules"].values():
            if rule["required"]:
                del rule["required"]
        for name in ("target", "quantize_outputs", "reduce_range"):
            if not content[name]:
                del content[name]
        return content
