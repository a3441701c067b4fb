"""Knowledge distillation: the float network teaches its quantized copy (Hinton et al. 2015)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Distillation:
    """loss = (1 - weight) * cross entropy + weight * T**2 * KL(teacher / T || student / T), per image.

    The teacher is a copy that is no submodule of anything: checkpoints and optimizers do not see it.

    Args:
        teacher: a network; its outputs, in evaluation mode, are logits (N, classes).
        weight: share of the teacher, in (0, 1].
        temperature: 1.0 teaches the probabilities as they are. Above 1 small networks were seen to collapse.

    Raises:
        ValueError: weight or temperature is out of range.
    """

    def __init__(self, teacher: nn.Module, weight: float = 0.5, temperature: float = 1.0) -> None:
        if not 0 < weight <= 1:
            raise ValueError(f"distillation.weight={weight} is not in (0, 1]: write 0.5, or 0 for no distillation.")
        if not temperature > 0:
            raise ValueError(f"distillation.temperature={temperature} is not positive: write 1.0.")
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.weight = weight
        self.temperature = temperature

    def __call__(self, images: Tensor, logits: Tensor, cross_entropy: Tensor) -> Tensor:
        """The loss of a batch. logits: the student's, (N, classes). cross_entropy: scalar."""
        self.teacher.to(images.device)
        with torch.no_grad():
            taught = F.log_softmax(self.teacher(images) / self.temperature, dim=1)
        learned = F.log_softmax(logits / self.temperature, dim=1)
        divergence = F.kl_div(learned, taught, reduction="batchmean", log_target=True)
        return (1 - self.weight) * cross_entropy + self.weight * self.temperature**2 * divergence
