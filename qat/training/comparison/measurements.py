"""The networks of a fit, measured by the metric of its report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
from torch import nn

from qat.report.results.metric import MetricInfo
from qat.training.comparison.entries import Entry
from qat.training.comparison.evaluate import Evaluation, evaluate
from qat.training.comparison.report_metric import ReportMetric
from qat.training.comparison.rows import Measured
from qat.training.lightning.rank_zero import run_on_rank_zero


class Measurements:
    """Evaluates the networks of one fit.

    Args:
        metric: what to measure; what it is called is only known after `identify`.
        dataloaders: test dataloaders, if neither datamodule nor module has them.
        trainer: the Trainer of the fit.
        module: the user's LightningModule.
        network_name: name of its network, "" for the module itself.
    """

    def __init__(
        self, metric: ReportMetric, dataloaders: Any, trainer: L.Trainer, module: L.LightningModule, network_name: str
    ) -> None:
        self.metric, self.dataloaders = metric, dataloaders
        self.trainer, self.module, self.network_name = trainer, module, network_name
        self._early: dict[str, Evaluation] = {}

    def identify(self, network: nn.Module) -> None:
        """Learn from one batch what the metric is: a mistake in it is found before the training.

        All processes must call it; the first measures.

        Raises:
            ValueError: test_step does not log it, or nothing tells which way it is better.
        """

        def look() -> tuple[MetricInfo | None, str]:
            try:
                first = self.evaluate(network, batches=1)
            except ValueError:
                if isinstance(self.metric.source, str):
                    raise
                first = self.evaluate(network)  # a metric may need more samples, or samples of two classes
            assert first.reading is not None
            known = first.reading.identify(first.value)
            return known.info, known.path

        info, path = run_on_rank_zero(self.trainer, look)
        self.metric = replace(self.metric, info=info, path=path)

    def measure_early(self, name: str, network: nn.Module) -> str:
        """Measure a network before the training and remember the result. Returns its value in words."""
        self._early[name] = found = self.evaluate(network)
        info = self.metric.info
        return "" if info is None else f"{info.text(found.value)} {info.name}"

    def measure(self, entries: list[Entry]) -> Measured:
        """The evaluation of every entry; those that were measured early are not measured again."""
        return [
            (
                entry,
                self._early.get(entry.name)
                or self.evaluate(entry.network, accelerator="cpu" if entry.cpu_only else None),
            )
            for entry in entries
        ]

    def evaluate(self, network: nn.Module, **options: Any) -> Evaluation:
        """The metrics of the user's test_step with `network`; options are those of `evaluate`."""
        return evaluate(
            self.trainer, self.module, self.network_name, network, self.dataloaders, metric=self.metric, **options
        )
