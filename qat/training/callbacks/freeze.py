"""Late in a fit, what moves without being needed any more comes to rest."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import LBFGS, Optimizer

from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.lightning.callback_lookup import require_callback
from qat.training.lightning.fit_progress import check_length, is_fraction, progress
from qat.training.optimization.parameter_groups import quantizer_parameters


class Freeze(L.Callback):
    """Freezes BatchNorm statistics, learned scales, or both, from a share of the fit on.

    A frozen BatchNorm normalises with its running statistics, also in training, and does not update them (Krishnamoorthi
    2018, https://arxiv.org/abs/1806.08342); its gain and shift still learn. A frozen scale (every parameter of a
    quantizer) has no gradient when the optimizer steps, so that neither momentum nor weight decay moves it. What is frozen
    follows from how far the fit is and nothing else, so a resumed fit goes on exactly. Needs a `QuantizationAwareTraining`
    beside it, in any order.

        trainer = L.Trainer(callbacks=[QuantizationAwareTraining("w4a4"), Freeze(batch_norm=0.8, scales=0.9)])

    Args:
        batch_norm, scales: the share of the fit, in [0, 1], after which they are frozen. None: never.

    Raises:
        ValueError: a share is out of range; when the fit begins: it has no known length, or scales are to be frozen under
            LBFGS, whose memory of past gradients would move them.
    """

    def __init__(self, batch_norm: float | None = None, scales: float | None = None) -> None:
        for name, share in (("batch_norm", batch_norm), ("scales", scales)):
            if share is not None and not is_fraction(share):
                raise ValueError(
                    f"{name}={share!r} is no share of the fit: write a number from 0 to 1, such as 0.8, or null."
                )
        self.batch_norm, self.scales = batch_norm, scales
        self._scales_rest = False
        self._resting: list[_BatchNorm] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        require_callback(trainer, QuantizationAwareTraining, self)
        if stage == "fit" and (self.batch_norm is not None or self.scales is not None):
            check_length(trainer, self)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.scales is not None and any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise ValueError(
                "LBFGS moves scales that have no gradient: write Freeze(scales=None), or use another optimizer."
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Each time anew: whoever calls `train()` on the module wakes its BatchNorms."""
        done = progress(trainer, batch_idx)
        self._scales_rest = self.scales is not None and done >= self.scales
        if self.batch_norm is None or done < self.batch_norm:
            return
        for module in require_callback(trainer, QuantizationAwareTraining, self).network_of(pl_module).modules():
            if isinstance(module, _BatchNorm) and module.training:
                module.eval()
                self._resting.append(module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Before gradients are clipped: what is frozen does not count in their norm. (DDP insists on gradients for all.)"""
        if self._scales_rest:
            network = require_callback(trainer, QuantizationAwareTraining, self).network_of(pl_module)
            for parameter in quantizer_parameters(network).values():
                parameter.grad = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._scales_rest = False
        for module in self._resting:
            module.train()
        self._resting.clear()
