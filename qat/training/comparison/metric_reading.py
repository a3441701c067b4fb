"""The metric of a report: from what the user names or gives to a value and its samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MultilabelAccuracy

from qat.contexts import quiet
from qat.report.judgement.paired import SampleScores
from qat.report.results.metric import ACCURACY_NAMES, MetricInfo, Mode
from qat.training.comparison.batch_parts import batch_targets, first_output
from qat.training.comparison.metric_value import value_of
from qat.training.comparison.sample_scores import (
    Given,
    batch_scores,
    correct_samples,
    function_scores,
    known_losses,
    metric_scores,
)
from qat.transform.batches import Call, is_usable, not_finite_sentence

MetricSource = str | Metric | MetricCollection | Callable[[Any, Any], Any]
"""The name under which test_step logs it, a torchmetrics object, or a function of (outputs, targets)."""
MOST_KEPT = 50_000_000
"""Numbers of outputs and targets that are kept; of more, there are no scores by sample."""
ACCURACIES = (BinaryAccuracy, MulticlassAccuracy, MultilabelAccuracy)


@dataclass(frozen=True)
class ReportMetric:
    """What a report measures.

    Args:
        source: what the user gave.
        mode: which way is better; None: as torchmetrics says, or that of an accuracy.
        name: in tables; None: its own.
        unit: in tables.
        targets: from a batch to the targets.
        path: of the torchmetrics object in the LightningModule that `source` names; "": there is none.
        info: what it is called; None before `identified`.
    """

    source: MetricSource
    mode: Mode | None = None
    name: str | None = None
    unit: str | None = None
    targets: Callable[[Any], Any] = batch_targets
    path: str = ""
    info: MetricInfo | None = None

    def __post_init__(self) -> None:
        if self.mode not in (None, "min", "max"):
            raise ValueError(
                f"Report(mode={self.mode!r}) is not a direction: write 'min' if lower is better, else 'max'."
            )
        is_empty = isinstance(self.source, MetricCollection) and not len(self.source)
        if is_empty or (not isinstance(self.source, str | Metric) and not callable(self.source)):
            given = "MetricCollection({})" if is_empty else repr(self.source)
            raise ValueError(
                f"Report(metric={given}) is not a metric: give the name under which test_step logs it, a torchmetrics object, "
                "or a function of (outputs, targets)."
            )

    @property
    def own_name(self) -> str:
        """Its name without the test set in front."""
        if isinstance(self.source, str):
            return self.source.removeprefix("test/").removeprefix("test_")
        main = self.main
        return type(main).__name__ if isinstance(main, Metric) else getattr(main, "__name__", type(main).__name__)

    @property
    def main(self) -> Any:
        """The source itself; of a collection its first metric."""
        return next(iter(self.source.values())) if isinstance(self.source, MetricCollection) else self.source

    def identified(self, reading: Reading, value: float) -> ReportMetric:
        """This metric with `info` and `path`, from a first reading.

        Raises:
            ValueError: nothing tells which way is better.
        """
        found = self.main if isinstance(self.main, Metric) else reading.found
        known = getattr(found, "higher_is_better", None)
        correct = 0 < value < 1 and correct_samples(*reading.samples(), value) is not None
        is_named = self.own_name.rpartition("/")[2].lower() in ACCURACY_NAMES
        is_accuracy = isinstance(found, ACCURACIES) or correct or (found is None and is_named)
        mode = self.mode or (None if known is None else "max" if known else "min") or ("max" if is_accuracy else None)
        if mode is None:
            raise ValueError(
                f"which way is {self.own_name!r} better? Write Report(metric=..., mode='min') if lower is better, as of an "
                "error, or mode='max'."
            )
        percent = is_accuracy and mode == "max" and self.unit in (None, "%") and 0 <= value <= 1
        name = self.name or ("top-1" if self.own_name == "top1" else self.own_name)
        info = MetricInfo(
            name, "%" if percent else self.unit or "", mode, percent, errors="binomial" if percent else ""
        )
        return replace(self, info=info, path=reading.path)


@dataclass(eq=False)
class Reading(L.Callback):
    """One evaluation, watched: outputs, targets, what was logged, and what the torchmetrics object was given.

    Attributes:
        found: the torchmetrics object in the module whose value is logged; only looked for if its path is not known.
        path: its name in the module.
        seen: whether the network ran at all.
    """

    metric: ReportMetric
    outputs: list[Any] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    logged: list[tuple[float, int]] = field(default_factory=list)
    given: Given = field(default_factory=list)
    found: Metric | None = None
    path: str = ""
    seen: bool = False
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
        output = _decisions(output, self._is_accuracy).detach().cpu()
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
        """The value of these outputs drawn by lot among the samples; None if it cannot be computed."""
        outputs, targets = self.samples()
        arguments = list(zip(outputs, targets, strict=True)) or self.given
        try:
            first, second = (torch.cat([batch[i] for batch in arguments]) for i in (0, 1))
            drawn = first[torch.randperm(len(first), generator=torch.Generator().manual_seed(0))]
            if self.metric.info is not None and self.metric.info.percent:
                return _expected_agreement(first, second)
            if not isinstance(self.metric.main, str | Metric):
                return float(self.metric.main(drawn, second))
            metric = self.metric.main if isinstance(self.metric.main, Metric) else self.found
            if metric is None:
                return None
            fresh = metric.clone().cpu()
            fresh.reset()
            fresh.update(drawn, second)
            return float(fresh.compute())
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None

    def on_test_batch_start(self, _trainer: Any, _pl_module: Any, _batch: Any, batch_idx: int, *_: Any) -> None:
        self._where = f"test batch {batch_idx}"

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
    """The classes that (samples, classes) decide, which need less room; any other output as it is."""
    return output.argmax(1) if wanted and output.ndim == 2 and output.shape[1] > 1 else output


def _expected_agreement(decided: Tensor, targets: Tensor) -> float | None:
    """The accuracy of these decisions in random order: sum over the classes of how often it is decided and is right."""
    if targets.ndim != 1 or targets.is_floating_point() or decided.ndim != 1 or decided.is_floating_point():
        return None
    classes = int(max(decided.max(), targets.max())) + 1
    shares = [torch.bincount(x.long(), minlength=classes).double() / len(x) for x in (decided, targets)]
    return float(shares[0] @ shares[1])
