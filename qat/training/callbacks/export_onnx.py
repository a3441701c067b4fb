"""From the best checkpoint to a verified ONNX file."""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor, nn

from qat.export import OnnxRuntimeNetwork, Verification, export_float_onnx, export_onnx, latency, verify
from qat.export.runtime import EXACT
from qat.integer import convert
from qat.training.callbacks.ptq_baselines import PTQBaselines
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.comparison.best_model import best_model
from qat.training.lightning.callback_lookup import find_callback, require_callback
from qat.training.lightning.inputs import NO_TEST_DATA, batch_as_in_evaluation, find_test_dataloaders, has_test_data
from qat.training.lightning.strategies import once

log = logging.getLogger(__name__)

BATCH_SIZES = (1, 32)


@dataclass
class Artefact:
    """The written file, the integer model it was written from, and what was found out about both."""

    path: Path
    integer: nn.Module
    verification: Verification
    float_path: Path | None
    latency_ms: dict[str, dict[int, float]]
    """"float", "quantized" and outside baselines by name: batch size -> median milliseconds in ONNX Runtime."""
    seconds: dict[str, float]

    def network(self) -> nn.Module:
        """The file as a module, run by ONNX Runtime."""
        return OnnxRuntimeNetwork(self.path)


class ExportONNX(L.Callback):
    """At the end of a fit: converts the best checkpoint to integers, writes the ONNX file, and verifies it.

    Verified is every code of every site, over the whole test set, in ONNX Runtime against the integer model. `artefact`
    holds the result; of several processes only the first does this, and only it has an `artefact`. Needs a
    `QuantizationAwareTraining` beside it, in any order.

    Args:
        path: the file to write; whole or not at all.
        float_path: also write the float network there, for its size, and compare the latency of both.
        dataloaders: test dataloaders, where neither datamodule nor module has them.

    Raises:
        ValueError: there are no test data, or the network has no ONNX form (both when the fit begins).
    """

    def __init__(
        self, path: str | Path = "model.onnx", float_path: str | Path | None = None, dataloaders: Any = None
    ) -> None:
        self.path = Path(path)
        self.float_path = None if float_path is None else Path(float_path)
        self.dataloaders = dataloaders
        self.artefact: Artefact | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        require_callback(trainer, QuantizationAwareTraining, self)
        if stage == "fit":
            self.artefact = None
            if not has_test_data(trainer, pl_module, self.dataloaders):
                raise ValueError(NO_TEST_DATA)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the untrained network to a folder that is thrown away: what has no ONNX form is said now."""
        once(trainer, lambda: self._rehearse(trainer, pl_module))

    def _rehearse(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        example = next(self._test_inputs(trainer, pl_module, qat))
        with tempfile.TemporaryDirectory() as folder:
            integer = convert(copy.deepcopy(qat.network_of(pl_module)).cpu().float())
            export_onnx(integer, tuple(x[:1] for x in example), Path(folder) / self.path.name)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def work() -> None:
            self.export(trainer, pl_module)

        once(trainer, work)

    def export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Artefact:
        """The artefact of this fit, made on the first call. In process 0 alone."""
        if self.artefact is None:
            self.artefact = self._export(trainer, pl_module)
        return self.artefact

    def _export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Artefact:
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        clock = [time.perf_counter()]
        integer = convert(best_model(trainer, pl_module, qat).network)
        example = next(self._test_inputs(trainer, pl_module, qat))
        one = tuple(x[:1] for x in example)
        export_onnx(integer, one, self.path)
        clock.append(time.perf_counter())
        verification = verify(self.path, integer, self._test_inputs(trainer, pl_module, qat))
        clock.append(time.perf_counter())
        float_path = self.float_path if qat.float_network is not None else None
        files: dict[str, str | Path] = {"quantized": self.path}
        if float_path is not None and qat.float_network is not None:
            export_float_onnx(qat.float_network, one, float_path)
            files = {"float": float_path, **files}
        if (ptq := find_callback(trainer, PTQBaselines)) is not None:
            files |= {name: network.path for name, network in ptq.outside_networks.items()}
        measured = latency(files, one, batch_sizes=BATCH_SIZES)
        clock.append(time.perf_counter())
        stages = ("export", "verification", "latency")
        seconds = {stage: end - start for stage, start, end in zip(stages, clock, clock[1:], strict=False)}
        log.info(
            "%s: %s of %s codes differ from the integer model over %s test images",
            self.path.name,
            f"{verification.code_mismatches:,}",
            f"{verification.codes_compared:,}",
            f"{verification.images:,}",
        )
        if careful := [name for name, layer in integer.named_modules() if getattr(layer, "may_saturate", False)]:
            log.info(
                "%s: on x86 processors without VNNI, run it with the session option %s = %s, as it was verified; %d layers "
                "of 8-bit weights (%s, ...) would saturate there",
                self.path.name,
                *EXACT,
                len(careful),
                careful[0],
            )
        return Artefact(self.path, integer, verification, float_path, measured, seconds)

    def _test_inputs(
        self, trainer: L.Trainer, pl_module: L.LightningModule, qat: QuantizationAwareTraining
    ) -> Iterator[tuple[Tensor, ...]]:
        """Positional network inputs of the whole test set, on the CPU."""
        for loader in find_test_dataloaders(trainer, pl_module, self.dataloaders):
            for batch in loader:
                inputs = qat.inputs(batch_as_in_evaluation(trainer, pl_module, batch))
                if isinstance(inputs, dict):
                    raise ValueError(
                        "a network that is called with keywords cannot be exported: let QuantizationAwareTraining(inputs=...) "
                        "return a tuple of tensors."
                    )
                yield tuple(x.cpu() for x in (inputs if isinstance(inputs, tuple) else (inputs,)))
