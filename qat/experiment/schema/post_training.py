"""The schema of `ptq`: post-training quantization, which QAT is compared with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from qat.experiment.schema.nodes import Node, Off, OneOf
from qat.experiment.schema.quantization import AnyObserver, Observer
from qat.experiment.schema.values import BatchSize, InFolder, LearningRate, Says, Seed, Share


class Pass(Node):
    """A step of post-training quantization."""

    TARGETS = ("qat.ptq.",)

    observer: Annotated[Any, OneOf((), Observer, text=True)] = "MSE"
    """Calibrate: finds the ranges of activations and weights"""
    weight_observer: Annotated[Any, OneOf((), Observer, null=True, text=True)] = None
    """Calibrate: finds the ranges of weights; null: the same as observer"""
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """AdaRound and BRECQ: optimizer steps for each layer or block"""
    batch_size: BatchSize = 32
    """AdaRound and BRECQ: images in a step"""
    lr: LearningRate = 0.01
    """AdaRound and BRECQ: learning rate of the rounding"""
    scale_lr: Annotated[float, Field(ge=0, le=100)] = 0.001
    """BRECQ: learning rate of the scales of activations"""
    regularization: Annotated[float, Field(ge=0, le=1_000)] = 0.01
    """AdaRound and BRECQ: weight of the rounding loss"""
    drop: Share = 0.0
    """BRECQ: probability with which an activation stays in float; 0.5 is QDrop"""
    damping: Annotated[float, Field(gt=0, le=10)] = 0.01
    """GPTQ: what is added to the Hessian's diagonal, as a fraction of its mean"""
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 20
    """CrossLayerEqualization: how often the pairs of layers are equalized at most"""
    candidates: Annotated[int, Field(ge=1, le=100_000)] = 100
    """HessianMSE: how many ranges are tried"""
    alpha: Share = 0.5
    """SmoothQuant: 0 moves nothing to the weights, 1 everything"""


class Outside(Node):
    """Quantization of the same float network by another tool."""

    TARGETS = ("qat.export.QuantizeStatic",)

    calibration: Literal["MinMax", "Entropy", "Percentile"] = "MinMax"
    """how ONNX Runtime finds ranges"""
    file: InFolder = "quantize_static.onnx"
    """name of the file that is written"""


Passes = Annotated[
    list[Annotated[Any, OneOf((Pass,))]],
    Field(min_length=1),
    Says("a list of passes, [{_target_: qat.ptq.Calibrate, observer: MSE}]"),
]
Ladder = Annotated[dict[str, Passes], Field(min_length=1)] | Annotated[list[AnyObserver], Field(min_length=1)]


class Ptq(Node):
    """The post-training quantization that QAT is compared with (a file of configs/ptq)."""

    TARGETS = ("qat.callbacks.PTQBaselines",)

    seed: Seed = 0
    """seed of the passes' random numbers"""
    ladder: Annotated[
        Ladder, Says("rows and their passes, {NAME: [{_target_: qat.ptq.Calibrate}]}, or take ptq=none")
    ] = Field(default_factory=dict)
    """row of the report -> its passes, in the order in which they are applied"""
    outside: dict[str, Annotated[Any, OneOf((Outside,))]] | None = None
    """row of the report -> another tool"""

    def check_further(self, found: Any) -> None:
        self.build_once()


AnyPtq = Annotated[Any, OneOf((Ptq, Off))]
