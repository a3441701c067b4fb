"""Learned scales updated by an optimizer of another kind than the weights, and yet one optimizer for everybody else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

MARK = "quantizers"
"""Key of a parameter group that holds quantizer parameters."""

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""From parameters to their optimizer: `functools.partial(torch.optim.Adam, lr=1e-3)`."""


class CombinedOptimizer(Optimizer):
    """Mixed into the class of a user's optimizer by `attach_scale_optimizer`: marked groups are updated by `scales_optimizer`.

    Groups and state are kept in one place, here. So schedules, gradient clipping, GradScaler and checkpoints see one
    optimizer, with a closure that runs once.
    """

    scales_optimizer: Optimizer

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each, after the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if MARK not in group]
            super().step()
        finally:
            self.param_groups = groups
        self.scales_optimizer.param_groups = [group for group in groups if MARK in group]
        self.scales_optimizer.state = self.state
        self.scales_optimizer.step()
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # torch would run hooks around this step, too: twice

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In load_state_dict: each kind completes its own groups alone, as the other's lack what it looks for."""
        groups = state["param_groups"]
        self.scales_optimizer.__setstate__({**state, "param_groups": [g for g in groups if MARK in g]})
        super().__setstate__({**state, "param_groups": [g for g in groups if MARK not in g]})
        self.param_groups = groups


def attach_scale_optimizer(optimizer: Optimizer, scales_optimizer: Optimizer) -> None:
    """From now on `optimizer`, which is still being built, is `CombinedOptimizer`. In place, under the name of its class.

    Raises:
        ValueError: LBFGS, which calls its closure several times a step; a fused one, which GradScaler leaves to unscale its
            gradients itself, those of the other being forgotten.
    """
    for one in (optimizer, scales_optimizer):
        if isinstance(one, LBFGS) or one.defaults.get("fused"):
            name = f"a fused {type(one).__name__}" if one.defaults.get("fused") else "LBFGS"
            raise ValueError(
                f"{name} cannot share its steps with a quantizer_optimizer: use another optimizer, or quantizer_lr_ratio."
            )
    if isinstance(optimizer, CombinedOptimizer):
        return
    kind = type(optimizer)
    optimizer.__class__ = type(kind.__name__, (CombinedOptimizer, kind), {})
    optimizer.scales_optimizer = scales_optimizer  # type: ignore[attr-defined]


def check_optimizer_factory(make: Any) -> None:
    """It makes an optimizer.

    Raises:
        ValueError: it does not.
    """
    how = (
        "write functools.partial(torch.optim.Adam, lr=1e-3), or in a recipe {_target_: torch.optim.Adam, _partial_: true, "
        "lr: 1e-3}."
    )
    try:
        made = make([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ValueError(f"quantizer_optimizer cannot be built ({error}): {how}") from error
    if not isinstance(made, Optimizer):
        raise ValueError(f"quantizer_optimizer={make!r} makes no optimizer: {how}")
