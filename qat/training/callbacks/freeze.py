"""Freeze BatchNorm statistics and learned scales late in a fit."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch.optim import LBFGS, Optimizer

from qat.torch_private import BatchNorm
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.lightning.callback_lookup import require_callback
from qat.training.lightning.fit_progress import check_known_length, fraction_of_fit, is_fraction
from qat.training.optimization.parameter_groups import quantizer_parameters


class Freeze(L.Callback):
    """Freezes BatchNorm statistics, learned scales, or both, for the last part of the fit.

    A frozen BatchNorm normalises with its running statistics, also in training, and does not update them (Krishnamoorthi
    2018, https://arxiv.org/abs/1806.08342); its gain and shift still learn. A frozen scale (every parameter of a
    quantizer) has no gradient when the optimizer steps, so neither momentum nor weight decay moves it. What is frozen
    depends on the progress of the fit only, so a resumed fit continues exactly. Needs a `QuantizationAwareTraining`
    beside it, in any order.

        trainer = L.Trainer(callbacks=[QuantizationAwareTraining("w4a4"), Freeze(batch_norm=0.8, scales=0.9)])

    Args:
        batch_norm: share of the fit, in [0, 1], after which BatchNorm is frozen. None: never.
        scales: share of the fit after which learned scales are frozen. None: never.

    Raises:
        ValueError: a share is out of range; when the fit begins: its length is unknown, or scales are to be frozen under
            LBFGS, whose memory of past gradients would move them.
    """

    def __init__(self, batch_norm: float | None = None, scales: float | None = None) -> None:
        for name, share in (("batch_norm", batch_norm), ("scales", scales)):
            if share is not None and not is_fraction(share):
                raise ValueError(
                    f"{name}={share!r} is not a valid share of the fit: write a number from 0 to 1, such as 0.8, or null."
                )
        self.batch_norm, self.scales = batch_norm, scales
        self._scales_frozen = False
        self._frozen_batch_norms: list[BatchNorm] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        require_callback(trainer, QuantizationAwareTraining, self)
        if stage == "fit" and (self.batch_norm is not None or self.scales is not None):
            check_known_length(trainer, self)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.scales is not None and any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise ValueError(
                "LBFGS moves scales that have no gradient: write Freeze(scales=None), or use another optimizer."
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Freeze BatchNorms before every batch: a call of `train()` on the module would unfreeze them."""
        done = fraction_of_fit(trainer, batch_idx)
        self._scales_frozen = self.scales is not None and done >= self.scales
        if self.batch_norm is None or done < self.batch_norm:
            return
        for module in require_callback(trainer, QuantizationAwareTraining, self).network_of(pl_module).modules():
            if isinstance(module, BatchNorm) and module.training:
                module.eval()
                self._frozen_batch_norms.append(module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Drop gradients here: after DDP, which needs all of them, and before clipping, whose norm must not count them."""
        if self._scales_frozen:
            network = require_callback(trainer, QuantizationAwareTraining, self).network_of(pl_module)
            for parameter in quantizer_parameters(network).values():
                parameter.grad = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._scales_frozen = False
        for module in self._frozen_batch_norms:
            module.train()
        self._frozen_batch_norms.clear()
