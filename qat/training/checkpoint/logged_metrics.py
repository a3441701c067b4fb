"""What was logged so far in an epoch that is not over: Lightning's means, the states of metrics, the last values."""

from __future__ import annotations

import builtins
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import Tensor
from torchmetrics import Metric

OPTIONS = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph"),
    *("add_dataloader_idx", "dataloader_idx", "metric_attribute"),
)
"""Arguments of `self.log` that are plain values."""
BUILTIN = (max, min, sum)
"""What people write for torch's functions of these names; Lightning tells the two apart."""
PARTS = ("value", "cumulated_batch_size")
"""The state of a mean, a sum, ..."""


def collect(trainer: L.Trainer, module: L.LightningModule, in_epoch: bool) -> dict[str, Any]:
    """Tensors and plain values. in_epoch: whether a train epoch is under way; afterwards only the last values count."""
    latest = {name: value.detach().cpu().clone() for name, value in trainer.callback_metrics.items()}
    if not in_epoch:
        return {"latest": latest, "logged": {}, "metrics": {}}
    results = trainer.fit_loop.epoch_loop._results
    return {
        "latest": latest,
        "logged": {key: _plain(result) for key, result in results.items()},
        "metrics": {name: _state(metric) for name, metric in _metrics(trainer, module).items()},
    }


def put_back(trainer: L.Trainer, module: L.LightningModule, found: dict[str, Any]) -> None:
    """What `collect` gave, into a fit that goes on from there."""
    trainer._logger_connector._callback_metrics.update(
        {name: value.to(module.device) for name, value in found["latest"].items()}
    )
    modules = dict(module.named_modules())
    for name, state in found["metrics"].items():
        if isinstance(metric := modules.get(name), Metric):
            _restore(metric, state)
    results = trainer.fit_loop.epoch_loop._results
    for key, logged in found["logged"].items():
        if not logged["parts"] and logged["options"]["metric_attribute"] not in modules:
            continue
        results[key] = _result(trainer, logged, modules).to(module.device)
    if found["logged"]:  # Lightning would take the next batch for the first of an epoch, and begin its means anew
        trainer._logger_connector._first_loop_iter = True


def _plain(result: _ResultMetric) -> dict[str, Any]:
    meta = result.meta
    return {
        "options": {name: getattr(meta, name) for name in OPTIONS},
        "reduce": [meta.reduce_fx in BUILTIN, meta.reduce_fx.__name__],
        "sync": [meta.sync.should, meta.sync.rank_zero_only],
        "parts": {part: getattr(result, part).cpu().clone() for part in PARTS if _has(result, part)},
        "updates": result._update_count,
        "has_reset": result.has_reset,
    }


def _has(result: _ResultMetric, part: str) -> bool:
    return isinstance(getattr(result, part, None), Tensor)


def _result(trainer: L.Trainer, logged: dict[str, Any], modules: dict[str, Any]) -> _ResultMetric:
    builtin, reduce = logged["reduce"]
    meta = _Metadata(**logged["options"], reduce_fx=getattr(builtins if builtin else torch, reduce))
    should, rank_zero_only = logged["sync"]
    meta.sync = _Sync(_should=should, fn=trainer.strategy.reduce, rank_zero_only=rank_zero_only)
    result = _ResultMetric(meta, is_tensor=bool(logged["parts"]))
    for part, value in logged["parts"].items():
        setattr(result, part, value.clone())
    if not logged["parts"]:
        result.value = modules[logged["options"]["metric_attribute"]]
    result._update_count = logged["updates"]
    result.has_reset = logged["has_reset"]
    return result


def _metrics(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Metric]:
    """Those that have seen something in this epoch, but not what validation logs: it resets its own after a checkpoint."""
    validation = {id(result.value) for result in trainer.fit_loop.epoch_loop.val_loop._results.values()}
    named = {name: m for name, m in module.named_modules() if isinstance(m, Metric)}
    return {name: m for name, m in named.items() if m.update_called and id(m) not in validation}


def _state(metric: Metric) -> dict[str, Any]:
    return {
        "updates": metric._update_count,
        "states": {
            name: [x.cpu() for x in value] if isinstance(value, list) else value.cpu().clone()
            for name, value in metric.metric_state.items()
        },
    }


def _restore(metric: Metric, state: dict[str, Any]) -> None:
    for name, value in state["states"].items():
        moved = [x.to(metric.device) for x in value] if isinstance(value, list) else value.to(metric.device)
        setattr(metric, name, moved)
    metric._update_count = state["updates"]
    metric._computed = None
