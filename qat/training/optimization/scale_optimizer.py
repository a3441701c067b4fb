"""An optimizer for the learned scales inside the optimizer of the weights: from outside the two are one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from qat.training.lightning.private_api import without_step_hooks

QUANTIZER_GROUP = "quantizers"
"""Key that marks a parameter group of quantizer parameters."""

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""From parameters to their optimizer: `functools.partial(torch.optim.Adam, lr=1e-3)`."""


class CombinedOptimizer(Optimizer):
    """Base class that `attach_scale_optimizer` adds to a user's optimizer: `scale_optimizer` updates the marked groups.

    This optimizer holds all groups and all state. So schedules, gradient clipping, GradScaler and checkpoints see one
    optimizer, with a closure that runs once.
    """

    scale_optimizer: Optimizer

    @without_step_hooks
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step of both optimizers, after the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if QUANTIZER_GROUP not in group]
            super().step()
        finally:
            self.param_groups = groups
        self.scale_optimizer.param_groups = [group for group in groups if QUANTIZER_GROUP in group]
        self.scale_optimizer.state = self.state
        self.scale_optimizer.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by load_state_dict: let each optimizer complete its own groups; those of the other lack its options."""
        groups = state["param_groups"]
        self.scale_optimizer.__setstate__({**state, "param_groups": [g for g in groups if QUANTIZER_GROUP in g]})
        super().__setstate__({**state, "param_groups": [g for g in groups if QUANTIZER_GROUP not in g]})
        self.param_groups = groups


def attach_scale_optimizer(optimizer: Optimizer, scale_optimizer: Optimizer) -> None:
    """Make `optimizer`, which is still being built, a `CombinedOptimizer`: in place, under the name of its class.

    Raises:
        ValueError: one of the two is LBFGS, which calls its closure several times a step, or fused: a fused optimizer
            unscales its gradients itself, so GradScaler would leave those of the other scaled.
    """
    for candidate in (optimizer, scale_optimizer):
        if isinstance(candidate, LBFGS) or candidate.defaults.get("fused"):
            name = f"a fused {type(candidate).__name__}" if candidate.defaults.get("fused") else "LBFGS"
            raise ValueError(
                f"{name} cannot share its steps with a quantizer_optimizer: use another optimizer, or quantizer_lr_ratio."
            )
    if isinstance(optimizer, CombinedOptimizer):
        return
    user_class = type(optimizer)
    optimizer.__class__ = type(user_class.__name__, (CombinedOptimizer, user_class), {})
    optimizer.scale_optimizer = scale_optimizer  # type: ignore[attr-defined]


def check_optimizer_factory(factory: Any) -> None:
    """Check that `factory` makes an optimizer.

    Raises:
        ValueError: it does not.
    """
    remedy = (
        "write functools.partial(torch.optim.Adam, lr=1e-3), or in a recipe {_target_: torch.optim.Adam, _partial_: true, "
        "lr: 1e-3}."
    )
    try:
        made = factory([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ValueError(f"quantizer_optimizer cannot be built ({error}): {remedy}") from error
    if not isinstance(made, Optimizer):
        raise ValueError(f"quantizer_optimizer={factory!r} makes no optimizer: {remedy}")
