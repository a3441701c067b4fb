"""Every network that the report of a fit measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
from torch import nn

from qat.export.file_network import FileNetwork, ReturnsAs
from qat.report import Verdict, VerificationResult, not_verified
from qat.report.results.pruning import PruningResult
from qat.training.callbacks.export_onnx import ExportONNX
from qat.training.callbacks.ptq_baselines import PTQBaselines
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.comparison.artefact import Artefact
from qat.training.comparison.descriptions import describe_verifications
from qat.training.comparison.entries import (
    Entry,
    float_entries,
    other_run_entries,
    outside_entries,
    ptq_entries,
    step0_entries,
    trained_entries,
)
from qat.training.lightning.callback_lookup import find_callback


def early_entries(trainer: L.Trainer, qat: QuantizationAwareTraining, artefact: Artefact | None) -> list[Entry]:
    """The networks that there are before the training."""
    ptq = find_callback(trainer, PTQBaselines)
    float_network = qat.original_network or qat.float_network
    entries = float_entries(float_network, artefact) if float_network is not None else []
    if ptq is not None:
        entries += ptq_entries(ptq.networks, ptq.seconds)
        entries += outside_entries(ptq.outside_networks, ptq.seconds, artefact)
    return entries


def timings_of_fit(
    trainer: L.Trainer, before: Mapping[str, float], training: float, artefact: Artefact | None
) -> dict[str, float]:
    """Stage -> seconds, in the order in which they ran. before: the stages before the fit; training: that of its steps."""
    qat, ptq = find_callback(trainer, QuantizationAwareTraining), find_callback(trainer, PTQBaselines)
    timings = {**before, "calibration": 0.0 if qat is None else qat.calibration_seconds}
    if ptq is not None:
        timings["ptq"] = sum(ptq.seconds.values())
    timings["qat"] = training
    return timings | (artefact.seconds if artefact is not None else {})


def entries_of_fit(
    trainer: L.Trainer,
    qat: QuantizationAwareTraining,
    step0: nn.Module | None,
    best: nn.Module,
    artefact: Artefact | None,
    seconds: float,
    other_runs: Mapping[str, Path],
) -> list[Entry]:
    """The networks to measure, in the order of the table.

    Args:
        trainer: the Trainer of the fit.
        qat: its callback.
        step0: the prepared network before the first step, if it was kept.
        best: the prepared network that the fit ends with.
        artefact: its file, if one was written.
        seconds: duration of calibration and fit.
        other_runs: row name -> ONNX file of another fit.
    """
    entries = [*early_entries(trainer, qat, artefact), *other_run_entries(other_runs)]
    if step0 is not None:
        entries += step0_entries(step0, qat.calibration_seconds)
    entries += trained_entries(best, artefact, seconds)
    integer = next(entry.network for entry in entries if entry.kind == "qat_integer")
    return [
        replace(entry, network=ReturnsAs(entry.network, integer)) if isinstance(entry.network, FileNetwork) else entry
        for entry in entries
    ]


def verify_ptq(trainer: L.Trainer, pl_module: L.LightningModule, found: Verdict) -> VerificationResult | None:
    """Write and verify the file of the best PTQ network if the verdict recommends it."""
    ptq, export = find_callback(trainer, PTQBaselines), find_callback(trainer, ExportONNX)
    if ptq is None or export is None or found.ptq is None or found.outcome not in ("no_difference", "qat_lost"):
        return None
    return describe_verifications(export.export_ptq(trainer, pl_module, ptq.networks[found.ptq]))[0]


def with_faults(found: Verdict, verifications: Sequence[VerificationResult], zeros: PruningResult | None) -> Verdict:
    """The verdict, unless a file is not what was trained, or weights that were pruned are not zero."""
    faults = [(v.file, v.failure) for v in verifications] + ([("this network", zeros.failure)] if zeros else [])
    return next((not_verified(found, what, why) for what, why in faults if why), found)
