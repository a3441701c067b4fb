"""What each target can run: it makes the choices that a policy leaves open, and refuses those that it cannot run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from torch import nn

from qat.messages import instead_of
from qat.quantizers import Dynamic, FP8Static, LookupTableQuantizer, ScaledFloat
from qat.transform.rule import Rule
from qat.transform.tensor_rule import TensorRule


class Kernel(Enum):
    """What a target has for a layer.

    INTEGER: sums of codes. FLOAT: products of dequantized codes, enough where the layer returns floats. FLOAT_WEIGHT: only a
    float layer. NONE: nothing.
    """

    INTEGER = auto()
    FLOAT = auto()
    FLOAT_WEIGHT = auto()
    NONE = auto()


@dataclass(frozen=True)
class TargetGrids:
    """The grids of a target.

    Attributes:
        name: of the target; `qat.export.TARGETS` has how its files are written and run.
        zero_is_code_0: activations are int8 codes of which 0 means 0.0. Codes of unsigned 8-bit grids, and of affine grids, do
            not fit: a rule that leaves the sign to the graph gets a signed grid.
        dynamic: whether it has layers whose inputs are quantized on the range of each batch or token.
        float_layers: whether it has layers with integer weights that compute in float: weight-only, or scaled per group.
        lookup_tables: whether it has activations that are looked up in a table.
        fp8_inputs: whether it has inputs of layers in FP8 with a static scale.
        kernel: what it has for a layer, whatever the rule.
    """

    name: str
    zero_is_code_0: bool = False
    dynamic: bool = True
    float_layers: bool = True
    lookup_tables: bool = True
    fp8_inputs: bool = False
    kernel: Callable[[nn.Module], Kernel] = lambda layer: Kernel.INTEGER

    def check_layers(self, model: nn.Module, rules: Mapping[str, Rule], makes_codes: Collection[str]) -> None:
        """Refuse to quantize what this target cannot compute, or would compute in float between codes.

        Args:
            model: the model with the layers.
            rules: layer -> its rule.
            makes_codes: layers whose results are quantized.

        Raises:
            ValueError: it has no kernel for a layer.
        """
        for name, rule in rules.items():
            kernel = self.kernel(model.get_submodule(name))
            suffices = kernel is Kernel.INTEGER or (kernel is Kernel.FLOAT and name not in makes_codes)
            if rule.weight is not None and not suffices:
                self._refuse(name, model.get_submodule(name), kernel)

    def _refuse(self, name: str, layer: nn.Module, kernel: Kernel) -> None:
        what = f"layer {name!r} ({type(layer).__name__}, groups={getattr(layer, 'groups', 1)})"
        if kernel is Kernel.NONE:
            raise ValueError(f"target={self.name} has no kernel for {what}, not even in float: write target: portable.")
        raise ValueError(
            f"target={self.name} has no integer kernel for {what}: add a rule that leaves it in float, rules: "
            f"{{{name.replace('.', '_')}: {{match: {name}, weight: null, activation: null}}}}."
        )

    def activation(self, rule: TensorRule) -> TensorRule:
        """The rule of an activation, with what it leaves open chosen for this target."""
        return replace(rule, signed=True) if self.zero_is_code_0 and rule.signed is None and rule.bits == 8 else rule

    def faults(self, name: str, rule: Rule) -> Iterable[str]:
        """Sentences about what this target cannot run in a rule, which say what to write instead. name: the rule's name."""
        weight, activation = rule.weight, rule.activation
        who = f"target={self.name} cannot run rule {name!r}"
        formats = [t for t in (weight, activation) if t is not None and issubclass(t.quantizer_class, ScaledFloat)]
        takes_input = activation is None or (self.fp8_inputs and issubclass(activation.quantizer_class, FP8Static))
        if formats and not (self.float_layers and (takes_input or formats[-1] is weight)):
            what = formats[-1].quantizer_class.__name__
            remedy = "nvfp4_weights (weights alone)" if self.float_layers else "w8a8"
            yield f"{who}, which is in a floating-point format ({what}): write a preset such as {remedy}."
        if weight is not None and not self.float_layers:
            if activation is None and rule.match != EMBEDDINGS:
                yield (
                    f"{who}, which computes in float with integer weights: write a preset such as w{weight.bits}a8, or give it "
                    "activation: {bits: 8}."
                )
            if weight.granularity == "per_group":
                yield f"{who}, which scales weights per group: write weight: {{granularity: per_channel, group_size: null}}."
        in_integers = activation is not None and weight is not None and weight.granularity != "per_group"
        if weight is not None and not weight.symmetric and (self.zero_is_code_0 or in_integers):
            yield f"{who}, whose weights have a zero-point: write weight: {{symmetric: true}}."
        if activation is not None:
            yield from self.faults_of_activation(who, activation)

    def faults_of_activation(self, who: str, activation: TensorRule) -> Iterable[str]:
        """The same for an activation alone. who: the beginning of the sentence."""
        if not self.dynamic and issubclass(activation.quantizer_class, Dynamic):
            yield f"{who}, which quantizes on the range of each batch: write a preset such as w8a8, without _dynamic."
        elif not self.lookup_tables and issubclass(activation.quantizer_class, LookupTableQuantizer):
            name = activation.quantizer_class.__name__
            yield f"{who}, whose activations are looked up in a table ({name}): write activation: {{quantizer: LSQ}}."
        elif self.zero_is_code_0 and not activation.symmetric:
            yield f"{who}, whose activations have a zero-point: write activation: {{symmetric: true}}."
        elif self.zero_is_code_0 and activation.bits == 8 and activation.signed is False:
            yield (
                f"{who}, whose unsigned 8-bit codes do not fit int8: write activation: {{signed: null}}, which leaves the sign "
                "to the target."
            )


EMBEDDINGS = "type:Embedding"
"""The match of a rule for embeddings alone, whose inputs are indices: their rows are codes that every target can look up."""
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _in_executorch(layer: nn.Module) -> Kernel:
    if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
        return Kernel.NONE
    return Kernel.FLOAT if isinstance(layer, TRANSPOSED) and layer.groups > 1 else Kernel.INTEGER


def _in_litert(layer: nn.Module) -> Kernel:
    if isinstance(layer, TRANSPOSED):
        return Kernel.FLOAT if layer.groups == 1 else Kernel.NONE
    return Kernel.FLOAT_WEIGHT if isinstance(layer, nn.Conv3d) else Kernel.INTEGER


TARGET_GRIDS = {
    grids.name: grids
    for grids in (
        TargetGrids("onnxruntime", fp8_inputs=True),
        TargetGrids("portable"),
        TargetGrids("openvino"),
        TargetGrids("tensorrt", zero_is_code_0=True, dynamic=False, float_layers=False, lookup_tables=False),
        TargetGrids("pt2e"),
        TargetGrids("executorch", dynamic=False, float_layers=False, kernel=_in_executorch),
        TargetGrids("litert", dynamic=False, float_layers=False, kernel=_in_litert),
    )
}
"""Name of a target -> what it can run."""


def target_grids(name: str) -> TargetGrids:
    """The grids of a target.

    Raises:
        ValueError: there is no such target.
    """
    if not isinstance(name, str) or name not in TARGET_GRIDS:
        raise ValueError(f"target={name} does not exist: {instead_of(name, TARGET_GRIDS)}")
    return TARGET_GRIDS[name]
