"""What was logged so far in an unfinished epoch: Lightning's means, the states of metrics, and the last values."""

from __future__ import annotations

import builtins
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from qat.training.lightning.private_api import (
    ResultMetadata,
    ResultMetric,
    ResultSync,
    get_update_count,
    keep_results_at_next_batch,
    set_callback_metrics,
    set_update_count,
    train_results,
    validation_results,
)

LOG_ARGUMENTS = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph"),
    *("add_dataloader_idx", "dataloader_idx", "metric_attribute"),
)
"""Arguments of `self.log` that are plain values."""
BUILTIN_REDUCTIONS = (max, min, sum)
"""Python's functions that people pass as `reduce_fx` instead of torch's of the same name; Lightning tells the two apart."""
REDUCTION_STATE = ("value", "cumulated_batch_size")
"""Attributes that hold the state of a mean, a sum, ..."""


def record_logged_metrics(trainer: L.Trainer, module: L.LightningModule, in_epoch: bool) -> dict[str, Any]:
    """What was logged so far, as tensors and plain values.

    Args:
        trainer: the Trainer of the fit.
        module: the user's LightningModule.
        in_epoch: whether a train epoch is under way; otherwise only the last values are recorded.
    """
    latest = {name: value.detach().cpu().clone() for name, value in trainer.callback_metrics.items()}
    if not in_epoch:
        return {"latest": latest, "logged": {}, "metrics": {}}
    return {
        "latest": latest,
        "logged": {key: _record_result(result) for key, result in train_results(trainer).items()},
        "metrics": {name: _record_metric(metric) for name, metric in _metrics_in_use(trainer, module).items()},
    }


def restore_logged_metrics(trainer: L.Trainer, module: L.LightningModule, record: dict[str, Any]) -> None:
    """Restore what `record_logged_metrics` recorded in a fit that continues from there."""
    set_callback_metrics(trainer, {name: value.to(module.device) for name, value in record["latest"].items()})
    modules = dict(module.named_modules())
    for name, state in record["metrics"].items():
        if isinstance(metric := modules.get(name), Metric):
            _restore_metric(metric, state)
    results = train_results(trainer)
    for key, logged in record["logged"].items():
        if not logged["parts"] and logged["options"]["metric_attribute"] not in modules:
            continue
        results[key] = _restore_result(trainer, logged, modules).to(module.device)
    if record["logged"]:
        keep_results_at_next_batch(trainer)


def _record_result(result: ResultMetric) -> dict[str, Any]:
    meta = result.meta
    state = {name: getattr(result, name, None) for name in REDUCTION_STATE}
    return {
        "options": {name: getattr(meta, name) for name in LOG_ARGUMENTS},
        "reduce": [meta.reduce_fx in BUILTIN_REDUCTIONS, meta.reduce_fx.__name__],
        "sync": [meta.sync.should, meta.sync.rank_zero_only],
        "parts": {name: value.cpu().clone() for name, value in state.items() if isinstance(value, Tensor)},
        "updates": get_update_count(result),
        "has_reset": result.has_reset,
    }


def _restore_result(trainer: L.Trainer, logged: dict[str, Any], modules: dict[str, Any]) -> ResultMetric:
    is_builtin, reduction = logged["reduce"]
    meta = ResultMetadata(**logged["options"], reduce_fx=getattr(builtins if is_builtin else torch, reduction))
    should_sync, rank_zero_only = logged["sync"]
    meta.sync = ResultSync(_should=should_sync, fn=trainer.strategy.reduce, rank_zero_only=rank_zero_only)
    result = ResultMetric(meta, is_tensor=bool(logged["parts"]))
    for name, value in logged["parts"].items():
        setattr(result, name, value.clone())
    if not logged["parts"]:
        result.value = modules[logged["options"]["metric_attribute"]]
    set_update_count(result, logged["updates"])
    result.has_reset = logged["has_reset"]
    return result


def _metrics_in_use(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Metric]:
    """Metrics updated in this epoch, without those that validation logs: it resets them after a checkpoint."""
    of_validation = {id(result.value) for result in validation_results(trainer).values()}
    metrics = {name: m for name, m in module.named_modules() if isinstance(m, Metric)}
    return {name: m for name, m in metrics.items() if m.update_called and id(m) not in of_validation}


def _record_metric(metric: Metric) -> dict[str, Any]:
    return {
        "updates": get_update_count(metric),
        "states": {
            name: [x.cpu() for x in value] if isinstance(value, list) else value.cpu().clone()
            for name, value in metric.metric_state.items()
        },
    }


def _restore_metric(metric: Metric, record: dict[str, Any]) -> None:
    for name, value in record["states"].items():
        moved = [x.to(metric.device) for x in value] if isinstance(value, list) else value.to(metric.device)
        setattr(metric, name, moved)
    set_update_count(metric, record["updates"])
