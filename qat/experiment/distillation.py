"""Knowledge distillation: the float network teaches its quantized copy (Hinton et al. 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.capture import copy_model


class Distillation:
    """loss = (1 - weight) * cross entropy + weight * T**2 * KL(teacher / T || student / T), per image.

    The teacher is a copy, and not a submodule of anything: checkpoints and optimizers do not see it.

    Args:
        teacher: a network whose outputs in evaluation mode are logits (N, classes).
        weight: weight of the teacher in the loss, in (0, 1].
        temperature: T; 1.0 teaches the probabilities as they are. Above 1, small networks were seen to collapse.

    Raises:
        ValueError: weight or temperature is out of range.
    """

    def __init__(self, teacher: nn.Module, weight: float = 0.5, temperature: float = 1.0) -> None:
        if not 0 < weight <= 1:
            raise ValueError(f"distillation.weight={weight} is not in (0, 1]: write 0.5, or 0 for no distillation.")
        if not temperature > 0:
            raise ValueError(f"distillation.temperature={temperature} is not positive: write 1.0.")
        self.teacher = copy_model(teacher).eval().requires_grad_(False)
        self.weight = weight
        self.temperature = temperature

    def __call__(self, images: Tensor, logits: Tensor, cross_entropy: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            images: network inputs, float32 (N, C, H, W).
            logits: outputs of the student for them, (N, classes).
            cross_entropy: that of the student with the labels, a scalar.
        """
        self.teacher.to(images.device)
        with torch.no_grad():
            teacher_log_probabilities = F.log_softmax(self.teacher(images) / self.temperature, dim=1)
        log_probabilities = F.log_softmax(logits / self.temperature, dim=1)
        divergence = F.kl_div(log_probabilities, teacher_log_probabilities, reduction="batchmean", log_target=True)
        return (1 - self.weight) * cross_entropy + self.weight * self.temperature**2 * divergence
