"""One reading of a report's metric: its value on the test set, and what each sample contributes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from qat.contexts import quiet
from qat.report.judgement.paired import SampleScores
from qat.torch_private import tree_leaves
from qat.training.comparison.batch_parts import first_output
from qat.training.comparison.chance import value_by_chance
from qat.training.comparison.metric_value import value_of
from qat.training.comparison.report_metric import ReportMetric
from qat.training.comparison.sample_scores import (
    Given,
    batch_scores,
    correct_samples,
    function_scores,
    known_losses,
    metric_scores,
)
from qat.transform.batches import Call, is_usable, not_finite_sentence

MOST_KEPT = 50_000_000
"""Numbers of outputs and targets that are kept; of more, there are no scores by sample."""


@dataclass(eq=False)
class Reading(L.Callback):
    """One evaluation, watched: outputs, targets, what was logged, and what the torchmetrics object was given.

    Attributes:
        found: the torchmetrics object in the module whose value is logged; only looked for if its path is not known.
        path: its name in the module.
        seen: whether the network ran at all.
        batches: how many there were.
        count: how many samples, as far as the first tensor of a batch tells; 0: nothing does.
    """

    metric: ReportMetric
    outputs: list[Any] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    logged: list[tuple[float, int]] = field(default_factory=list)
    given: Given = field(default_factory=list)
    found: Metric | None = None
    path: str = ""
    seen: bool = False
    batches: int = 0
    count: int = 0
    _kept: int = 0
    _where: str = "a test batch"
    _last: Any = None
    _busy: bool = False

    def attach(self, module: L.LightningModule, network: nn.Module) -> Any:
        """Watch a copy of the user's module. Returns the handle of the hook on `network`, to be removed."""
        self.path = self.metric.path
        if isinstance(self.metric.source, str):
            vars(module)["log"] = self._watched_log(module, module.log)
        if self.path:
            found: Any = module.get_submodule(self.path)
            self.found = found
            owner = module.get_submodule(self.path.rpartition(".")[0])
            watched = owner if isinstance(owner, MetricCollection) else found
            for method in ("update", "forward"):
                vars(watched)[method] = self._watched_call(getattr(watched, method))
        return network.register_forward_hook(self._note_output)

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        output, target = first_output(self._last), self.metric.targets(batch)
        self._last = None
        if not isinstance(output, Tensor) or target is None:
            return
        output = _decisions(output, self._needs_decisions).detach().cpu()
        target = target.detach().cpu() if isinstance(target, Tensor) else target
        if isinstance(target, Tensor) and output.ndim == target.ndim + 1 and output.shape[-1] == 1:
            output = output.squeeze(-1)  # one number for each sample, written as a column
        if self._has_room(output, target):
            self.outputs.append(output)
            self.targets.append(target)

    def samples(self) -> tuple[list[Any], list[Any]]:
        """Outputs and targets of each batch; empty if not all of them were kept."""
        return (self.outputs, self.targets) if self._kept <= MOST_KEPT else ([], [])

    def compute(self) -> tuple[float, dict[str, float]]:
        """The value of a metric that is not logged, and those of the others of its collection."""
        if not self.outputs:
            raise ValueError(
                f"{self.metric.own_name!r} needs outputs and targets, and a batch has no targets that are found: say where "
                "they are, Report(metric=..., targets=lambda batch: batch['y'])."
            )
        return value_of(self.metric.source, self.outputs, self.targets, self.metric.own_name)

    def scores(self, value: float) -> SampleScores | None:
        """What can be compared in pairs; None if nothing is known but the value."""
        outputs, targets = self.samples()
        info, main = self.metric.info, self.metric.main
        if not math.isfinite(value):
            return None
        if info is not None and info.percent and (correct := correct_samples(outputs, targets, value)) is not None:
            return SampleScores(correct=correct)
        found: SampleScores | None = None
        if isinstance(main, Metric):
            found = metric_scores(main, list(zip(outputs, targets, strict=True)), value)
        elif self.found is not None:
            found = metric_scores(self.found, self.given, value)
        elif not isinstance(main, str):
            found = function_scores(main, torch.cat(outputs), torch.cat(targets), value) if outputs else None
        if found is None and (losses := known_losses(outputs, targets, value)) is not None:
            found = SampleScores(values=losses, weights=losses * 0 + 1)
        return found or batch_scores(self.logged, value)

    def chance(self) -> float | None:
        """The value of these outputs in random order; None if it cannot be computed."""
        outputs, targets = self.samples()
        arguments = list(zip(outputs, targets, strict=True)) or self.given
        return value_by_chance(self.metric, self.found, arguments)

    def identify(self, value: float) -> ReportMetric:
        """The metric with its name and direction, if this is its first reading."""
        correct = 0 < value < 1 and correct_samples(*self.samples(), value) is not None
        return self.metric.identified(value, self.found, self.path, correct)

    def on_test_batch_start(self, _trainer: Any, _pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        self._where, self.batches = f"test batch {batch_idx}", self.batches + 1
        self.count += next((len(x) for x in tree_leaves(batch) if isinstance(x, Tensor) and x.ndim), 0)

    def _note_output(self, _network: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for name, part in Call(inputs, {}).float_parts:
            if not bool(is_usable(part)):
                raise ValueError(not_finite_sentence(self._where, name))
        self._last, self.seen = output, True

    def _has_room(self, *tensors: Any) -> bool:
        self._kept += sum(x.numel() for x in tensors if isinstance(x, Tensor))
        if self._kept > MOST_KEPT and isinstance(self.metric.source, str):
            self.outputs.clear()
            self.targets.clear()
            return False
        return True

    def _watched_log(self, module: L.LightningModule, log: Callable[..., None]) -> Callable[..., None]:
        def watched(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
            if name == self.metric.source:
                if self.found is None:
                    self._find(module, value)
                if not isinstance(value, Metric):
                    size = kwargs.get("batch_size") or (len(self._last) if isinstance(self._last, Tensor) else 1)
                    self.logged.append((float(value), size))
            log(name, value, *args, **kwargs)

        return watched

    def _find(self, module: nn.Module, value: Any) -> None:
        """Find the torchmetrics object that is logged, or whose value is."""
        for path, part in module.named_modules():
            is_it = part is value
            if not isinstance(part, Metric):
                continue
            if is_it or (not isinstance(value, Metric) and _computes(part, float(value))):
                self.found, self.path = part, path
                return

    def _watched_call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            outermost, self._busy = not self._busy, True
            try:
                result = call(*args, **kwargs)
            finally:
                self._busy = not outermost
            if outermost:
                self._note_given(*args, *kwargs.values())
            return result

        return watched

    @property
    def _is_accuracy(self) -> bool:
        """Whether the metric is known to be an accuracy, so that decisions say all of the outputs."""
        return self.metric.info is not None and self.metric.info.percent

    @property
    def _needs_decisions(self) -> bool:
        """Whether it is an accuracy that decisions are enough for; a function or another object gets the outputs."""
        source = self.metric.source
        is_plain = isinstance(source, MulticlassAccuracy) and source.top_k == 1
        return self._is_accuracy and (isinstance(source, str) or is_plain)

    def _note_given(self, *arguments: Any) -> None:
        is_plain = getattr(self.found, "average", "") == "micro" and getattr(self.found, "top_k", 1) == 1
        if not (self._is_accuracy and is_plain) and self._has_room(*arguments):
            self.given.append(tuple(x.detach().cpu() if isinstance(x, Tensor) else x for x in arguments))


def _computes(metric: Metric, value: float) -> bool:
    """Whether a metric that has been updated now computes `value`."""
    if not metric.update_called:
        return False
    try:
        with quiet():
            computed = metric.compute()
    except (RuntimeError, ValueError):  # it needs more samples
        return False
    return isinstance(computed, Tensor) and computed.numel() == 1 and float(computed) == value


def _decisions(output: Tensor, wanted: bool) -> Tensor:
    """The decided classes of outputs (samples, classes), which need less memory; any other output as it is."""
    return output.argmax(1) if wanted and output.ndim == 2 and output.shape[1] > 1 else output
