"""From many bits to few, in stages."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.lightning.callback_lookup import require_callback
from qat.training.lightning.compilation import without_compilation
from qat.training.lightning.fit_progress import check_length, is_fraction, progress
from qat.training.optimization.averaging import copy_ranges_to_averages, set_bits_of_averages
from qat.training.optimization.parameter_groups import quantizer_parameters
from qat.transform import FLOAT, bits_in_force, quantizers, set_bits

log = logging.getLogger(__name__)

COUNTERS = (None, "step", "epoch")
"""What a ModelCheckpoint monitors that keeps the newest, and does not choose."""


class ProgressiveBits(L.Callback):
    """Trains with more bits at first: each stage begins with the weights of the one before (progressive quantization of
    Zhuang et al. 2018, https://arxiv.org/abs/1711.00205).

    In a stage of b bits a quantizer has max(b, the policy's) bits, so that what stays at 8 bits does; 32 is a stage in float.
    The last stage is the policy itself. A quantizer whose grid changes gets a new range from the training images, as at the
    start of the fit; its optimizer forgets its momentum. Quantizers with levels of their own (`Ternary`, `Binary`, `SAWB`,
    `APoT`, `NF4`, ...) keep them in all stages but a float one. Which stage it is follows from how far the fit is and nothing
    else, so a resumed fit goes on exactly.

    The best checkpoint is chosen in the last stage alone: before it, a `ModelCheckpoint` that monitors a metric keeps nothing,
    but `save_last` and those that keep the newest go on; `EarlyStopping` counts anew in each stage. A fit that ends before
    its last stage exports nothing.

    Differs from the paper: stages are shares of one fit with one schedule of the learning rate, not fits of their own; a new
    stage calibrates.

        trainer = L.Trainer(callbacks=[QuantizationAwareTraining("w2a2"), ProgressiveBits([8, 4, 3, 2])])

    Args:
        stages: bits, falling to the policy's fewest, of stages that are equally long; or {share of the fit: bits from there
            on}, such as {0.0: 8, 0.2: 4, 0.5: 2}. None: the policy's bits all along.

    Raises:
        ValueError: stages are impossible; when the fit begins: they do not end with the policy's bits, the fit is too short for
            them or has no known length, or DDP does not look for unused parameters, which scales are in a float stage.
    """

    def __init__(self, stages: Sequence[int] | Mapping[float, int] | None = None) -> None:
        self.stages = _stages(stages) if stages is not None else {}
        self._held = False
        """Whether no checkpoint is chosen yet: until the last stage is validated, metrics are those of an earlier one."""
        self._top_k: dict[ModelCheckpoint, int] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not self.stages:
            return
        require_callback(trainer, QuantizationAwareTraining, self).staged = True
        if stage == "fit":
            check_length(trainer, self)
            self._held = False

    def state_dict(self) -> dict[str, Any]:
        return {"stages": [list(stage) for stage in self.stages.items()], "held": self._held}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for a checkpoint of other stages."""
        found = dict(map(tuple, state_dict["stages"]))
        if found != self.stages:
            raise ValueError(
                f"the checkpoint was trained with the stages {found}, this run has {self.stages}: use the same."
            )
        self._held = state_dict["held"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stages:
            self.check_bits(self._network(trainer, pl_module))
            self._check_length(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What a resumed fit held back when it was interrupted."""
        if self._held:
            self._hold(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.stages:
            return
        bits = self.bits_at(progress(trainer, batch_idx))
        if bits != bits_in_force(self._network(trainer, pl_module)):
            self._enter(trainer, pl_module, bits)

    def bits_at(self, share: float) -> int | None:
        """Those of the stage in which this share of the fit is over; None in the last stage."""
        bits = [bits for begin, bits in self.stages.items() if begin <= share][-1]
        return None if bits == min(self.stages.values()) else bits

    def _enter(self, trainer: Any, pl_module: L.LightningModule, bits: int | None) -> None:
        qat, network = require_callback(trainer, QuantizationAwareTraining, self), self._network(trainer, pl_module)
        set_bits(network, bits)
        set_bits_of_averages(trainer, pl_module, network, bits)
        waiting = nn.ModuleDict({str(i): q for i, q in enumerate(quantizers(network).values()) if not q.ready})
        with without_compilation(network):
            qat.calibrate(trainer, pl_module, network)
        copy_ranges_to_averages(trainer, pl_module, network)
        for parameter in quantizer_parameters(waiting).values():
            parameter.grad = None
            for optimizer in trainer.optimizers:
                optimizer.state.pop(parameter, None)
        for checkpoint in trainer.checkpoint_callbacks:
            if bits is None and isinstance(checkpoint, ModelCheckpoint):
                checkpoint.best_model_path = ""  # what was kept as the newest is not of this stage
        self._hold(trainer)
        for stopping in trainer.early_stopping_callbacks:
            _begin_anew(stopping)
        log.info("step %s: %s bits", f"{trainer.global_step:,}", "the policy's" if bits is None else bits)

    # The best checkpoint ---------------------------------------------------------------------------------------------

    def _hold(self, trainer: Any) -> None:
        self._held = True
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor not in COUNTERS:
                self._top_k.setdefault(checkpoint, checkpoint.save_top_k)
                checkpoint.save_top_k = 0

    def _release(self) -> None:
        for checkpoint, top_k in self._top_k.items():
            checkpoint.save_top_k = top_k
        self._top_k.clear()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the checkpoints' own hooks, which come last."""
        if self._held and not trainer.sanity_checking and bits_in_force(self._network(trainer, pl_module)) is None:
            self._held = False
            self._release()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.enable_validation:
            self.on_validation_end(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._release()

    # Checks ----------------------------------------------------------------------------------------------------------

    def _network(self, trainer: L.Trainer, pl_module: L.LightningModule) -> nn.Module:
        return require_callback(trainer, QuantizationAwareTraining, self).network_of(pl_module)

    def check_bits(self, network: nn.Module) -> None:
        """The stages lead to the policy of this prepared network.

        Raises:
            ValueError: they do not.
        """
        bits = list(self.stages.values())
        widths = [q.policy_grid.bits for q in quantizers(network).values() if q.supports_other_bits]
        if not bits:
            return
        if not widths:
            raise ValueError("no quantizer can have other bits than the policy says: leave ProgressiveBits out.")
        if bits[-1] != min(widths):
            raise ValueError(
                f"the stages end with {bits[-1]} bits, the policy's fewest are {min(widths)}: write stages that end with "
                f"{min(widths)}, such as {[b for b in bits if b > min(widths)] + [min(widths)]}."
            )

    def _check_length(self, trainer: L.Trainer) -> None:
        steps = trainer.estimated_stepping_batches
        shortest = min(end - begin for begin, end in pairwise([*self.stages, 1.0]))
        if steps * shortest < 1:
            raise ValueError(
                f"a fit of {steps:.0f} steps is too short for the stages {self.stages}: give it more steps."
            )
        strategy: Any = trainer.strategy
        looks = isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters")
        if FLOAT in self.stages.values() and looks:
            raise ValueError(
                f"scales are unused at {FLOAT} bits, which DDP does not expect: write strategy="
                "'ddp_find_unused_parameters_true', or begin with 8 bits."
            )


def _stages(stages: Sequence[int] | Mapping[float, int]) -> dict[float, int]:
    """Share of the fit at which it begins -> bits."""
    if isinstance(stages, str) or not isinstance(stages, Sequence | Mapping) or not stages:
        raise ValueError(f"stages={stages!r} is no list of bits: write [8, 4, 2], or {{0.0: 8, 0.3: 4, 0.6: 2}}.")
    found = dict(stages) if isinstance(stages, Mapping) else {i / len(stages): b for i, b in enumerate(stages)}
    shares, bits = list(found), list(found.values())
    if not all(map(is_fraction, shares)) or shares[0] != 0 or shares != sorted(shares) or shares[-1] == 1:
        raise ValueError(f"stages begin at {shares}: write shares of the fit, rising from 0.0 and below 1.0.")
    for width in bits:
        if not isinstance(width, int) or isinstance(width, bool) or not (2 <= width <= 8 or width == FLOAT):
            raise ValueError(f"stages have {width!r} bits: write whole numbers from 2 to 8, or {FLOAT} for float.")
    if any(a <= b for a, b in pairwise(bits)):
        raise ValueError(f"stages have {bits} bits: write fewer in each, as in [8, 4, 2].")
    return found


def _begin_anew(stopping: EarlyStopping) -> None:
    """Fewer bits are worse: the best value of more bits is no measure."""
    stopping.wait_count = 0
    stopping.best_score = torch.tensor(torch.inf if stopping.monitor_op is torch.lt else -torch.inf)
