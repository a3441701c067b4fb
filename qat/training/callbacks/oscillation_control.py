"""Count, dampen and freeze weights that oscillate between two codes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qat.arguments import check_kind
from qat.nn import as_quantized, is_quantized
from qat.quantizers import Mode, Oscillations, Quantizer
from qat.report import LayerOscillations, OscillationResult
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.lightning.callback_lookup import NetworkExtension, check_alone, require_callback
from qat.training.lightning.private_api import exclude_from_ddp, unscales_gradients
from qat.training.optimization.cosine_schedule import Schedule, parse_schedule, scheduled_value
from qat.training.optimization.dampening import dampening_gradient


class OscillationControl(NetworkExtension):
    """Counts oscillations of weights (Nagel et al. 2022, https://arxiv.org/abs/2203.11086), and can dampen and freeze them.

    A weight near the threshold between two codes is pushed across it in both directions, so its code at the end of the fit is
    chance. Layers with few weights per scale, such as depthwise convolutions, suffer most. Every weight has a frequency: the
    moving average of "its code changed against the direction of its last change" (eq. 4). `report` holds the shares of each
    layer at the end of the fit; `train/oscillating` and `train/frozen` are logged after each epoch.

    Dampening adds weight * ||clip(w) - dequantize(quantize(w))||^2 to the loss (eq. 5 and 6), with no gradient through the
    quantized value, summed over the counted weights. Its gradient joins that of the loss after accumulation and before
    clipping, so neither training_step nor the logged loss contains it.

    Freezing (algorithm 1) keeps a weight whose frequency exceeds the threshold at its more frequent code, to the end of the
    fit: after each optimizer step it is set to scale * code again, so momentum, decay and a learned scale do not move it.

    With `ProgressiveBits` nothing is counted in stages of more bits than `max_bits`, and each width is counted from its start:
    codes of another width say nothing about it, and nothing stays frozen.

    Needs a `QuantizationAwareTraining` beside it, in any order. The counts are in the state_dict, beside each quantizer, and
    the schedules depend on the progress of the fit only, so a resumed fit continues exactly.

        OscillationControl()                        # counts
        OscillationControl(dampening=(0.0, 0.1))    # the paper's schedules
        OscillationControl(freezing=(0.1, 0.01))

    Differs from the paper: the codes of a step are those after it, with the scale of the next forward; the scale gets no
    gradient from frozen weights other than LSQ's, which is that of a weight that does not move with it.

    Args:
        dampening: weight of the dampening loss: a number, or (first, last), half a cosine over the fit. None: no dampening.
        freezing: frequency above which a weight is frozen: a number, or (first, last). None: no freezing.
        momentum: momentum of the frequencies: 0.01 looks back about 100 steps.
        threshold: frequency above which a weight is reported as oscillating.
        max_bits: weights of more bits are not counted.

    Raises:
        ValueError: a number is out of range; when the fit begins: no weight has so few bits, a schedule without the length of
            the fit, dampening or freezing with a quantizer that may give a weight of scale * code another code (DoReFa, QIL,
            N2UQ, SAWB), or dampening with a fused optimizer in precision "16-mixed".
    """

    def __init__(
        self,
        dampening: Schedule | None = None,
        freezing: Schedule | None = None,
        momentum: float = 0.01,
        threshold: float = 0.005,
        max_bits: int = 4,
    ) -> None:
        for name, value in (("momentum", momentum), ("threshold", threshold)):
            check_kind(name, value, (Real,), "a number between 0 and 1")
        check_kind("max_bits", max_bits, (Integral,), "a whole number of bits, as 4")
        if not 0 < momentum < 1:
            raise ValueError(
                f"momentum={momentum} is not between 0 and 1: write 0.01, which looks back about 100 steps."
            )
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold} is not a frequency between 0 and 1: write for example 0.005.")
        self.dampening = parse_schedule(
            "dampening", dampening, math.inf, "0.1, or [0.0, 0.1] for a cosine over the fit"
        )
        self.freezing = parse_schedule("freezing", freezing, 1.0, "0.02, or [0.1, 0.01] for a cosine over the fit")
        self.momentum = momentum
        self.threshold = threshold
        self.max_bits = max_bits
        self.report: OscillationResult | None = None
        """The shares of each layer at the end of the last fit."""
        self._qat: QuantizationAwareTraining | None = None
        self._last_counted_step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._qat = require_callback(trainer, QuantizationAwareTraining, self)
        check_alone(trainer, self, "with dampening and freezing both")

    def on_prepared(self, pl_module: nn.Module, network: nn.Module) -> None:
        bits_of = {
            name: quantizer.policy_grid.bits  # a codebook, or a stage of ProgressiveBits, may have more
            for name, layer in network.named_modules()
            if (quantizer := _weight_quantizer(layer)) is not None
        }
        tracked = [name for name, bits in bits_of.items() if bits <= self.max_bits]
        if not tracked:
            fewest = min(bits_of.values(), default=None)
            hint = f"the fewest are {fewest}: write max_bits={fewest}" if fewest is not None else "there is none"
            raise ValueError(f"OscillationControl(max_bits={self.max_bits}) finds no weight of so few bits; {hint}.")
        for name in tracked:
            layer = as_quantized(network.get_submodule(name))
            quantizer, weight = layer.weight_quantizer, layer.weight
            assert quantizer is not None
            if (self.dampening, self.freezing) != (None, None) and not quantizer.idempotent:
                raise ValueError(
                    f"{type(quantizer).__name__}, of layer {name!r}, may give a weight of scale * code another code, so it "
                    "can be neither dampened nor frozen: write quantizer=lsq, or oscillation=track."
                )
            if quantizer.oscillations is None:
                quantizer.oscillations = Oscillations(tuple(weight.shape), quantizer.spec.grid.signed).to(weight.device)
        # Every process computes the same counts; DDP would send all of them in every step.
        exclude_from_ddp(pl_module, [name for name, _ in pl_module.named_buffers() if ".oscillations." in name])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scheduled = [s for s in (self.dampening, self.freezing) if isinstance(s, tuple)]
        if scheduled and not math.isfinite(trainer.estimated_stepping_batches):
            raise ValueError(
                f"the schedule {scheduled[0]} needs the length of the fit: set max_epochs or max_steps, or write one number."
            )
        if (
            self.dampening is not None
            and trainer.precision == "16-mixed"
            and any(map(unscales_gradients, trainer.optimizers))
        ):
            raise ValueError(
                "dampening cannot join gradients that a fused optimizer has yet to unscale: write fused=False, or "
                "precision='bf16-mixed'."
            )
        for weight in self._counted_weights(pl_module):
            weight.oscillations.start(weight.codes())
        if self.freezing is None:
            for weight in self._tracked_weights(pl_module):
                weight.oscillations.release()
        self._last_counted_step = trainer.global_step

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if self.dampening is None:
            return
        factor = scheduled_value(self.dampening, trainer, trainer.fit_loop.batch_idx)
        updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for weight in self._counted_weights(pl_module):
            if weight.value.grad is not None and id(weight.value) in updated:
                weight.value.grad.add_(dampening_gradient(weight.quantizer, weight.value), alpha=factor)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_counted_step:  # the optimizer has not stepped: gradients accumulate
            return
        self._last_counted_step = trainer.global_step
        threshold = None if self.freezing is None else scheduled_value(self.freezing, trainer, batch_idx + 1)
        for weight in self._counted_weights(pl_module):
            weight.oscillations.step(weight.codes(), self.momentum)
            if threshold is not None:
                weight.oscillations.freeze(threshold, weight.quantizer.nearest_code)
                frozen_value = weight.quantizer.dequantize(weight.oscillations.code)
                held = weight.oscillations.frozen & (weight.value != 0)  # exactly zero is what `Pruning` has pruned
                weight.value.copy_(torch.where(held, frozen_value, weight.value))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        result = self._summarize(pl_module)
        shares = {"train/oscillating": result.oscillating, "train/frozen": result.frozen}
        pl_module.log_dict(shares, sync_dist=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.report = self._summarize(pl_module)

    def _summarize(self, pl_module: L.LightningModule) -> OscillationResult:
        layers = []
        for weight in self._tracked_weights(pl_module):
            frequency, frozen = weight.oscillations.frequency, weight.oscillations.frozen
            oscillating = int(((frequency > self.threshold) & ~frozen).sum())
            layers.append(LayerOscillations(weight.layer_name, weight.value.numel(), oscillating, int(frozen.sum())))
        return OscillationResult(self.threshold, self.momentum, layers)

    def _tracked_weights(self, pl_module: L.LightningModule) -> Iterator[_TrackedWeight]:
        assert self._qat is not None
        for name, layer in self._qat.network_of(pl_module).named_modules():
            quantizer = _weight_quantizer(layer)
            if quantizer is not None and quantizer.oscillations is not None:
                yield _TrackedWeight(name, as_quantized(layer).weight, quantizer, quantizer.oscillations)

    def _counted_weights(self, pl_module: L.LightningModule) -> Iterator[_TrackedWeight]:
        """The tracked weights that have few bits now: in a stage of `ProgressiveBits` they may have more, or be in float."""
        for weight in self._tracked_weights(pl_module):
            quantizer = weight.quantizer
            has_few_bits = quantizer.spec.grid.bits <= self.max_bits or not quantizer.supports_other_bits
            if has_few_bits and quantizer.mode is Mode.QUANTIZE:
                yield weight


class _TrackedWeight(NamedTuple):
    """A weight whose oscillations are counted."""

    layer_name: str
    value: Tensor
    quantizer: Quantizer
    oscillations: Oscillations

    @torch.no_grad()
    def codes(self) -> Tensor:
        return self.quantizer.quantize(self.value)


def _weight_quantizer(layer: nn.Module) -> Quantizer | None:
    return as_quantized(layer).weight_quantizer if is_quantized(layer) else None
