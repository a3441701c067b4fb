"""Progressive quantization: from many bits to few, in stages."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.lightning.callback_lookup import require_callback
from qat.training.lightning.compilation import without_compilation
from qat.training.lightning.fit_progress import check_known_length, fraction_of_fit, is_fraction
from qat.training.lightning.private_api import finds_unused_parameters
from qat.training.lightning.selection import (
    forget_best,
    restart_early_stopping,
    resume_selection,
    suspend_selection,
)
from qat.training.optimization.averaging import copy_ranges_to_averages, set_bits_of_averages
from qat.training.optimization.parameter_groups import quantizer_parameters
from qat.transform import FLOAT, bits_in_force, quantizers, set_bits

log = logging.getLogger(__name__)


class ProgressiveBits(L.Callback):
    """Trains with more bits at first: each stage begins with the weights of the one before (progressive quantization of
    Zhuang et al. 2018, https://arxiv.org/abs/1711.00205).

    In a stage of b bits a quantizer has max(b, the policy's) bits, so quantizers of 8 bits keep them; 32 is a stage in float.
    The last stage is the policy itself. A quantizer whose grid changes gets a new range from the training images, as at the
    start of the fit, and its optimizer forgets its momentum. Quantizers with levels of their own (`Ternary`, `Binary`,
    `SAWB`, `APoT`, `NF4`, ...) keep them in all stages but a float one. The stage depends on the progress of the fit only, so
    a resumed fit continues exactly.

    The best checkpoint is chosen in the last stage: before it, a `ModelCheckpoint` that monitors a metric keeps nothing, but
    `save_last` and those that keep the newest continue. `EarlyStopping` starts again in each stage. A fit that ends before
    its last stage exports nothing.

    Differs from the paper: stages are shares of one fit with one schedule of the learning rate, not fits of their own; a new
    stage calibrates.

        trainer = L.Trainer(callbacks=[QuantizationAwareTraining("w2a2"), ProgressiveBits([8, 4, 3, 2])])

    Args:
        stages: bits of equally long stages, falling to the policy's fewest; or {share of the fit: bits from there on}, such
            as {0.0: 8, 0.2: 4, 0.5: 2}. None: the policy's bits throughout.

    Raises:
        ValueError: stages are impossible; when the fit begins: they do not end with the policy's bits, the fit is too short
            for them or has no known length, or DDP does not look for unused parameters, which scales are in a float stage.
    """

    def __init__(self, stages: Sequence[int] | Mapping[float, int] | None = None) -> None:
        self.stages = _parse_stages(stages) if stages is not None else {}
        self._selection_suspended = False
        """Whether no best checkpoint is chosen: before the first validation of the last stage, metrics are of other bits."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not self.stages:
            return
        require_callback(trainer, QuantizationAwareTraining, self).staged = True
        if stage == "fit":
            check_known_length(trainer, self)
            self._selection_suspended = False

    def state_dict(self) -> dict[str, Any]:
        return {"stages": [list(stage) for stage in self.stages.items()], "held": self._selection_suspended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            ValueError: it was trained with other stages.
        """
        stages = dict(map(tuple, state_dict["stages"]))
        if stages != self.stages:
            raise ValueError(
                f"the checkpoint was trained with the stages {stages}, this run has {self.stages}: use the same."
            )
        self._selection_suspended = state_dict["held"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stages:
            self.check_bits(self._network(trainer, pl_module))
            self.check_length(trainer.estimated_stepping_batches)
            self._check_strategy(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """In a resumed fit: suspend the selection again if it was suspended."""
        if self._selection_suspended:
            self._suspend_selection(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.stages:
            return
        bits = self.bits_at(fraction_of_fit(trainer, batch_idx))
        if bits != bits_in_force(self._network(trainer, pl_module)):
            self._enter_stage(trainer, pl_module, bits)

    def bits_at(self, share: float) -> int | None:
        """The bits of the stage that has begun when this share of the fit is done; None in the last stage."""
        bits = [bits for begin, bits in self.stages.items() if begin <= share][-1]
        return None if bits == min(self.stages.values()) else bits

    def _enter_stage(self, trainer: Any, pl_module: L.LightningModule, bits: int | None) -> None:
        qat, network = require_callback(trainer, QuantizationAwareTraining, self), self._network(trainer, pl_module)
        set_bits(network, bits)
        set_bits_of_averages(trainer, pl_module, network, bits)
        changed = nn.ModuleDict({str(i): q for i, q in enumerate(quantizers(network).values()) if not q.ready})
        with without_compilation(network):
            qat.calibrate(trainer, pl_module, network)
        copy_ranges_to_averages(trainer, pl_module, network)
        for parameter in quantizer_parameters(changed).values():
            parameter.grad = None
            for optimizer in trainer.optimizers:
                optimizer.state.pop(parameter, None)
        if bits is None:
            forget_best(trainer)  # the newest one so far is of an earlier stage
        self._suspend_selection(trainer)
        restart_early_stopping(trainer)
        log.info("step %s: %s bits", f"{trainer.global_step:,}", "the policy's" if bits is None else bits)

    # The best checkpoint ---------------------------------------------------------------------------------------------

    def _suspend_selection(self, trainer: Any) -> None:
        self._selection_suspended = True
        suspend_selection(trainer, self)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Resume the selection in the last stage. Lightning calls the hooks of checkpoints after this one."""
        if (
            self._selection_suspended
            and not trainer.sanity_checking
            and bits_in_force(self._network(trainer, pl_module)) is None
        ):
            self._selection_suspended = False
            resume_selection(trainer, self)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.enable_validation:
            self.on_validation_end(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        resume_selection(trainer, self)

    # Checks ----------------------------------------------------------------------------------------------------------

    def _network(self, trainer: L.Trainer, pl_module: L.LightningModule) -> nn.Module:
        return require_callback(trainer, QuantizationAwareTraining, self).network_of(pl_module)

    def check_bits(self, network: nn.Module) -> None:
        """Check that the stages end with the policy of this prepared network.

        Raises:
            ValueError: they do not, or no quantizer can have other bits.
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

    def check_length(self, steps: float) -> None:
        """Check that every stage of a fit of so many optimizer steps has one.

        Raises:
            ValueError: one has none.
        """
        shortest = min((end - begin for begin, end in pairwise([*self.stages, 1.0])), default=1.0)
        if steps * shortest < 1:
            raise ValueError(
                f"a fit of {steps:.0f} steps is too short for the stages {self.stages}: give it more steps."
            )

    def _check_strategy(self, trainer: L.Trainer) -> None:
        strategy: Any = trainer.strategy
        expects_all_gradients = isinstance(strategy, DDPStrategy) and not finds_unused_parameters(strategy)
        if FLOAT in self.stages.values() and expects_all_gradients:
            raise ValueError(
                f"scales are unused at {FLOAT} bits, which DDP does not expect: write strategy="
                "'ddp_find_unused_parameters_true', or begin with 8 bits."
            )


def _parse_stages(stages: Sequence[int] | Mapping[float, int]) -> dict[float, int]:
    """The stages as {share of the fit at which a stage begins: its bits}.

    Raises:
        ValueError: they are impossible.
    """
    if isinstance(stages, str) or not isinstance(stages, Sequence | Mapping) or not stages:
        raise ValueError(f"stages={stages!r} is not a list of bits: write [8, 4, 2], or {{0.0: 8, 0.3: 4, 0.6: 2}}.")
    parsed = dict(stages) if isinstance(stages, Mapping) else {i / len(stages): b for i, b in enumerate(stages)}
    shares, bits = list(parsed), list(parsed.values())
    if not all(map(is_fraction, shares)) or shares[0] != 0 or shares != sorted(shares) or shares[-1] == 1:
        raise ValueError(
            f"stages={stages!r} begin at {shares}: write shares of the fit, rising from 0.0 and below 1.0."
        )
    for width in bits:
        if not isinstance(width, int) or isinstance(width, bool) or not (2 <= width <= 8 or width == FLOAT):
            raise ValueError(f"stages have {width!r} bits: write whole numbers from 2 to 8, or {FLOAT} for float.")
    if any(a <= b for a, b in pairwise(bits)):
        raise ValueError(f"stages have {bits} bits: write fewer in each, as in [8, 4, 2].")
    return parsed
