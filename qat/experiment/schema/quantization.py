"""What is quantized, and how: `policy`, `quantizer`, `observer`, `progressive`, `oscillation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from qat.experiment.schema.nodes import Node, Off, OneOf, may_import, wrong
from qat.experiment.schema.values import (
    Bits,
    Preset,
    Says,
    Section,
    Share,
    ShareBelowOne,
    TargetName,
    Text,
)


class Part(Node):
    """A class of this library by its short name, or any other by its import path; alone, or as `_target_` with its options."""

    BASE: ClassVar[str]
    GIVEN: ClassVar = {
        "spec": "write bits and granularity in a rule of the policy",
        "shape": "leave it out",
        "observer": "write policy.weight.observer or policy.activation.observer",
    }

    @classmethod
    def find(cls, name: str, *key: str) -> Any:
        from qat.transform import class_names  # late: it waits for torch

        try:
            return class_names.resolve(name, getattr(class_names, cls.BASE))[0]
        except ValueError as error:
            raise wrong(f"{{key}}: {error}", *key) from None


class Observer(Part):
    """Finds the first range of a tensor from data (a file of configs/observer)."""

    BASE = "Observer"

    candidates: Annotated[int, Field(ge=1, le=100_000)] = 100
    """MSE and KL: how many ranges are tried"""
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    """Percentile: how many percent of the values lie inside the range"""
    momentum: ShareBelowOne = 0.9
    """MovingAverage: weight of the old average"""


class Estimator(Part):
    """The gradient that replaces that of rounding."""

    BASE = "Estimator"

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """DSQ: near 0 the gradient is that of a staircase, near 1 that of a line"""
    delta: Annotated[float, Field(ge=0, le=2)] = 0.001
    """EWGS: strength of the scaling; 0 is straight-through"""


class Quantizer(Part):
    """How the scale of a tensor is found and learned (a file of configs/quantizer)."""

    BASE = "Quantizer"

    intervals: Annotated[int, Field(ge=1, le=256)] = 16
    """LCQ: how many pieces the companding function has"""
    element: Literal["E4M3", "E5M2", "E3M2", "E2M3", "E2M1", "INT8"] = "E4M3"
    """FP8 and MX: the format of the elements"""
    axis: int | None = -1
    """FP8, MX and NVFP4: the axis of an input along which scales are shared; the rule sets it"""
    estimator: Annotated[Any, OneOf((), Estimator, null=True, text=True)] = None
    """the gradient that replaces that of rounding; null: straight-through"""


AnyQuantizer = Annotated[Any, OneOf((), Quantizer, text=True)]
AnyObserver = Annotated[Any, OneOf((), Observer, text=True)]


class Tensors(Section):
    """How the weights, or the activations, of every rule are quantized."""

    granularity: Literal["per_tensor", "per_channel", "per_group"] = "per_tensor"
    """which elements share a scale; activations can only be per_tensor"""
    group_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """per_group: how many weights share a scale"""
    symmetric: bool = True
    """true: zero is code 0; false: there is a zero-point"""
    narrow: bool = False
    """drop the lowest code, so that the codes are symmetric around 0"""
    signed: bool | None = None
    """whether codes may be negative; null: the graph or the data decide"""
    quantizer: AnyQuantizer = "LSQ"
    """how the scale is found and learned"""
    observer: AnyObserver = "MSE"
    """finds the first range"""


class TensorRule(Tensors):
    """How the weights, or the inputs, of the layers of one rule are quantized."""

    bits: Bits
    """bits of the codes"""


class Rule(Section):
    """How some layers are quantized. The last rule that matches a layer decides."""

    match: Text
    """the layers: a glob on names ('layer1.*'), a type (type:Linear), first or last"""
    weight: TensorRule | None = None
    """the weight; null leaves it in float"""
    activation: TensorRule | None = None
    """the input of the layer; null leaves it in float"""


class Policy(Section):
    """What is quantized, and to how many bits (a file of configs/policy)."""

    preset: Preset | None = None
    """bits of weights and activations; null: only the rules below count"""
    name: Text | None = None
    """name of the policy in reports; null: that of the preset"""
    residual_bits: Bits | None = 8
    """bits of tensors that flow through adds, concatenations and pools; null: as activations"""
    first_last_bits: Bits | None = 8
    """bits of the first and the last layer; null: as the other layers"""
    first_last_quantizer: Annotated[Any, OneOf((), Quantizer, null=True, text=True)] = None
    """quantizer of the first and the last layer, where that of the others has few bits only; null: the same"""
    weight: Tensors | None = None
    """options of the weights in every rule"""
    activation: Tensors | None = None
    """options of the activations in every rule"""
    embeddings: Bits | None = 8
    """transformer_... presets: bits of the weights of embeddings; null leaves them in float"""
    head: Bits | None = 8
    """transformer_... presets: bits of the weight of the last layer; null leaves it in float"""
    target: TargetName | None = None
    """the target of the file: what it cannot run is refused before training; null: any"""
    quantize_outputs: bool = False
    """quantize the outputs of the network, too, to residual_bits: for processors without floating point"""
    reduce_range: bool | None = None
    """7-bit weights where inputs have 8 bits, for exact fast sums on processors without VNNI; null: with preset w7a8"""
    rules: (
        Annotated[dict[str, Rule | None], Says("{NAME: {match: 'layer1.*', weight: {bits: 4}, activation: null}}")]
        | None
    ) = None
    """rules by name; later ones win over earlier ones, and null removes one"""

    @model_validator(mode="after")
    def _is_a_policy(self, info: ValidationInfo) -> Policy:
        if not may_import(info):
            return self
        from qat.transform import load_policy

        try:
            load_policy(self.model_dump(by_alias=True, exclude_unset=True, warnings=False))
        except ValueError as error:
            raise wrong(f"{{key}}: {error}") from None
        return self


Number = Annotated[float, Field(ge=0, le=1_000_000)]
OverTheFit = Annotated[
    Number | Annotated[list[Number], Field(min_length=2, max_length=2)],
    Says("a number, or [first, last] on a cosine over the fit"),
]
ShareOverTheFit = Annotated[
    Share | Annotated[list[Share], Field(min_length=2, max_length=2)],
    Says("a number from 0 to 1, or [first, last] on a cosine over the fit"),
]
BetweenZeroAndOne = Annotated[float, Field(gt=0, lt=1)]


class Oscillation(Node):
    """Counts weights that oscillate between two codes, and can dampen or freeze them (a file of configs/oscillation)."""

    TARGETS = ("qat.callbacks.OscillationControl",)

    momentum: BetweenZeroAndOne = 0.01
    """momentum of the frequencies: 0.01 looks back about 100 steps"""
    threshold: BetweenZeroAndOne = 0.005
    """frequency above which a weight is reported as oscillating"""
    max_bits: Bits = 4
    """weights of more bits are not counted"""
    freezing: ShareOverTheFit | None = None
    """frequency above which a weight is frozen; null: none is"""
    dampening: OverTheFit | None = None
    """weight of the dampening loss, the squared distance to the codes; null: no dampening"""

    def check_further(self, found: Any) -> None:
        self.build_once()


AnyOscillation = Annotated[Any, OneOf((Oscillation, Off))]


def stages_are_possible(stages: list[int] | Mapping[float, int]) -> Any:
    """Bits of the stages fall, and their shares of the run rise from 0.0."""
    bits = list(stages if isinstance(stages, list) else stages.values())
    shares = [0.0] if isinstance(stages, list) else list(stages)
    if not bits or bits != sorted(set(bits), reverse=True) or shares[0] != 0 or shares != sorted(shares):
        raise ValueError
    return stages


StageBits = Bits | Literal[32]  # 32: in float
Stages = Annotated[
    list[StageBits] | dict[ShareBelowOne, StageBits],
    AfterValidator(stages_are_possible),
    Says(
        "falling bits from 2 to 8 (32: in float), [8, 4, 2], or by rising shares of the run from 0.0 on, "
        "{0.0: 32, 0.3: 4, 0.6: 2}"
    ),
]
