"""The comparison of a fit: what is quantized, at its start; who won, and the files that say so, at its end."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from qat.report import Data, Results, print_report, print_sites, verdict, write_results
from qat.report.markdown import write_report
from qat.training.callbacks.export_onnx import ExportONNX
from qat.training.callbacks.oscillation_control import OscillationControl
from qat.training.callbacks.ptq_baselines import PTQBaselines, label
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.comparison import descriptions as records
from qat.training.comparison.best_model import best_model
from qat.training.comparison.entries import Candidate, candidates, rows
from qat.training.comparison.evaluate import Evaluation, evaluate
from qat.training.comparison.history import History
from qat.training.lightning.callback_lookup import find_callback, require_callback
from qat.training.lightning.inputs import NO_TEST_DATA, has_test_data
from qat.training.lightning.strategies import once
from qat.transform import prepare


class Report(L.Callback):
    """Measures every network of a fit on the test set, once and at the end, and writes results.json and report.md.

    Rows: the float network, what `PTQBaselines` made, QAT before its first step, QAT's best checkpoint, its integer model,
    and what `ExportONNX` wrote, run by ONNX Runtime; those of the last two callbacks where they are there, as is what
    `OscillationControl` counted. Each is put into
    the user's own LightningModule and measured by its test_step, in float32, which is what the artefact computes with. If the
    fit ran in another precision, the row of QAT's best checkpoint notes what it reaches there. Needs a
    `QuantizationAwareTraining` beside it, in any order.
    Of several processes the first measures and writes; `results` is there in all of them.

    Args:
        folder: where to write. None: the logger's folder, else the Trainer's default_root_dir.
        metric: what test_step logs the accuracy as: a fraction, more is better.
        top5, calibration_error: further metrics of test_step, if it logs them.
        val_metric, val_loss, train_loss: what the curves are logged as.
        dataloaders: test dataloaders, where neither datamodule nor module has them.
        name, data, config, command, seed: for the report's head; what is left out is read off the Trainer.
        timings: seconds of what happened before the fit, by stage.

    Raises:
        ValueError: there are no test data (when the fit begins), or test_step does not log `metric`.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        metric: str = "test/top1",
        top5: str | None = None,
        calibration_error: str | None = None,
        val_metric: str = "val/top1",
        val_loss: str = "val/loss",
        train_loss: str = "train/loss",
        dataloaders: Any = None,
        name: str | None = None,
        data: Data | None = None,
        config: Mapping[str, Any] | None = None,
        command: str = "",
        seed: int | None = None,
        timings: Mapping[str, float] | None = None,
    ) -> None:
        self.folder = folder
        self.metrics = {"top1": metric, "top5": top5, "calibration_error": calibration_error}
        self.names = (val_metric, val_loss, train_loss)
        self.dataloaders = dataloaders
        self.name, self.data, self.config, self.command, self.seed = name, data, config, command, seed
        self.timings = dict(timings or {})
        self.curves = History(*self.names)
        self.step0: nn.Module | None = None
        self.results: Results | None = None
        self._resumed: dict[str, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        require_callback(trainer, QuantizationAwareTraining, self)
        if stage == "fit":
            self.results = self.step0 = None
            self._resumed = {}
            if not has_test_data(trainer, pl_module, self.dataloaders):
                raise ValueError(NO_TEST_DATA)

    def state_dict(self) -> dict[str, Any]:
        return self.curves.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        network = qat.network_of(pl_module)
        if trainer.global_step == 0:
            self.step0 = copy.deepcopy(network).cpu().float()
        elif qat.float_network is not None:  # a resumed fit: as it was then
            again = prepare(qat.float_network, qat.policy).to(pl_module.device)
            qat.calibrate(trainer, pl_module, again)
            self.step0 = again.cpu()
        if trainer.is_global_zero:
            print_sites(*records.sites(network))
        self.curves = History(*self.names)
        if self._resumed:
            self.curves.go_on_from(self._resumed)

    def on_train_batch_start(self, *_: Any) -> None:
        self.curves.start()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.curves.end_epoch(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.curves.stop()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = Path(
            self.folder or trainer.log_dir or trainer.default_root_dir
        )  # log_dir is asked for in all processes

        def work() -> Results:
            results = self._measured(trainer, pl_module)
            write_report(results, folder)
            write_results(results, folder / "results.json")
            print_report(results)
            return results

        self.results = once(trainer, work)

    def _measured(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Results:
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        ptq, export = find_callback(trainer, PTQBaselines), find_callback(trainer, ExportONNX)
        oscillations = find_callback(trainer, OscillationControl)
        artefact = export.export(trainer, pl_module) if export is not None else None
        start = time.perf_counter()
        best = best_model(trainer, pl_module, qat)
        seconds = qat.calibration_seconds + self.curves.seconds
        measured = [
            (candidate, self._measure(trainer, pl_module, qat, candidate))
            for candidate in candidates(qat, ptq, self.step0, best.network, artefact, seconds)
        ]
        found = {c.name: evaluation for c, evaluation in measured}
        note = self._step0_against_ptq(qat, ptq, found)
        note |= self._in_precision_of_fit(trainer, pl_module, qat, best.network, found["QAT fake-quant"])
        data = self.data or records.data(trainer, pl_module, qat, self.dataloaders)
        table = rows(measured, self.metrics, note)
        sites, float_edges = records.sites(best.network)
        timings = {**self.timings, "calibration": qat.calibration_seconds}
        timings |= {"ptq": sum(ptq.seconds.values())} if ptq is not None else {}
        timings |= {"qat": self.curves.seconds, **(artefact.seconds if artefact is not None else {})}
        return Results(
            recipe=self.name or type(pl_module).__name__,
            command=self.command,
            seed=self.seed,
            config=dict(self.config or {}),
            data=data,
            rows=table,
            verdict=verdict(table, data.test),
            verification=records.verification(artefact.verification) if artefact is not None else None,
            environment=records.environment(trainer),
            sites=sites,
            float_edges=float_edges,
            training=self.curves.record(trainer, best.epoch),
            oscillations=oscillations.report if oscillations is not None else None,
            timings={**timings, "evaluation": time.perf_counter() - start},
        )

    def _measure(
        self, trainer: L.Trainer, pl_module: L.LightningModule, qat: QuantizationAwareTraining, candidate: Candidate
    ) -> Evaluation:
        accelerator = "cpu" if candidate.cpu_only else None
        name = qat.network_name or ""
        return evaluate(trainer, pl_module, name, candidate.network, self.dataloaders, accelerator)

    def _in_precision_of_fit(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        qat: QuantizationAwareTraining,
        best: nn.Module,
        in_float32: Evaluation,
    ) -> dict[str, str]:
        """What the best checkpoint reaches with the arithmetic that it was trained with, and the difference."""
        if trainer.precision == "32-true":
            return {}
        twin = copy.deepcopy(best)
        reduced = evaluate(
            trainer, pl_module, qat.network_name or "", twin, self.dataloaders, precision=trainer.precision
        )
        metric = str(self.metrics["top1"])
        there, here = 100 * reduced.metric(metric), 100 * in_float32.metric(metric)
        return {
            "QAT fake-quant": f"{there:.2f} in {trainer.precision}, as it was trained: {there - here:+.2f} against float32"
        }

    def _step0_against_ptq(
        self, qat: QuantizationAwareTraining, ptq: PTQBaselines | None, found: Mapping[str, Evaluation]
    ) -> dict[str, str]:
        """QAT starts from the calibrated network, so before its first step it must predict what PTQ predicts, unless its
        quantizers round to other levels.
        """
        tensors = [t for r in qat.policy.rules.values() for t in (r.weight, r.activation) if t]
        observers = {label(t.observer) for t in tensors}
        same = len(observers) == 1 and all(t.quantizer_class.starts_as_static for t in tensors)
        twin = f"PTQ {next(iter(observers))}" if same else ""
        step0 = found.get("QAT step 0")
        if ptq is None or step0 is None or twin not in found:
            return {}
        ours, theirs = step0.predictions, found[twin].predictions
        if ours is None or theirs is None:
            return {}
        if torch.equal(ours, theirs):
            return {"QAT step 0": f"predicts the same class as {twin} for every test image"}
        warning = (
            f"predicts another class than {twin} for {int((ours != theirs).sum())} of {len(ours):,} test images, though both "
            "have the same ranges: something changed the network between calibration and the first step."
        )
        rank_zero_warn(f"QAT before its first step {warning}")
        return {"QAT step 0": f"WARNING: {warning}"}
