"""What post-training quantization reaches with the same float network, policy and calibration images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from torch import nn

from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining, companion
from qat.transform import prepare
from qat.transform.policy import Part, TensorRule

LABELS = {"MinMax": "min-max", "MovingAverage": "moving average", "Percentile": "percentile", "MeanAbs": "mean-abs"}
"""How tables call an observer, where that is not its class name."""


class PTQBaselines(L.Callback):
    """Calibrates one `Static` network for each observer, before the first training step.

    Needs a `QuantizationAwareTraining` beside it, in any order: the float network, the policy and the calibration images are
    that callback's. `networks` holds the results; `Report` measures them.

        trainer = L.Trainer(callbacks=[QuantizationAwareTraining("w4a8"), PTQBaselines(), Report()])

    Args:
        observers: class names or {"_target_": ..., option: value}; or a mapping from the name in tables to one of these.

    Raises:
        ValueError: an observer does not exist, or no observers are given.
    """

    def __init__(self, observers: Sequence[Part] | Mapping[str, Part] = ("MinMax", "MSE")) -> None:
        if not observers:
            raise ValueError("PTQBaselines has no observers: write for example observers=['MinMax', 'MSE'].")
        named: Mapping[str, Part] = (
            observers if isinstance(observers, Mapping) else {f"PTQ {label(part)}": part for part in observers}
        )
        for part in named.values():
            TensorRule(bits=8, quantizer="Static", observer=part)  # says now what is wrong with it
        self.observers: dict[str, Part] = dict(named)
        self.networks: dict[str, nn.Module] = {}
        """Calibrated networks by name, on the CPU."""
        self.seconds: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        companion(trainer, QuantizationAwareTraining, self)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        qat = companion(trainer, QuantizationAwareTraining, self)
        if qat.float_network is None:
            raise ValueError(
                "PTQBaselines needs the float network, but it was prepared before the Trainer saw it: give "
                "QuantizationAwareTraining the LightningModule with its float network."
            )
        for name, part in self.observers.items():
            start = time.perf_counter()
            network = prepare(qat.float_network, qat.policy.with_parts("Static", part))
            qat.calibrate(trainer, pl_module, network.to(pl_module.device))
            self.networks[name] = network.cpu()
            self.seconds[name] = time.perf_counter() - start


def label(part: Any) -> str:
    """What tables call an observer.

    >>> label("MinMax"), label({"_target_": "qat.observers.Percentile", "percentile": 99.9})
    ('min-max', 'percentile percentile=99.9')
    """
    options = {} if isinstance(part, str) else dict(part)
    name = str(part if isinstance(part, str) else options.pop("_target_", "")).rpartition(".")[2]
    return " ".join([LABELS.get(name, name), *(f"{key}={value}" for key, value in options.items())])
