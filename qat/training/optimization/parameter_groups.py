"""Learned scales in a parameter group of their own, whatever the user's `configure_optimizers` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from qat.training.optimization.scale_optimizer import MARK, OptimizerFactory, attach_scale_optimizer
from qat.transform import quantizers


def quantizer_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What quantizers learn, by name."""
    return {
        f"{name}.{of}": parameter
        for name, quantizer in quantizers(model).items()
        for of, parameter in quantizer.named_parameters(recurse=False)
        if parameter.requires_grad
    }


@contextmanager
def split_parameter_groups(model: nn.Module, lr_ratio: float, make: OptimizerFactory | None = None) -> Iterator[None]:
    """Inside the `with`, every optimizer that is built puts quantizer parameters into groups of their own.

    Such a group has the options of the group it comes from, except weight_decay = 0 and lr times `lr_ratio`. With `make`, it
    has the options of the optimizer that this makes, except weight_decay = 0, and is updated by that one. Schedulers that
    are built inside see the final groups. (A scheduler that is given an absolute rate, as OneCycleLR is, applies it to
    every group.) LBFGS allows one group only and keeps all parameters in it.
    """
    learned = list(quantizer_parameters(model).values())
    own = {id(parameter) for parameter in learned}
    apart = make(learned) if make is not None and learned else None
    original = Optimizer.add_param_group

    def add_param_group(self: Optimizer, group: dict[str, Any]) -> None:
        whole = isinstance(self, LBFGS) and apart is None  # it has one group
        if MARK in group or isinstance(group.get("params"), set) or whole:
            original(self, group)
            return
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        scales = [p for p in params if id(_parameter(p)) in own]
        others = [p for p in params if id(_parameter(p)) not in own]
        if others or not scales:
            original(self, {**group, "params": others})
        if scales:
            special: dict[str, Any] = {**(apart.param_groups[0] if apart else group), "params": scales, MARK: True}
            special["name"] = _name(self, group)
            if "weight_decay" in {**self.defaults, **special}:
                special["weight_decay"] = 0.0
            if apart is not None:
                attach_scale_optimizer(self, apart)
            elif "lr" in {**self.defaults, **group}:
                special["lr"] = {**self.defaults, **group}["lr"] * lr_ratio
            original(self, special)

    Optimizer.add_param_group = add_param_group  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Optimizer.add_param_group = original  # type: ignore[method-assign]


def scale_found_learning_rate(optimizers: list[Optimizer], lr_ratio: float, found: float | None) -> None:
    """Groups of quantizer parameters that a learning rate finder has given the rate `found`, as all others, get their own."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if MARK in group and group["lr"] == found:
                group["lr"] *= lr_ratio


def parameters_without_optimizer(model: nn.Module, optimizers: list[Optimizer]) -> list[str]:
    """Names of the quantizer parameters that no optimizer updates."""
    updated = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    return [name for name, parameter in quantizer_parameters(model).items() if id(parameter) not in updated]


def _name(optimizer: Optimizer, group: dict[str, Any]) -> str:
    """For LearningRateMonitor, which wants names of groups to be unique."""
    if "name" in group:
        return f"{group['name']} scales"
    marked = sum(MARK in other for other in optimizer.param_groups)
    return f"scales{marked + 1}" if marked else "scales"


def _parameter(entry: torch.Tensor | tuple[str, torch.Tensor]) -> torch.Tensor:
    """Groups hold parameters, or (name, parameter) pairs."""
    return entry[1] if isinstance(entry, tuple) else entry
