"""Learned scales in parameter groups of their own, whatever the user's `configure_optimizers` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from qat.training.optimization.relative_steps import step_relatively
from qat.training.optimization.scale_optimizer import QUANTIZER_GROUP, OptimizerFactory, attach_scale_optimizer
from qat.training.optimization.scheduler_values import values_for_split_groups
from qat.transform import quantizers


def quantizer_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that quantizers learn, by name."""
    return {
        f"{quantizer_name}.{name}": parameter
        for quantizer_name, quantizer in quantizers(model).items()
        for name, parameter in quantizer.named_parameters(recurse=False)
        if parameter.requires_grad
    }


@contextmanager
def split_parameter_groups(
    model: nn.Module, lr_ratio: float, scale_optimizer_factory: OptimizerFactory | None = None
) -> Iterator[None]:
    """Inside the `with` block, every optimizer that is built puts quantizer parameters into groups of their own.

    Such a group has the options of the group that it comes from, except `weight_decay = 0` and lr times `lr_ratio`. With a
    factory it has the options of the optimizer that the factory makes, except `weight_decay = 0`, and that optimizer updates
    it. Adam and its relatives step the scales in proportion to their size (`relative_steps`).

    Schedulers that are built inside see the final groups. (A scheduler with an absolute learning rate, such as OneCycleLR,
    applies it to every group; of a list of them, scales get that of the group that they come from.) LBFGS allows one group
    only and keeps all parameters in it.

    Args:
        model: with quantizers.
        lr_ratio: learning rate of the scales over that of the group that they come from.
        scale_optimizer_factory: makes the optimizer of the scales. None: the user's optimizer updates them.

    Raises:
        ValueError: the two optimizers cannot share a step.
    """
    named = quantizer_parameters(model)
    learned = list(named.values())
    scale_ids = {id(parameter) for name, parameter in named.items() if name.endswith(".scale")}
    learned_ids = {id(parameter) for parameter in learned}
    scale_optimizer = scale_optimizer_factory(learned) if scale_optimizer_factory is not None and learned else None
    original = Optimizer.add_param_group

    def add_param_group(self: Optimizer, group: dict[str, Any]) -> None:
        has_one_group = isinstance(self, LBFGS) and scale_optimizer is None
        if QUANTIZER_GROUP in group or isinstance(group.get("params"), set) or has_one_group:
            original(self, group)
            return
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        scales = [p for p in params if id(_parameter(p)) in learned_ids]
        others = [p for p in params if id(_parameter(p)) not in learned_ids]
        if others or not scales:
            original(self, {**group, "params": others})
        if scales:
            options = _scale_options(self, group, lr_ratio, scale_optimizer)
            if scale_optimizer is not None:
                attach_scale_optimizer(self, scale_optimizer)
            original(self, {**options, "params": scales, QUANTIZER_GROUP: True})
            if scale_optimizer is None:
                step_relatively(self, [p for p in map(_parameter, scales) if id(p) in scale_ids])

    Optimizer.add_param_group = add_param_group  # type: ignore[method-assign, assignment]
    try:
        with values_for_split_groups():
            yield
    finally:
        Optimizer.add_param_group = original  # type: ignore[method-assign]


def parameters_without_optimizer(model: nn.Module, optimizers: list[Optimizer]) -> list[str]:
    """Names of the quantizer parameters that no optimizer updates."""
    updated = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    return [name for name, parameter in quantizer_parameters(model).items() if id(parameter) not in updated]


def _scale_options(
    optimizer: Optimizer, group: dict[str, Any], lr_ratio: float, scale_optimizer: Optimizer | None
) -> dict[str, Any]:
    """The options of the scales that are taken out of `group` of `optimizer`."""
    options = dict(scale_optimizer.param_groups[0] if scale_optimizer is not None else group)
    options["name"] = _scale_group_name(optimizer, group)
    if "weight_decay" in {**optimizer.defaults, **options}:
        options["weight_decay"] = 0.0
    learning_rate = {**optimizer.defaults, **group}.get("lr")
    if scale_optimizer is None and learning_rate is not None:
        options["lr"] = learning_rate * lr_ratio
    return options


def _scale_group_name(optimizer: Optimizer, group: dict[str, Any]) -> str:
    """A unique name, which LearningRateMonitor needs."""
    if "name" in group:
        return f"{group['name']} scales"
    scale_groups = sum(QUANTIZER_GROUP in other for other in optimizer.param_groups)
    return f"scales{scale_groups + 1}" if scale_groups else "scales"


def _parameter(entry: torch.Tensor | tuple[str, torch.Tensor]) -> torch.Tensor:
    """The parameter of an entry of a group, which is a parameter or a pair (name, parameter)."""
    return entry[1] if isinstance(entry, tuple) else entry
