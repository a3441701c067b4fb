"""What post-training quantization reaches with the same float network, policy and calibration images."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from qat.export import OnnxRuntimeNetwork, QuantizeStatic
from qat.ptq import Calibrate, NoGraphError, Pass, apply_passes, check_order
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.lightning.callback_lookup import require_callback
from qat.training.lightning.progress_bar import progress_bar
from qat.training.lightning.strategies import once
from qat.transform.policy import Part

log = logging.getLogger(__name__)

LABELS = {"MinMax": "min-max", "MovingAverage": "moving average", "Percentile": "percentile", "MeanAbs": "mean-abs"}
"""How tables call an observer, where that is not its class name."""


class PTQBaselines(L.Callback):
    """Applies each list of PTQ passes to the float network, before the first training step.

    Needs a `QuantizationAwareTraining` beside it, in any order: the float network, the policy and the calibration images are
    that callback's. `networks` holds the results; `Report` measures them. What training does afterwards does not depend on
    the passes: they have random numbers of their own. A list that needs the graph of a network that cannot be traced is left
    out, with a warning.

        trainer = L.Trainer(callbacks=[QuantizationAwareTraining("w4a8"), PTQBaselines(), Report()])
        PTQBaselines({"PTQ AdaRound": [qat.ptq.Calibrate("MSE"), qat.ptq.AdaRound()]})

    Args:
        ladder: passes by the name that tables give them; or observers, each of which makes a list of one `Calibrate`: class
            names or {"_target_": ..., option: value}.
        seed: of the passes' random numbers.
        outside: what other libraries make of the same float network and calibration images, by the name that tables give it.
            Their policy is their own, so they count in no verdict; their files are written to the Trainer's default_root_dir.

    Raises:
        ValueError: there are no passes, they are in an impossible order, or an observer does not exist.
    """

    def __init__(
        self,
        ladder: Mapping[str, Sequence[Pass]] | Sequence[Part] = ("MinMax", "MSE"),
        seed: int = 0,
        outside: Mapping[str, QuantizeStatic] | None = None,
    ) -> None:
        if not ladder:
            raise ValueError("PTQBaselines has nothing to compare with: write for example ladder=['MinMax', 'MSE'].")
        named: Mapping[str, Sequence[Pass]] = (
            ladder if isinstance(ladder, Mapping) else {f"PTQ {label(part)}": [Calibrate(part)] for part in ladder}
        )
        for name, passes in named.items():
            try:
                check_order(passes)
            except ValueError as error:
                raise ValueError(f"ladder {name!r}: {error}") from None
        self.ladder: dict[str, Sequence[Pass]] = dict(named)
        self.seed, self.outside = seed, dict(outside or {})
        self.networks: dict[str, nn.Module] = {}
        """Quantized networks by name, on the CPU."""
        self.outside_networks: dict[str, OnnxRuntimeNetwork] = {}
        """In process 0 alone, where they are measured."""
        self.seconds: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        require_callback(trainer, QuantizationAwareTraining, self)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        if qat.float_network is None:
            raise ValueError(
                "PTQBaselines needs the float network, but it was prepared before the Trainer saw it: give "
                "QuantizationAwareTraining the LightningModule with its float network."
            )
        network = copy.deepcopy(qat.float_network).to(pl_module.device)
        batches = list(qat.calibration_batches(trainer, pl_module))
        for name, passes in self.ladder.items():
            start = time.perf_counter()
            try:
                with progress_bar(name) as listener:
                    quantized = apply_passes(passes, network, qat.policy, batches, self.seed, listener)
            except NoGraphError as reason:
                rank_zero_warn(f"{name} is left out: {reason}")
                continue
            self.networks[name] = quantized.cpu()
            self.seconds[name] = time.perf_counter() - start
            log.info("%s: %.1f minutes", name, self.seconds[name] / 60)
        for name, quantize in self.outside.items():
            start = time.perf_counter()
            path = once(trainer, partial(quantize, network, batches, trainer.default_root_dir))
            if trainer.is_global_zero:
                self.outside_networks[name] = OnnxRuntimeNetwork(path)
            self.seconds[name] = time.perf_counter() - start


def label(part: Any) -> str:
    """What tables call an observer.

    >>> label("MinMax"), label({"_target_": "qat.observers.Percentile", "percentile": 99.9})
    ('min-max', 'percentile percentile=99.9')
    """
    options = {} if isinstance(part, str) else dict(part)
    name = str(part if isinstance(part, str) else options.pop("_target_", "")).rpartition(".")[2]
    return " ".join([LABELS.get(name, name), *(f"{key}={value}" for key, value in options.items())])
