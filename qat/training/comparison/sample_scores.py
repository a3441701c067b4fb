"""What a metric was given, sample by sample, as scores that can be compared in pairs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from qat.contexts import quiet
from qat.report.judgement.paired import FEW, SampleScores, jackknife, resamples
from qat.training.lightning.private_api import set_update_count

UNITS = 1000
"""At most about so many units are resampled; of a larger test set, each has several samples."""
PATIENCE = 5.0
"""Seconds after which no further resample of a slow metric is computed, if there are `ENOUGH`."""
ENOUGH = 200
TOLERANCE = 1e-4
"""Relative difference below which a recomputed value is the measured one."""

Given = list[tuple[Any, ...]]
"""The arguments of each update of a metric: tensors or lists whose first dimension counts samples."""
State = dict[str, Any]


def correct_samples(outputs: Sequence[Any], targets: Sequence[Any], value: float) -> NDArray[np.bool_] | None:
    """Which samples are right, bool (n,), if `value` is the share of right decisions; else None.

    Args:
        outputs: of each batch: logits (N, classes), or one number or class for each sample.
        targets: of each batch: classes (N,).
        value: what was measured.
    """
    found = []
    for output, target in zip(outputs, targets, strict=True):
        if not _are_decisions(output, target):
            return None
        decided = output.argmax(1) if output.ndim == 2 and output.shape[1] > 1 else output.flatten()
        if decided.is_floating_point():  # a probability or a logit
            decided = decided > (0.5 if decided.min() >= 0 and decided.max() <= 1 else 0.0)
        found.append((decided.cpu().long() == target.cpu().long()).numpy())
    correct = np.concatenate(found) if found else np.zeros(0, bool)
    return correct if len(correct) and _same(float(correct.mean()), value) else None


def _are_decisions(output: Any, target: Any) -> bool:
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or len(output) != len(target):
        return False
    return target.ndim == 1 and not target.is_floating_point() and output.ndim <= 2


def known_losses(outputs: Sequence[Any], targets: Sequence[Any], value: float) -> NDArray[np.float64] | None:
    """The loss of each sample, float (n,), if `value` is the mean of a common loss; else None."""
    for loss in (F.l1_loss, F.mse_loss, F.cross_entropy):
        try:
            with quiet():
                of_batches = [_losses(loss, *batch) for batch in zip(outputs, targets, strict=True)]
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            continue  # not a loss of these
        if of_batches and _same(float(np.concatenate(of_batches).mean()), value, size=0.0):
            return np.concatenate(of_batches)
    return None


def _losses(loss: Callable[..., Tensor], output: Tensor, target: Tensor) -> NDArray[np.float64]:
    if loss is not F.cross_entropy and output.shape != target.shape:
        raise ValueError("shapes differ, so torch would broadcast")
    found = loss(output.detach().cpu().float(), target.detach().cpu(), reduction="none")
    return np.asarray(found.double().reshape(len(output), -1).mean(1).numpy())


def batch_scores(logged: Sequence[tuple[float, int]], value: float) -> SampleScores | None:
    """Scores of a value that is the mean of what was logged with each batch: (value, samples)."""
    values, weights = (
        (np.array(column, float) for column in zip(*logged, strict=True)) if logged else (np.zeros(0),) * 2
    )
    if len(values) < 2 or not weights.sum():
        return None
    if not _same(float(np.average(values, weights=weights)), value, size=float(np.abs(values).mean())):
        return None
    return SampleScores(values=values, weights=weights, units="batches")


def function_scores(
    function: Callable[[Any, Any], Any], outputs: Tensor, targets: Tensor, value: float
) -> SampleScores | None:
    """Resampled values of a function of (outputs, targets), with at most `UNITS` units of samples; None if it has none."""
    n = len(outputs)
    starts = range(0, n, -(-n // UNITS))
    samples = [torch.arange(start, min(start + starts.step, n)) for start in starts]

    def compute(drawn: NDArray[np.float64]) -> float:
        chosen = torch.cat([samples[i] for i in np.repeat(np.arange(len(samples)), drawn.astype(int))])
        return float(function(outputs[chosen], targets[chosen]))

    if len(samples) < 2 or not math.isfinite(value):
        return None
    try:
        return _replicates(compute, len(samples))
    except Exception:  # a function of the user's may refuse samples, as if all are of one class
        return None


def metric_scores(metric: Metric, given: Given, value: float) -> SampleScores | None:
    """Resampled values of a torchmetrics object; None if its states cannot be resampled.

    Most metrics are functions of sums over the samples, so a resample is a weighted sum of the states of units of samples.
    Metrics that keep samples in lists get those that were drawn. The states of all units together must give `value`; if they do
    not, the metric is of another kind.

    Args:
        metric: is not changed.
        given: arguments of its updates.
        value: what it computed from them.
    """
    fresh = metric.clone().cpu()
    try:
        with quiet():
            units = list(_states_of_units(fresh, given))
            if len(units) < 2 or not _same(_compute(fresh, units, np.ones(len(units))), value):
                return None
            return _replicates(lambda drawn: _compute(fresh, units, drawn), len(units))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None


def _states_of_units(metric: Metric, given: Given) -> Iterator[State]:
    step = -(-sum(len(arguments[0]) for arguments in given) // UNITS)
    for arguments in given:
        for start in range(0, len(arguments[0]), step):
            metric.reset()
            metric.update(*(argument[start : start + step] for argument in arguments))
            yield {k: list(v) if isinstance(v, list) else v.clone() for k, v in metric.metric_state.items()}


def _compute(metric: Metric, units: Sequence[State], drawn: NDArray[np.float64]) -> float:
    """The value of the units, each as often as it was drawn."""
    metric.reset()
    for name, example in units[0].items():
        if isinstance(example, list):
            value: Any = [x for unit, times in zip(units, drawn, strict=True) for x in unit[name] * int(times)]
        else:
            states = torch.stack([unit[name] for unit in units]).double()
            value = torch.tensordot(torch.from_numpy(drawn), states, dims=1).to(example.dtype)
        setattr(metric, name, value)
    set_update_count(metric, 1)
    return float(metric.compute())


def _replicates(compute: Callable[[NDArray[np.float64]], float], units: int) -> SampleScores | None:
    if units < FEW:
        everything = np.ones(units)
        values = jackknife(compute(everything), np.array([compute(everything - one) for one in np.eye(units)]))
        return SampleScores(values=values, weights=everything) if np.isfinite(values).all() else None
    found: list[float] = []
    begin = time.perf_counter()
    for drawn in resamples(units):
        if len(found) >= ENOUGH and time.perf_counter() - begin > PATIENCE:
            break
        found.append(compute(drawn))
    return SampleScores(replicates=np.array(found)) if np.isfinite(found).all() else None


def _same(value: float, other: float, size: float = 1.0) -> bool:
    """Whether two values are one, but for rounding. size: of what they are sums of; what cancels leaves rounding errors."""
    return math.isclose(value, other, rel_tol=TOLERANCE, abs_tol=1e-6 * size)
