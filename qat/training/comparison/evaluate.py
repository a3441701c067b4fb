"""Measure a network inside the user's own LightningModule, by its own test_step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from qat.contexts import training_mode
from qat.report.judgement.paired import SampleScores
from qat.training.comparison.metric_reading import Reading
from qat.training.comparison.report_metric import ReportMetric
from qat.training.lightning.evaluation_data import NO_TEST_DATA, has_test_data
from qat.training.lightning.network import copy_with_network
from qat.training.lightning.quiet import quiet_lightning
from qat.training.lightning.random_numbers import GeneratorsKept, seeded


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`."""

    metrics: dict[str, float]
    """The values that test_step logged, by name."""
    predictions: Tensor | None
    """Predicted classes, int64 (images,); None unless the network returns (N, classes)."""
    reading: Reading | None = None
    """What was seen of the metric of the report."""
    value: float = math.nan
    """The value of the metric of the report."""
    others: dict[str, float] = field(default_factory=dict)
    """The values of the other metrics of a collection."""
    scores: SampleScores | None = None
    """What is known of the metric sample by sample."""

    @property
    def labels(self) -> Tensor | None:
        """Classes of the samples, int64 (n,); None if they are not known."""
        if self.reading is None or self.predictions is None:
            return None
        targets = self.reading.samples()[1]
        if not targets or not all(isinstance(t, Tensor) and t.ndim == 1 and not t.is_floating_point() for t in targets):
            return None
        labels = torch.cat(targets)
        return labels if len(labels) == len(self.predictions) else None

    def same_samples(self, other: Evaluation) -> bool:
        """Whether the targets of both came in the same order, as far as they are known."""
        ours, theirs = ([] if e.reading is None else e.reading.samples()[1] for e in (self, other))
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if isinstance(a, Tensor) and isinstance(b, Tensor)]
        return all(torch.equal(a, b) for a, b in pairs)

    def metric(self, name: str) -> float:
        """The value that test_step logged under `name`.

        Raises:
            ValueError: it logged none; the message lists the names that it logged.
        """
        if not self.metrics and self.reading is not None and not self.reading.seen:
            raise ValueError("the test data have no sample: give some, or leave Report out.")
        if name not in self.metrics:
            logged = ", ".join(self.metrics) or "nothing"
            raise ValueError(
                f"test_step logs no {name!r} (it logs {logged}): pass the name of its metric, Report(metric=...)."
            )
        return self.metrics[name]


def evaluate(
    trainer: L.Trainer,
    module: L.LightningModule,
    network_name: str,
    network: nn.Module,
    dataloaders: Any = None,
    accelerator: str | None = None,
    precision: Any = "32-true",
    metric: ReportMetric | None = None,
    batches: int | None = None,
) -> Evaluation:
    """The test metrics of `module` with `network` in place of the submodule `network_name`.

    A new, quiet Trainer runs `module.test_step` on the test data of the fit; `trainer` and `module` stay as they are.

    Args:
        trainer: the Trainer of the fit.
        module: the user's LightningModule.
        network_name: name of its network, "" for the module itself.
        network: the network to measure.
        dataloaders: test dataloaders, if neither datamodule nor module has them.
        accelerator: "cpu" for networks that run there only; None: that of `trainer`.
        precision: Lightning's Trainer argument. One that ends in "true" changes the weights of `network`.
        metric: what to read, sample by sample.
        batches: how many batches to measure. None: all.

    Raises:
        ValueError: there are no test data, or test_step does not run the network.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if not has_test_data(trainer, module, dataloaders):
        raise ValueError(NO_TEST_DATA)
    predictions: list[Tensor] = []
    reading = Reading(metric) if metric is not None else None
    # a loader that shuffles, or a dataset that draws noise, gives every network the same samples
    with _kept(trainer, module) as generators, training_mode(network, False), quiet_lightning(), seeded(0):
        measured = copy_with_network(module, network_name, network)
        if precision != trainer.precision and str(trainer.precision).endswith("true"):
            measured.float()  # the fit has also changed the dtype of the modules around the network
        handles = [network.register_forward_hook(partial(_note_predictions, predictions))]
        if reading is not None:
            handles.append(reading.attach(measured, network))
        tester = _tester(
            trainer, accelerator, precision, [generators, *([] if reading is None else [reading])], batches
        )
        given = {"datamodule": datamodule} if dataloaders is None else {"dataloaders": dataloaders}
        try:
            logged = tester.test(measured, **given, verbose=False)
        finally:
            for handle in handles:
                handle.remove()
    metrics = {name: float(value) for of_dataloader in logged for name, value in of_dataloader.items()}
    if reading is not None and reading.batches and not reading.seen:
        where = f"its submodule {network_name!r}" if network_name else "its own forward"
        raise ValueError(
            f"test_step of {type(module).__name__} does not run the network that is measured, {where}: call it there, as "
            "training_step does, or leave Report out."
        )
    found = Evaluation(metrics, torch.cat(predictions) if predictions else None)
    return found if reading is None else _with_metric(found, reading)


def _note_predictions(predictions: list[Tensor], _module: nn.Module, _inputs: Any, output: Any) -> None:
    """A forward hook: collect the predicted classes of outputs (N, classes)."""
    if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1:
        predictions.append(output.argmax(dim=1).cpu())


def _with_metric(found: Evaluation, reading: Reading) -> Evaluation:
    """The evaluation with the value of the report's metric and its scores, which are computed once the metric is known."""
    source = reading.metric.source
    others: dict[str, float] = {}
    if isinstance(source, str):
        value = replace(found, reading=reading).metric(source)
    else:
        value, others = reading.compute()
    scores = reading.scores(value) if reading.metric.info is not None else None
    return replace(found, reading=reading, value=value, others=others, scores=scores)


@contextmanager
def _kept(trainer: L.Trainer, module: L.LightningModule) -> Iterator[GeneratorsKept]:
    """Inside the `with` block, nothing that a fit may still need is torn down, moved or used up."""
    datamodule, generators = getattr(trainer, "datamodule", None), GeneratorsKept()
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    own_data = [tensor.data for tensor in own]  # the copy shares them, and its Trainer may move them
    if datamodule is not None:
        vars(datamodule)["teardown"] = lambda stage: None
    try:
        yield generators
    finally:
        generators.restore()
        for tensor, data in zip(own, own_data, strict=True):
            tensor.data = data
        if datamodule is not None:
            del vars(datamodule)["teardown"]
            datamodule.trainer = trainer


def _tester(
    trainer: L.Trainer, accelerator: str | None, precision: Any, callbacks: list[L.Callback], batches: int | None
) -> L.Trainer:
    """A Trainer that measures and does nothing else, on the accelerator of `trainer` unless one is given."""
    return L.Trainer(
        accelerator=accelerator or str(trainer.strategy.root_device.type).replace("cuda", "gpu"),
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        precision=precision,
        default_root_dir=trainer.default_root_dir,
        callbacks=callbacks,
        limit_test_batches=batches,
    )
