"""From a float model to a prepared one: a function for each `--method`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.capture import copy_model
from qat.cli.errors import UsageError, usage_errors
from qat.cli.sources.data import Batch, Data
from qat.transform import Policy, calibrate, load_policy, prepare
from qat.transform.batches import call_model

CALIBRATION = 512
"""Samples that calibrate, at most."""
DEFAULT_POLICIES = {"post_training": "w8a8", "quantization_aware": "w8a8", "dynamic": "w8_dynamic", "weight_only": "w8"}
Say = Callable[[str], None]
"""Shows a line of progress."""


@dataclass(frozen=True)
class Training:
    """How long and how fast quantization-aware training goes. steps: None counts epochs."""

    steps: int | None
    epochs: int
    learning_rate: float


def policy_for(method: str, text: str | None, target: str | None = None) -> Policy:
    """The policy of a method: as given, or its default.

    Args:
        method: its name.
        text: what `--policy` says.
        target: what `--target` says.

    Raises:
        UsageError: there is no such policy, it is one of another method, or the target cannot run it.
    """
    with usage_errors():
        of_target = {} if target is None else {"target": target}
        policy = load_policy(text or DEFAULT_POLICIES[method], **of_target)
    rules = [rule.activation for rule in policy.rules.values() if rule.activation is not None]
    dynamic = any(rule.is_dynamic for rule in rules)
    kind = "dynamic" if dynamic else "static" if rules else "weight_only"
    wanted = {"dynamic": "dynamic", "weight_only": "weight_only"}.get(method, "static")
    if kind != wanted and not (method == "quantization_aware" and kind == "weight_only"):
        what = {
            "static": "quantizes activations on calibrated ranges",
            "dynamic": "quantizes activations on the range of each batch",
            "weight_only": "quantizes weights alone",
        }
        fits = {"static": "w8a8 or w4a8", "dynamic": "w8_dynamic or w8_dynamic_per_token", "weight_only": "w8 or w4"}
        other = {"static": "post_training", "dynamic": "dynamic", "weight_only": "weight_only"}[kind]
        raise UsageError(
            f"--policy {text} {what[kind]}: for --method {method} write {fits[wanted]}, or --method {other}."
        )
    return policy


def post_training(network: nn.Module, policy: Policy, data: Data, best: bool) -> nn.Module:
    """Calibrated ranges; with `best`, learned rounding, too."""
    from qat.ptq import AdaRound, BiasCorrection, Calibrate, Pass, apply_passes

    passes: list[Pass] = [Calibrate("MSE")]
    if best:
        passes.append(AdaRound())
    elif not data.noise:  # which says nothing of biases
        passes.append(BiasCorrection())
    with usage_errors():  # of a policy, or data, that the model does not fit
        return apply_passes(passes, network, policy, data.train.inputs())


def calibrated(network: nn.Module, policy: Policy, data: Data) -> nn.Module:
    """A prepared copy with ranges from data."""
    inputs = data.train.inputs(CALIBRATION)
    first = inputs[0]
    with usage_errors():  # of a policy, or data, that the model does not fit
        prepared = prepare(network, policy, first if isinstance(first, Tensor | dict) else tuple(first)).eval()
        calibrate(prepared, inputs)
    return prepared


def quantization_aware(network: nn.Module, policy: Policy, data: Data, training: Training, say: Say) -> nn.Module:
    """Trained with its quantizers: on labels if they are classes, and always towards what the float network says."""
    teacher = copy_model(network).eval()
    prepared = calibrated(network, policy, data)
    return trained(prepared, teacher, data, training, say)


def trained(prepared: nn.Module, teacher: nn.Module | None, data: Data, training: Training, say: Say) -> nn.Module:
    """A prepared network, trained in place. BatchNorm keeps its statistics.

    Args:
        prepared: with ranges.
        teacher: the float network. None: labels alone.
        data: batches for training.
        training: how long.
        say: shows progress.
    """
    steps = training.steps if training.steps is not None else training.epochs * sum(1 for _ in data.train)
    optimizer = torch.optim.AdamW(prepared.parameters(), lr=training.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
    )
    shown = time.monotonic()
    prepared.eval()
    for step, batch in enumerate(_endless(data), start=1):
        if step > steps:
            break
        output = _output(prepared, batch)
        other_classes = data.classes is not None and output.ndim == 2 and output.shape[1] != data.classes
        taught = None if teacher is None else _without_gradients(teacher, batch)
        loss = _loss(output, taught, None if other_classes else batch.labels)
        if not bool(loss.isfinite()):
            raise ValueError(f"the loss is {loss.item()} in step {step}: write a smaller --learning-rate.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step == 1 or step == steps or time.monotonic() - shown > 5:
            shown = time.monotonic()
            say(f"step {step} of {steps}, loss {loss.item():.4g}")
    return prepared.eval()


def _endless(data: Data) -> Iterator[Batch]:
    while True:
        yield from data.train


def _output(network: nn.Module, batch: Batch) -> Tensor:
    from qat.torch_private import tree_leaves

    found: Any = next(x for x in tree_leaves(call_model(network, batch.inputs)) if isinstance(x, Tensor))
    return found


@torch.no_grad()
def _without_gradients(teacher: nn.Module, batch: Batch) -> Tensor:
    return _output(teacher, batch)


def _loss(output: Tensor, wanted: Tensor | None, labels: Tensor | None) -> Tensor:
    """Cross-entropy with the labels, if they are classes, and distillation (Hinton et al. 2015); else the squared error."""
    are_scores = output.ndim == 2 and output.shape[1] > 1
    are_classes = labels is not None and not labels.is_floating_point() and labels.ndim == 1
    if not are_classes and wanted is None and (labels is None or not labels.is_floating_point()):
        raise ValueError(
            "a checkpoint is trained further on labels alone: give data with labels, or leave out --steps."
        )
    terms = []
    if wanted is not None:
        if are_scores:
            terms.append(F.kl_div(output.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean"))
        else:
            terms.append(F.mse_loss(output, wanted) / wanted.square().mean().clamp_min(1e-12))
    if are_scores and are_classes and labels is not None:
        terms.append(F.cross_entropy(output, labels))
    elif labels is not None and labels.is_floating_point():
        terms.append(F.mse_loss(output, labels.reshape(output.shape).to(output.dtype)))
    return torch.stack(terms).sum()
