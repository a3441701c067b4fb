"""Knowledge distillation: the float network, or another one, teaches the quantized network (Hinton et al. 2015)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.capture import copy_model
from qat.experiment.feature_hints import FeatureHints, watching
from qat.messages import type_of

COLDEST = 0.01
"""Below this temperature the logits overflow float32."""
HOTTEST = 10.0
"""Above this temperature all classes are about as likely, and the loss says nothing."""


class Distillation:
    """loss = (1 - weight) * cross entropy + weight * T**2 * KL(teacher / T || student / T) + features, per image.

    The teacher is a copy, and not a submodule of anything: checkpoints and optimizers do not see it. `hints` is a module,
    because its projections learn.

    Args:
        teacher: a network whose outputs in evaluation mode are logits (N, classes).
        weight: weight of the teacher in the loss, in [0, 1]; 0 with hints alone.
        temperature: T; 1.0 teaches the probabilities as they are. Above 1, small networks were seen to collapse; above 10 it is
            refused.
        hints: features that the student learns as well.
        hint_weight: their weight.

    Raises:
        ValueError: a number is out of range, or a weight of the teacher is NaN or infinite.
    """

    def __init__(
        self,
        teacher: nn.Module,
        weight: float = 0.5,
        temperature: float = 1.0,
        hints: FeatureHints | None = None,
        hint_weight: float = 1.0,
    ) -> None:
        if not _is_number(weight) or not 0 <= weight <= 1 or not (weight or hints):
            raise ValueError(f"distillation.weight={weight!r} is not in (0, 1]: write 0.5, or 0 for no distillation.")
        if not _is_number(temperature) or not COLDEST <= temperature <= HOTTEST:
            raise ValueError(
                f"distillation.temperature={temperature!r} is not in [{COLDEST:g}, {HOTTEST:g}], above which all classes are "
                "alike: write 1.0."
            )
        if not _is_number(hint_weight) or not 0 < hint_weight < math.inf:
            raise ValueError(f"distillation.feature_weight={hint_weight!r} is not above 0: write 1.0.")
        if broken := [name for name, p in teacher.named_parameters() if not bool(p.isfinite().all())]:
            raise ValueError(
                f"the teacher of distillation, {type_of(teacher)}, has NaN or infinity in {broken[0]!r}: give it the weights "
                "of a training that did not diverge."
            )
        self.teacher = copy_model(teacher).eval().requires_grad_(False)
        self.weight = weight
        self.temperature = temperature
        self.hints, self.hint_weight = hints, hint_weight

    def watch(self, network: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
        """Inside the `with`, the features of `network`, which `__call__` needs."""
        return nullcontext({}) if self.hints is None else watching(network, [mine for mine, _ in self.hints.pairs])

    def __call__(
        self, images: Tensor, logits: Tensor, cross_entropy: Tensor, features: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            images: network inputs (N, C, H, W).
            logits: outputs of the student for them, (N, classes).
            cross_entropy: that of the student with the labels, a scalar.
            features: of the student, by the names of their layers; needed if there are hints.

        Raises:
            ValueError: the teacher knows other classes, or returns no tensor.
        """
        self.teacher.to(images.device)
        theirs = [] if self.hints is None else [name for _, name in self.hints.pairs]
        with torch.no_grad(), watching(self.teacher, theirs) as of_teacher:
            taught = self.teacher(images.float())
        if not isinstance(taught, Tensor):
            raise ValueError(
                f"the teacher returns {type_of(taught)}: give one that returns logits, a tensor (N, classes)."
            )
        taught = taught.to(logits.dtype)  # it is float32, whatever the precision of the fit
        if taught.shape != logits.shape:
            raise ValueError(
                f"the teacher gives {tuple(taught.shape)}, the network {tuple(logits.shape)}: use a teacher of the same "
                "classes."
            )
        loss = (1 - self.weight) * cross_entropy
        if self.weight:
            taught = F.log_softmax(taught / self.temperature, dim=1)
            learned = F.log_softmax(logits / self.temperature, dim=1)
            divergence = F.kl_div(learned, taught, reduction="batchmean", log_target=True)
            loss = loss + self.weight * self.temperature**2 * divergence
        if self.hints is not None:
            loss = loss + self.hint_weight * self.hints(features or {}, of_teacher)
        return loss


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
