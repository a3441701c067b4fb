"""Every network that the report of a fit measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import lightning as L
from torch import nn

from qat.export.file_network import FileNetwork, ReturnsAs
from qat.training.callbacks.ptq_baselines import PTQBaselines
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.comparison.artefact import Artefact
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
    ptq = find_callback(trainer, PTQBaselines)
    float_network = qat.original_network or qat.float_network
    entries = float_entries(float_network, artefact) if float_network is not None else []
    if ptq is not None:
        entries += ptq_entries(ptq.networks, ptq.seconds)
        entries += outside_entries(ptq.outside_networks, ptq.seconds, artefact)
    entries += other_run_entries(other_runs)
    if step0 is not None:
        entries += step0_entries(step0, qat.calibration_seconds)
    entries += trained_entries(best, artefact, seconds)
    integer = next(entry.network for entry in entries if entry.kind == "qat_integer")
    return [
        replace(entry, network=ReturnsAs(entry.network, integer)) if isinstance(entry.network, FileNetwork) else entry
        for entry in entries
    ]
