"""What a report measures: the metric that the user names or gives, and what it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MultilabelAccuracy

from qat.report.results.metric import ACCURACY_NAMES, MetricInfo, Mode
from qat.training.comparison.batch_parts import batch_targets

MetricSource = str | Metric | MetricCollection | Callable[[Any, Any], Any]
"""The name under which test_step logs it, a torchmetrics object, or a function of (outputs, targets)."""
_ACCURACIES = (BinaryAccuracy, MulticlassAccuracy, MultilabelAccuracy)


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

    def identified(self, value: float, found: Metric | None, path: str, counts_samples: bool) -> ReportMetric:
        """This metric with `info` and `path`, from a first reading.

        Args:
            value: what was read.
            found: the torchmetrics object in the LightningModule.
            path: its name there.
            counts_samples: whether the value is the share of samples that are right.

        Raises:
            ValueError: nothing tells which way is better.
        """
        found = self.main if isinstance(self.main, Metric) else found
        known = getattr(found, "higher_is_better", None)
        is_named = self.own_name.rpartition("/")[2].lower() in ACCURACY_NAMES
        is_accuracy = isinstance(found, _ACCURACIES) or counts_samples or (found is None and is_named)
        mode = self.mode or (None if known is None else "max" if known else "min") or ("max" if is_accuracy else None)
        if mode is None:
            raise ValueError(
                f"which way is {self.own_name!r} better? Write Report(metric=..., mode='min') if lower is better, as of an "
                "error, or mode='max'."
            )
        percent = is_accuracy and mode == "max" and self.unit in (None, "%") and 0 <= value <= 1
        name = self.name or {"top1": "top-1", "<lambda>": "metric"}.get(self.own_name, self.own_name)
        info = MetricInfo(
            name, "%" if percent else self.unit or "", mode, percent, errors="binomial" if percent else ""
        )
        return replace(self, info=info, path=path)
