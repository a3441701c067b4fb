"""The ONNX file of a fit: written, verified and timed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor, nn

from qat.export import OnnxRuntimeNetwork, Verification, export_float_onnx, export_onnx, latency, verify
from qat.export.onnx.runtime import EXACT
from qat.integer import convert
from qat.training.lightning.evaluation_data import find_test_dataloaders
from qat.training.lightning.inputs import BatchToInputs, batch_as_in_evaluation
from qat.transform.batches import positional_arguments

log = logging.getLogger(__name__)

LATENCY_BATCH_SIZES = (1, 32)


@dataclass
class Artefact:
    """The written file, the integer model it was written from, and the measurements of both."""

    path: Path
    integer: nn.Module
    verification: Verification
    float_path: Path | None
    latency_ms: dict[str, dict[int, float]]
    """"float", "quantized" and outside baselines by name: batch size -> median milliseconds in ONNX Runtime."""
    seconds: dict[str, float]
    """Durations of "export", "verification" and "latency"."""

    def network(self) -> nn.Module:
        """The file as a module, run by ONNX Runtime."""
        return OnnxRuntimeNetwork(self.path)


def write_artefact(
    prepared: nn.Module,
    test_inputs: Callable[[], Iterator[tuple[Tensor, ...]]],
    path: Path,
    float_network: nn.Module | None = None,
    float_path: Path | None = None,
    other_files: Mapping[str, str] | None = None,
) -> Artefact:
    """Convert a prepared network to integers, write the ONNX file, verify it, and measure the latency.

    The file is compared with the integer model and the integer model with the prepared network; the file keeps the result in
    its metadata.

    Args:
        prepared: the prepared network, on the CPU.
        test_inputs: gives the network's inputs for the whole test set, on the CPU; called twice.
        path: the file to write.
        float_network: the network before it was prepared.
        float_path: where to write the float network as well, to compare its latency. None: nowhere.
        other_files: further ONNX files whose latency is measured, by name.
    """
    times = [time.perf_counter()]
    integer = convert(prepared)
    example = tuple(x[:1] for x in next(test_inputs()))
    export_onnx(integer, example, path)
    times.append(time.perf_counter())
    verification = verify(path, integer, test_inputs(), prepared=prepared, record=True)
    times.append(time.perf_counter())
    files: dict[str, str | Path] = {"quantized": path}
    if float_network is None:
        float_path = None
    elif float_path is not None:
        export_float_onnx(float_network, example, float_path)
        files = {"float": float_path, **files}
    latency_ms = latency(files | dict(other_files or {}), example, batch_sizes=LATENCY_BATCH_SIZES)
    times.append(time.perf_counter())
    seconds = {
        stage: end - start
        for stage, start, end in zip(("export", "verification", "latency"), times, times[1:], strict=False)
    }
    artefact = Artefact(path, integer, verification, float_path, latency_ms, seconds)
    _log_verification(artefact)
    return artefact


def _log_verification(artefact: Artefact) -> None:
    found, name = artefact.verification, artefact.path.name
    log.info(
        "%s: %s of %s codes differ from the integer model over %s test images",
        name,
        f"{found.code_mismatches:,}",
        f"{found.codes_compared:,}",
        f"{found.images:,}",
    )
    for sentence in found.sentences if not found.exact or found.alarm else found.weak_data:
        log.warning("%s: %s", name, sentence)
    saturating = [
        layer_name for layer_name, layer in artefact.integer.named_modules() if getattr(layer, "may_saturate", False)
    ]
    if saturating:
        log.info(
            "%s: on x86 processors without VNNI, run it with the session option %s = %s, as it was verified; without it, "
            "%d layers of 8-bit weights (%s, ...) would saturate",
            name,
            *EXACT,
            len(saturating),
            saturating[0],
        )


def positional_test_inputs(
    trainer: L.Trainer, module: L.LightningModule, network: nn.Module, inputs: BatchToInputs, dataloaders: Any = None
) -> Iterator[tuple[Tensor, ...]]:
    """Positional network inputs for the whole test set, on the CPU.

    Args:
        trainer: the Trainer of the fit.
        module: the LightningModule whose transfer hooks apply to a batch.
        network: decides the order of inputs that have names.
        inputs: from a batch to the network's inputs.
        dataloaders: test dataloaders, if neither datamodule nor module has them.
    """
    for loader in find_test_dataloaders(trainer, module, dataloaders):
        for batch in loader:
            given = inputs(batch_as_in_evaluation(trainer, module, batch))
            yield tuple(x.cpu() if isinstance(x, Tensor) else x for x in positional_arguments(network, given))
