"""How a run trains: `optim`, `float`, `distillation`, `freeze`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from qat.experiment.schema.nodes import Node, OneOf, wrong
from qat.experiment.schema.sources import Network, ResNetCifar, TorchvisionModel
from qat.experiment.schema.values import (
    Count,
    Epochs,
    LearningRate,
    Says,
    Section,
    Share,
    ShareBelowOne,
    Text,
    WeightDecay,
)


class Optimizer(Node):
    """An optimizer of torch."""

    TARGETS = ("torch.optim.",)
    GIVEN: ClassVar = {"params": "leave it out, the weights are meant"}

    lr: LearningRate = 1e-3
    """learning rate; inside `optim` leave it to `optim.lr`"""
    momentum: ShareBelowOne = 0.0
    """SGD and RMSprop: momentum"""
    dampening: Share = 0.0
    """SGD: dampening of the momentum"""
    nesterov: bool = False
    """SGD: Nesterov momentum"""
    weight_decay: WeightDecay = 0.0
    """weight decay; inside `optim` leave it to `optim.weight_decay`"""
    betas: (
        Annotated[list[ShareBelowOne], Field(min_length=2), Says("numbers from 0 to below 1, [0.9, 0.999]")] | None
    ) = None
    """Adam: momenta of the two moving averages"""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Adam: is added to the denominator"""
    maximize: Annotated[Literal[False], Says("false: losses are minimized")] = False
    """not available: losses are minimized"""

    def check_further(self, found: Any) -> None:
        if not self.partial_:
            raise wrong(
                "{key} has no parameters yet: add _partial_: true, as in {_target_: torch.optim.Adam, _partial_: true, "
                "lr: 1e-3}."
            )
        import torch  # late: only a configuration without earlier mistakes waits for it

        try:
            found([torch.nn.Parameter(torch.zeros(1))], **self.arguments())
        except (TypeError, ValueError, RuntimeError) as error:
            raise wrong(f"{{key}} cannot be built: {' '.join(str(error).split())}.") from None


class Schedule(Node):
    """A learning-rate schedule: a function of the optimizer and the number of steps."""

    @model_validator(mode="after")
    def _is_partial(self) -> Schedule:
        if not self.partial_:
            raise wrong("{key} has no optimizer yet: add _partial_: true.")
        return self


class WarmupCosine(Schedule):
    """Linear warm-up, then half a cosine."""

    TARGETS = ("qat.experiment.learning_rate.warmup_cosine",)
    GIVEN: ClassVar = {"optimizer": "leave it out", "steps": "write trainer.max_steps or trainer.max_epochs"}

    warmup: ShareBelowOne = 0.05
    """fraction of the steps in which the rate rises"""
    final: Share = 0.0
    """fraction of the highest rate that is left at the end"""


class Optim(Section):
    """Optimizer, learning rate and schedule (a file of configs/optim)."""

    lr: LearningRate
    """highest learning rate of the run"""
    weight_decay: WeightDecay | None = None
    """weight decay; learned scales have none"""
    optimizer: Annotated[Any, OneOf((Optimizer,))]
    """builds the optimizer from the parameters; any class of torch.optim, or your own"""
    schedule: Annotated[Any, OneOf((WarmupCosine,), Schedule, null=True)]
    """builds the schedule from optimizer and number of steps; it advances every step; null: a constant learning rate"""

    @model_validator(mode="after")
    def _counts(self) -> Optim:
        given = self.optimizer.arguments()
        for name in ("lr", "weight_decay"):
            own = getattr(self, name)
            if name in given and given[name] != own:
                raise wrong(
                    f"{{key}}={{value}} is not {name}={own} one level up, which would count for nothing: change only that one.",
                    "optimizer",
                    name,
                )
            if name not in given and own and isinstance(self.optimizer, Optimizer):
                instead = "leave it in" if name == "lr" else f"leave it in, or write {name}=null one level up, too"
                raise wrong(
                    f"{{key}} is missing, and {name}={own} would count for nothing: {instead}.", "optimizer", name
                )
        return self


class FloatTraining(Section):
    """How the float network is trained if no weights are given."""

    epochs: Epochs
    """passes over the training images; 0: the network is not trained, because its weights are given"""
    max_steps: Count | None = None
    """ends the training earlier, for quick runs; null: no limit"""
    label_smoothing: ShareBelowOne
    """label smoothing of the training loss"""
    optim: Optim
    """optimizer and learning rate; the same keys as `optim` below"""


class Distillation(Section):
    """A teacher, the float network or another one: loss = (1 - weight) * cross entropy + weight * distillation + features."""

    weight: Share
    """weight of the teacher in the loss; 0: no distillation"""
    temperature: Annotated[float, Field(ge=0.01, le=10)]
    """temperature of the teacher's probabilities; above 1, small networks were seen to collapse"""
    teacher: Annotated[Any, OneOf((Network, ResNetCifar, TorchvisionModel), Network, null=True)]
    """another network as teacher, {_target_: ..., checkpoint: PATH}; null: the float network"""
    features: list[Text]
    """layers whose normalized features are learned, too: STUDENT_LAYER:TEACHER_LAYER, or one name for both"""
    feature_weight: Annotated[float, Field(gt=0, le=1_000)]
    """weight of the distance between the features"""


class Freeze(Section):
    """After which fraction of the run something is frozen (0.8: for its last fifth)."""

    batch_norm: Share | None
    """freezes the running statistics of BatchNorm; its gain and shift still learn; null: never"""
    scales: Share | None
    """freezes everything that quantizers learn; null: never"""
