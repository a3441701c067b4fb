"""What is quantized, and how: `policy`, `quantizer`, `observer`, `progressive`, `oscillation`, `ptq`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from qat.experiment.schema.nodes import Node, Off, OneOf, may_import, wrong
from qat.experiment.schema.values import (
    BatchSize,
    Bits,
    LearningRate,
    Preset,
    Says,
    Section,
    Seed,
    Share,
    ShareBelowOne,
    TargetName,
    Text,
)


class Part(Node):
    """A class of qat's by its short name, any other by its dotted one; alone, or as `_target_` with options beside it."""

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
    """First ranges from data (a file of configs/observer)."""

    BASE = "Observer"

    candidates: Annotated[int, Field(ge=1, le=100_000)] = 100
    """ranges that MSE and KL try"""
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    """of Percentile: share of the values in the range, in %"""
    momentum: ShareBelowOne = 0.9
    """of MovingAverage"""


class Estimator(Part):
    """The gradient of rounding."""

    BASE = "Estimator"

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """of DSQ: 0 is a staircase, 1 a line"""
    delta: Annotated[float, Field(ge=0, le=2)] = 0.001
    """of EWGS; 0: straight-through"""


class Quantizer(Part):
    """How a scale is learned (a file of configs/quantizer)."""

    BASE = "Quantizer"

    intervals: Annotated[int, Field(ge=1, le=256)] = 16
    """of LCQ's companding function"""
    element: Literal["E4M3", "E5M2", "E3M2", "E2M3", "E2M1", "INT8"] = "E4M3"
    """of FP8 and MX"""
    axis: int | None = -1
    """of FP8, MX and NVFP4 for inputs: along which scales are shared; the rule sets it"""
    estimator: Annotated[Any, OneOf((), Estimator, null=True, text=True)] = None
    """gradient of rounding; null: straight-through"""


AnyQuantizer = Annotated[Any, OneOf((), Quantizer, text=True)]
AnyObserver = Annotated[Any, OneOf((), Observer, text=True)]


class Tensors(Section):
    """How weights, or activations, are quantized in every rule."""

    granularity: Literal["per_tensor", "per_channel", "per_group"] = "per_tensor"
    """what shares a scale; activations: per_tensor"""
    group_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """weights that share a scale, for per_group"""
    symmetric: bool = True
    """zero is code 0; false: with a zero-point"""
    narrow: bool = False
    """drop the lowest code"""
    signed: bool | None = None
    """null: the graph or the data decide"""
    quantizer: AnyQuantizer = "LSQ"
    """how a scale is learned"""
    observer: AnyObserver = "MSE"
    """first range"""


class TensorRule(Tensors):
    """The same for the tensors of one rule."""

    bits: Bits
    """width of the codes"""


class Rule(Section):
    """Some layers; the last rule that matches a layer decides."""

    match: Text
    """which layers: names ('layer1.*'), a type (type:Linear), first or last"""
    weight: TensorRule | None = None
    """null: in float"""
    activation: TensorRule | None = None
    """input of the layer; null: in float"""


class Policy(Section):
    """Where quantization goes (a file of configs/policy)."""

    preset: Preset | None = None
    """bits of weights and activations; null: rules alone"""
    name: Text | None = None
    """in reports; null: that of the preset"""
    residual_bits: Bits | None = 8
    """tensors that flow through adds, concatenations and pools; null: as the activations"""
    first_last_bits: Bits | None = 8
    """the first and the last layer; null: as the others"""
    first_last_quantizer: Annotated[Any, OneOf((), Quantizer, null=True, text=True)] = None
    """beside a quantizer of few bits; null: as the others"""
    weight: Tensors | None = None
    """for every rule"""
    activation: Tensors | None = None
    """for every rule"""
    embeddings: Bits | None = 8
    """with a preset transformer_...: weights of embeddings; null: in float"""
    head: Bits | None = 8
    """the same for the last layer"""
    target: TargetName | None = None
    """what the file is for; what it cannot run is refused before training; null: any"""
    quantize_outputs: bool = False
    """what the network returns, too, to residual_bits: for processors without floats"""
    reduce_range: bool | None = None
    """7-bit weights where inputs have 8: exact fast sums on processors without VNNI; null: with preset w7a8"""
    rules: (
        Annotated[dict[str, Rule | None], Says("{NAME: {match: 'layer1.*', weight: {bits: 4}, activation: null}}")]
        | None
    ) = None
    """by name; later ones win, null removes one"""

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
    """Weights that swing between two codes (a file of configs/oscillation)."""

    TARGETS = ("qat.callbacks.OscillationControl",)

    momentum: BetweenZeroAndOne = 0.01
    """of the frequencies: 0.01 looks back about 100 steps"""
    threshold: BetweenZeroAndOne = 0.005
    """frequency above which a weight is reported as oscillating"""
    max_bits: Bits = 4
    """weights of more bits are not counted"""
    freezing: ShareOverTheFit | None = None
    """frequency above which a weight is frozen"""
    dampening: OverTheFit | None = None
    """weight of the squared distance to the codes in the loss"""

    def check_further(self, found: Any) -> None:
        self.build_once()


