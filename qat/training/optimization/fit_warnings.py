"""Warnings about a fit that is about to begin."""

from __future__ import annotations

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from qat.training.lightning.monitors import is_in_evaluation_mode
from qat.training.optimization.parameter_groups import parameters_without_optimizer


def warn_before_fit(network: nn.Module, optimizers: list[Optimizer]) -> None:
    """Warn of learned scales that no optimizer updates, and of a network in evaluation mode."""
    if forgotten := parameters_without_optimizer(network, optimizers):
        rank_zero_warn(
            f"{len(forgotten)} learned scales are in no optimizer ({forgotten[0]}, ...) and keep their calibrated values: "
            "collect parameters inside configure_optimizers, from self.parameters()."
        )
    if is_in_evaluation_mode(network):
        rank_zero_warn(
            "the network is in evaluation mode, and Lightning leaves it there: BatchNorm keeps the statistics of the float "
            "network, which quantized training soon leaves behind, and the fit may diverge. Call train() on it before "
            "the fit."
        )
