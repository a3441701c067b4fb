"""The report of a fit: at its start what is quantized, at its end the comparison and its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from qat.arguments import as_path
from qat.capture import copy_model
from qat.export import VerificationError
from qat.files import check_writable
from qat.report import Data, Results, Verdict, print_sites, verdict
from qat.report.results.metric import Mode
from qat.search import Allocation
from qat.training.callbacks.export_onnx import ExportONNX
from qat.training.callbacks.oscillation_control import OscillationControl
from qat.training.callbacks.pruning import Pruning
from qat.training.callbacks.ptq_baselines import PTQBaselines
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.callbacks.report_entries import early_entries, entries_of_fit, timings_of_fit, verify_ptq, with_faults
from qat.training.callbacks.report_files import RESULTS, measure_and_write, report_folder
from qat.training.callbacks.report_options import check_report
from qat.training.comparison import row_names
from qat.training.comparison.batch_parts import batch_targets
from qat.training.comparison.best_model import best_model
from qat.training.comparison.descriptions import (
    describe_data,
    describe_environment,
    describe_sites,
    describe_verifications,
)
from qat.training.comparison.divergence import divergence
from qat.training.comparison.history import History
from qat.training.comparison.measurements import Measurements
from qat.training.comparison.notes import note_precision, note_step0
from qat.training.comparison.other_runs import compare_with_others
from qat.training.comparison.report_metric import MetricSource, ReportMetric
from qat.training.comparison.rows import compare_rows, counted, metric_info, report_rows
from qat.training.comparison.tensor_details import ScaleRecorder, confusion, first_samples, tensor_details
from qat.training.comparison.zeros import file_sizes
from qat.training.lightning.callback_lookup import FitReport, find_callback, require_callback
from qat.training.lightning.evaluation_data import NO_TEST_DATA, has_test_data
from qat.training.lightning.lost_training import DivergedError
from qat.training.lightning.rank_zero import run_on_rank_zero
from qat.transform.policy_record import prepare_as_recorded
from qat.transform.record import capture_of


class Report(FitReport):
    """Measures every network of a fit on the test set, once, at the end, and writes results.json, report.html and report.md.

    Rows: the float network, the networks of `PTQBaselines`, QAT before its first step, QAT's best checkpoint, its integer
    model, and the file of `ExportONNX`, run by ONNX Runtime. `PTQBaselines` and `ExportONNX` are optional, as is
    `OscillationControl`, whose counts are reported as well. Each network is put into the user's own LightningModule and
    measured by its test_step, in float32, in which the artefact computes. If the fit ran in another precision, the row of
    QAT's best checkpoint notes the accuracy in that precision.

    Needs a `QuantizationAwareTraining` beside it, in any order. With several processes the first measures and writes, and all
    have the `results`.

    Args:
        folder: where to write. None: the logger's folder, else the Trainer's default_root_dir.
        metric: the name under which test_step logs it, a torchmetrics object or collection (whose first metric decides), or
            a function of (outputs, targets) that returns a number. Objects and functions get the first tensor that the network
            returns, or its logits.
        mode: "min" if lower is better, else "max". None: as torchmetrics says; an accuracy needs none.
        metric_name: the metric's name in tables. None: its own.
        unit: of its values, in tables.
        targets: from a batch to the targets, for objects and functions. None: the second part of (inputs, targets), or what
            is called labels or targets.
        top5: name of the top-5 accuracy, if test_step logs it.
        calibration_error: name of the calibration error, if test_step logs it.
        val_metric: name under which the same is logged on validation data, for the curves. None: "val/..." for "test/...".
        val_loss: name of the validation loss.
        train_loss: name of the training loss.
        dataloaders: test dataloaders, if neither datamodule nor module has them.
        name: head of the report. None: the class of the LightningModule.
        data: description of the data. None: as far as the dataloaders tell.
        config: configuration of the run, for the record.
        command: command line of the run, for the record.
        seed: seed of the run, for the record.
        timings: stage -> seconds, for what happened before the fit.
        allocation: the bits of every layer, if the policy is one of `qat.search`.
        other_runs: row name -> ONNX file of another fit on the same data, to compare with.

    Raises:
        ValueError: when the fit begins: there are no test data, test_step does not log `metric`, or nothing tells which way it
            is better.
        VerificationError: a written file differs from what was trained; raised when the report is complete.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        metric: MetricSource = "test/top1",
        top5: str | None = None,
        calibration_error: str | None = None,
        val_metric: str | None = None,
        val_loss: str = "val/loss",
        train_loss: str = "train/loss",
        dataloaders: Any = None,
        name: str | None = None,
        data: Data | None = None,
        config: Mapping[str, Any] | None = None,
        command: str = "",
        seed: int | None = None,
        timings: Mapping[str, float] | None = None,
        mode: Mode | None = None,
        metric_name: str | None = None,
        unit: str | None = None,
        targets: Callable[[Any], Any] | None = None,
        allocation: Allocation | None = None,
        other_runs: Mapping[str, Path] | None = None,
    ) -> None:
        check_report(locals())
        self.folder = None if folder is None else as_path(folder, "folder")
        self.metric = ReportMetric(metric, mode, metric_name, unit, targets or batch_targets)
        self.extras = {"top5": top5, "calibration_error": calibration_error}
        if val_metric is None:
            val_metric = metric.replace("test", "val", 1) if isinstance(metric, str) else "val/top1"
        self.curve_names = (val_metric, val_loss, train_loss)
        self.dataloaders = dataloaders
        self.name, self.data, self.config, self.command, self.seed = name, data, config, command, seed
        self.timings = dict(timings or {})
        self.allocation, self.other_runs = allocation, dict(other_runs or {})
        self.history = History(*self.curve_names)
        self.step0: nn.Module | None = None
        self.results: Results | None = None
        self._restored_history: dict[str, Any] = {}
        self._measurements: Measurements | None = None
        self.recorder = ScaleRecorder()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        require_callback(trainer, QuantizationAwareTraining, self)
        if stage == "fit":
            self.results = self.step0 = None
            self._restored_history = {}
            if not has_test_data(trainer, pl_module, self.dataloaders):
                raise ValueError(NO_TEST_DATA)
            ptq = find_callback(trainer, PTQBaselines)
            if ptq is not None and (
                twice := [name for name in self.other_runs if name in {**ptq.ladder, **ptq.outside}]
            ):
                raise ValueError(f"other_runs and PTQBaselines both have a row {twice[0]!r}: give one another name.")

    def state_dict(self) -> dict[str, Any]:
        return {**self.history.state(), "scales": self.recorder.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored_history = state_dict

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        qat, ptq = require_callback(trainer, QuantizationAwareTraining, self), find_callback(trainer, PTQBaselines)
        run_on_rank_zero(trainer, partial(check_writable, report_folder(trainer, self.folder) / RESULTS))
        measurements = Measurements(self.metric, self.dataloaders, trainer, pl_module, qat.network_name or "")
        measurements.identify(copy_model(qat.float_network or qat.network_of(pl_module)))
        network = qat.original_network or qat.float_network
        if network is not None:  # all test data are looked at before training
            run_on_rank_zero(trainer, partial(measurements.measure_early, row_names.FLOAT, network))
        self._measurements = measurements
        if ptq is not None:
            ptq.measure = measurements.measure_early

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        network = qat.network_of(pl_module)
        if trainer.global_step == 0:
            self.step0 = copy_model(network).cpu().float()
        elif qat.float_network is not None:  # a resumed fit: the same network is made again
            step0 = copy_model(qat.float_network)
            prepare_as_recorded(step0, qat.policy, capture_of(network))
            step0.to(pl_module.device)
            qat.calibrate(trainer, pl_module, step0)
            self.step0 = step0.cpu()
        if trainer.is_global_zero:
            print_sites(*describe_sites(network))
        self.history, self.recorder = History(*self.curve_names), ScaleRecorder()
        if self._restored_history:
            self.history.restore(self._restored_history)
            self.recorder.restore(self._restored_history.get("scales", {}))
        samples = first_samples(network, qat.calibration_batches(trainer, pl_module))
        self.recorder.samples = samples if trainer.is_global_zero else ()
        self.recorder.see(trainer, network)

    def on_train_batch_start(self, *_: Any) -> None:
        self.history.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.recorder.see(trainer, require_callback(trainer, QuantizationAwareTraining, self).network_of(pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.history.end_epoch(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.history.stop()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.results = measure_and_write(trainer, self.folder, partial(self._measure, trainer, pl_module))
        if self.results.verdict.outcome == "not_verified":
            raise VerificationError(self.results.verdict.text)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Report what was measured before a training that diverged."""
        if isinstance(exception, DivergedError) and self._measurements is not None:
            measure_and_write(trainer, self.folder, partial(self._without_training, trainer, pl_module, str(exception)))

    def _without_training(self, trainer: L.Trainer, pl_module: L.LightningModule, reason: str) -> Results:
        assert self._measurements is not None
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        measured = self._measurements.measure(early_entries(trainer, qat, None))
        info = metric_info(self._measurements.metric, measured)
        return Results(
            **self._names(trainer, pl_module),
            data=counted(self.data or self._describe_data(trainer, pl_module, info.percent), measured),
            rows=report_rows(measured, info, self.extras, {}),
            verdict=Verdict("diverged", f"NO VERDICT. {reason}"),
            metric=info,
            timings=timings_of_fit(trainer, self.timings, self.history.seconds, None),
        )

    def _names(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What is known of a fit without measuring."""
        return {
            "recipe": self.name or type(pl_module).__name__,
            "command": self.command,
            "seed": self.seed,
            "config": dict(self.config or {}),
            "environment": describe_environment(trainer),
        }

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Results:
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        network_name = qat.network_name or ""
        export, pruning = find_callback(trainer, ExportONNX), find_callback(trainer, Pruning)
        oscillations = find_callback(trainer, OscillationControl)
        artefact = export.export(trainer, pl_module) if export is not None else None
        assert self._measurements is not None
        start = time.perf_counter()
        best = best_model(trainer, qat.network_of(pl_module), network_name, qat.staged)
        seconds = qat.calibration_seconds + self.history.seconds
        entries = entries_of_fit(trainer, qat, self.step0, best.network, artefact, seconds, self.other_runs)
        measured = self._measurements.measure(entries)
        evaluations = {entry.name: evaluation for entry, evaluation in measured}
        notes = note_step0(qat.policy, evaluations)
        notes |= note_precision(trainer, best.network, evaluations[row_names.FAKE_QUANT], self._measurements)
        info = metric_info(self._measurements.metric, measured)
        has_classes = evaluations[row_names.FAKE_QUANT].labels is not None or info.percent
        data = counted(self.data or self._describe_data(trainer, pl_module, has_classes), measured)
        rows = report_rows(measured, info, self.extras, notes)
        sites, float_edges, _ = describe_sites(best.network)
        verifications = describe_verifications(artefact) if artefact is not None else []
        exploded = divergence(best.network, qat.original_network or qat.float_network)
        found = verdict(rows, data.test, info, data.samples, partial(compare_rows, measured), exploded)
        integer = entries[-1].network if artefact is None else artefact.integer
        zeros = None if pruning is None else pruning.report(integer)
        found = with_faults(found, verifications, zeros)
        of_ptq = verify_ptq(trainer, pl_module, found)
        found = found if of_ptq is None else with_faults(found, [of_ptq], None)
        return Results(
            **self._names(trainer, pl_module),
            data=data,
            rows=rows,
            verdict=found,
            metric=info,
            verification=verifications[0] if verifications else None,
            ptq_verification=of_ptq,
            target_verifications=verifications[1:],
            sites=sites,
            float_edges=float_edges,
            training=self.history.summarize(trainer, best.epoch, info.percent),
            oscillations=oscillations.report if oscillations is not None else None,
            allocation=None if self.allocation is None else self.allocation.record,
            other_runs=compare_with_others(measured, info),
            pruning=zeros,
            files=[] if artefact is None else file_sizes([artefact.float_path, artefact.path], artefact.integer),
            tensors=tensor_details(best.network, self.recorder.samples),
            trajectories=self.recorder.summary(),
            confusion=confusion(measured),
            timings={
                **timings_of_fit(trainer, self.timings, self.history.seconds, artefact),
                "evaluation": time.perf_counter() - start,
            },
        )

    def _describe_data(self, trainer: L.Trainer, pl_module: L.LightningModule, has_classes: bool) -> Data:
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        network = qat.float_network or qat.network_of(pl_module)
        return describe_data(trainer, pl_module, qat.inputs, network, self.dataloaders, classes=has_classes)