class Pass(Node):
    """A step of post-training quantization."""

    TARGETS = ("qat.ptq.",)

    observer: Annotated[Any, OneOf((), Observer, text=True)] = "MSE"
    """of Calibrate"""
    weight_observer: Annotated[Any, OneOf((), Observer, null=True, text=True)] = None
    """of Calibrate; null: as observer"""
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """of AdaRound, BRECQ: steps for each layer or block"""
    batch_size: BatchSize = 32
    """of AdaRound, BRECQ"""
    lr: LearningRate = 0.01
    """of AdaRound, BRECQ"""
    scale_lr: Annotated[float, Field(ge=0, le=100)] = 0.001
    """of BRECQ: of the activations' scales"""
    regularization: Annotated[float, Field(ge=0, le=1_000)] = 0.01
    """of AdaRound, BRECQ: weight of the rounding loss"""
    drop: Share = 0.0
    """of BRECQ: 0.5 is QDrop"""
    damping: Annotated[float, Field(gt=0, le=10)] = 0.01
    """of GPTQ: share of the Hessian's mean diagonal"""
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 20
    """of CrossLayerEqualization"""
    candidates: Annotated[int, Field(ge=1, le=100_000)] = 100
    """of HessianMSE"""
    alpha: Share = 0.5
    """of SmoothQuant: 0 moves nothing to the weights, 1 everything"""


class Outside(Node):
    """What another tool makes of the same float network."""

    TARGETS = ("qat.export.QuantizeStatic",)

    calibration: Literal["MinMax", "Entropy", "Percentile"] = "MinMax"
    """how ONNX Runtime finds ranges"""
    file: Text = "quantize_static.onnx"
    """name of the file"""


Passes = Annotated[
    list[Annotated[Any, OneOf((Pass,))]],
    Field(min_length=1),
    Says("a list of passes, [{_target_: qat.ptq.Calibrate, observer: MSE}]"),
]
Ladder = Annotated[dict[str, Passes], Field(min_length=1)] | Annotated[list[AnyObserver], Field(min_length=1)]


class Ptq(Node):
    """What QAT is compared with (a file of configs/ptq)."""

    TARGETS = ("qat.callbacks.PTQBaselines",)

    seed: Seed = 0
    """of the passes"""
    ladder: Annotated[
        Ladder, Says("rows and their passes, {NAME: [{_target_: qat.ptq.Calibrate}]}, or take ptq=none")
    ] = Field(default_factory=dict)
    """row of the report: its passes, in order"""
    outside: dict[str, Annotated[Any, OneOf((Outside,))]] | None = None
    """row of the report: another tool"""

    def check_further(self, found: Any) -> None:
        self.build_once()


AnyPtq = Annotated[Any, OneOf((Ptq, Off))]
AnyOscillation = Annotated[Any, OneOf((Oscillation, Off))]


def stages_are_possible(stages: list[int] | Mapping[float, int]) -> Any:
    """Bits of the stages fall."""
    bits = list(stages if isinstance(stages, list) else stages.values())
    if not bits or bits != sorted(set(bits), reverse=True):
        raise ValueError
    return stages


StageBits = Bits | Literal[32]  # 32: in float
Stages = Annotated[
    list[StageBits] | dict[ShareBelowOne, StageBits],
    AfterValidator(stages_are_possible),
    Says("falling bits from 2 to 8 (32: in float), [8, 4, 2], or {0.0: 32, 0.3: 4, 0.6: 2}"),
]
