"""Baselines of post-training quantization, from the same float network, policy and calibration images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from types import NoneType

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from qat.arguments import check_kind
from qat.capture import copy_model
from qat.export import OnnxRuntimeNetwork, QuantizeStatic
from qat.ptq import Calibrate, NoGraphError, Pass, apply_passes, check_order
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.comparison.row_names import check_row_name, ptq_row_name
from qat.training.lightning.callback_lookup import check_alone, require_callback
from qat.training.lightning.progress_bar import progress_bar, say
from qat.training.lightning.rank_zero import run_on_rank_zero
from qat.transform.class_names import Part


class PTQBaselines(L.Callback):
    """Applies each list of PTQ passes to the float network, before the first training step.

    Needs a `QuantizationAwareTraining` beside it, in any order: the float network, the policy and the calibration images are
    that callback's. `networks` holds the results; `Report` measures them. The passes have random numbers of their own, so the
    training does not depend on them. A list that needs the graph of a network that cannot be traced is left out, with a
    warning.

        trainer = L.Trainer(callbacks=[QuantizationAwareTraining("w4a8"), PTQBaselines(), Report()])
        PTQBaselines({"PTQ AdaRound": [qat.ptq.Calibrate("MSE"), qat.ptq.AdaRound()]})

    Args:
        ladder: row name -> list of passes; or observers (class names or {"_target_": ..., option: value}), each of which
            makes a list of one `Calibrate`.
        seed: seed of the passes' random numbers.
        outside: row name -> quantization by another library, from the same float network and calibration images. Such a
            library has a policy of its own, so its rows count in no verdict. Files are written to the Trainer's
            default_root_dir.

    Raises:
        ValueError: there are no passes, their order is impossible, an observer does not exist, or two rows have one name.
    """

    reads_float_network = True

    def __init__(
        self,
        ladder: Mapping[str, Sequence[Pass]] | Sequence[Part] = ("MinMax", "MSE"),
        seed: int = 0,
        outside: Mapping[str, QuantizeStatic] | None = None,
    ) -> None:
        if isinstance(ladder, str) or not isinstance(ladder, Mapping | Sequence):
            raise ValueError(
                f"ladder={ladder!r} is not possible: write ['MinMax', 'MSE'], or row names with lists of passes."
            )
        check_kind("seed", seed, (Integral,), "a whole number, as 0")
        check_kind("outside", outside, (Mapping, NoneType), "{'ONNX Runtime': qat.export.QuantizeStatic()}")
        if not ladder:
            raise ValueError("PTQBaselines has nothing to compare with: write for example ladder=['MinMax', 'MSE'].")
        named: Mapping[str, Sequence[Pass]] = (
            ladder
            if isinstance(ladder, Mapping)
            else {ptq_row_name(calibration.observer): [calibration] for calibration in map(Calibrate, ladder)}
        )
        for name in (*named, *(outside or {})):
            check_row_name(str(name))
        for name, quantize in (outside or {}).items():
            if name in named or not callable(quantize):
                what = "is a row of ladder, too" if name in named else f"is {quantize!r}"
                raise ValueError(
                    f"outside {name!r} {what}: write for example 'ONNX Runtime': qat.export.QuantizeStatic()."
                )
        files = [quantize.file for quantize in (outside or {}).values() if isinstance(quantize, QuantizeStatic)]
        if twice := next((file for file in files if files.count(file) > 1), None):
            raise ValueError(
                f"two rows of outside write {twice}: write QuantizeStatic(file='another.onnx') in one of them."
            )
        for name, passes in named.items():
            try:
                check_order(passes)
            except ValueError as error:
                raise ValueError(f"ladder {name!r}: {error}") from None
        self.ladder: dict[str, Sequence[Pass]] = dict(named)
        self.seed, self.outside = seed, dict(outside or {})
        self.networks: dict[str, nn.Module] = {}
        """Quantized networks by row name, on the CPU."""
        self.outside_networks: dict[str, OnnxRuntimeNetwork] = {}
        """Networks of other libraries by row name, in process 0 only, where they are measured."""
        self.seconds: dict[str, float] = {}
        """Duration of each quantization by row name."""
        self.measure: Callable[[str, nn.Module], str] | None = None
        """Measures a network as soon as it is there and says how good it is, in process 0; `Report` sets it."""

    def outside_files(self, folder: str | Path) -> dict[str, Path]:
        """What the rows of `outside` write into a folder, as far as that is known: row -> file."""
        known = {name: q.file for name, q in self.outside.items() if isinstance(q, QuantizeStatic)}
        return {f"ptq.outside.{name}": Path(folder) / file for name, file in known.items()}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        require_callback(trainer, QuantizationAwareTraining, self)
        check_alone(trainer, self, "whose ladder has all lists of passes")
        if stage == "fit":
            self.networks, self.outside_networks, self.seconds, self.measure = {}, {}, {}, None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        if qat.float_network is None:
            raise ValueError(
                "PTQBaselines needs the float network, but it was prepared before the Trainer saw it: give "
                "QuantizationAwareTraining the LightningModule with its float network."
            )
        network = copy_model(qat.float_network).to(pl_module.device)
        batches = list(qat.calibration_batches(trainer, pl_module))
        for name, passes in self.ladder.items():
            start = time.perf_counter()
            try:
                with progress_bar(name) as on_progress:
                    quantized = apply_passes(passes, network, qat.policy, batches, self.seed, on_progress)
            except NoGraphError as reason:
                rank_zero_warn(f"{name} is left out: {reason}")
                continue
            self.networks[name] = quantized.cpu()
            self.seconds[name] = time.perf_counter() - start
            self._announce(trainer, name, self.networks[name])
        for name, quantize in self.outside.items():
            start = time.perf_counter()
            path = run_on_rank_zero(trainer, partial(quantize, network, batches, trainer.default_root_dir))
            if trainer.is_global_zero:
                self.outside_networks[name] = OnnxRuntimeNetwork(path)
            self.seconds[name] = time.perf_counter() - start

    def _announce(self, trainer: L.Trainer, name: str, network: nn.Module) -> None:
        """Say that a network is there, how good it is and how long it took."""
        found = run_on_rank_zero(trainer, partial(self.measure, name, network)) if self.measure is not None else ""
        took = f"{self.seconds[name]:.1f} s" if self.seconds[name] < 60 else f"{self.seconds[name] / 60:.1f} minutes"
        if trainer.is_global_zero:
            say(f"{name}: {found}, {took}" if found else f"{name}: {took}")
