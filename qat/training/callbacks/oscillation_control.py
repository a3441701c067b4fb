"""Weights that jump back and forth between two codes: counted, dampened, frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from qat.nn import as_quantized, is_quantized
from qat.quantizers import Mode, Oscillations, Quantizer
from qat.report import LayerOscillations, OscillationResult
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.lightning.callback_lookup import NetworkExtension, require_callback

Schedule = float | Sequence[float]
"""A number, or (first, last): half a cosine from the one to the other over the steps of the fit."""


class OscillationControl(NetworkExtension):
    """Counts the oscillations of weights (Nagel et al. 2022, https://arxiv.org/abs/2203.11086), and can dampen and freeze them.

    A weight near the threshold between two codes is pushed across it in both directions, and at the end of the fit its code
    is chance; few weights a scale, as in depthwise convolutions, suffer most. Every weight has a frequency, the moving average
    of "its code changed against the direction of its last change" (eq. 4). `report` holds the shares of each layer at the end
    of the fit; `train/oscillating` and `train/frozen` are logged after each epoch.

    Dampening adds weight * ||clip(w) - dequantize(quantize(w))||^2 to the loss (eq. 5 and 6), with no gradient through the
    quantized value, summed over the weights that are counted: its gradient joins that of the loss after accumulation and
    before clipping, so neither training_step nor the logged loss knows of it.

    Freezing (algorithm 1) keeps a weight whose frequency exceeds the threshold at the code where it was more often, to the end
    of the fit: after each optimizer step it is scale * code again, whatever momentum, decay or a learned scale did.

    With `ProgressiveBits` nothing is counted in stages of more bits than `max_bits`, and each width is counted from its start:
    codes of another width say nothing about it, and nothing stays frozen.

    Needs a `QuantizationAwareTraining` beside it, in any order. The state is in the state_dict, beside each quantizer, so a
    resumed fit goes on with it; the schedules depend on the step alone.

        OscillationControl()                        # counts
        OscillationControl(dampening=(0.0, 0.1))    # the paper's schedules
        OscillationControl(freezing=(0.1, 0.01))

    Differs from the paper: the codes of a step are those after it, with the scale of the next forward; the scale gets no
    gradient from frozen weights other than LSQ's, which is that of a weight that does not move with it.

    Args:
        dampening: the loss's weight: a number, or (first, last), half a cosine over the steps of the fit. None: no dampening.
        freezing: the frequency above which a weight is frozen, likewise.
        momentum: of the frequencies: 0.01 looks back about 100 steps.
        threshold: the frequency above which a weight is reported as oscillating.
        max_bits: weights of more bits are left alone.

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
        if not 0 < momentum < 1:
            raise ValueError(
                f"momentum={momentum} is not between 0 and 1: write 0.01, which looks back about 100 steps."
            )
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold} is no frequency between 0 and 1: write for example 0.005.")
        self.dampening = _schedule("dampening", dampening, math.inf, "0.1, or [0.0, 0.1] for a cosine over the fit")
        self.freezing = _schedule("freezing", freezing, 1.0, "0.02, or [0.1, 0.01] for a cosine over the fit")
        self.momentum = momentum
        self.threshold = threshold
        self.max_bits = max_bits
        self.report: OscillationResult | None = None
        """What the last fit ended with."""
        self._qat: QuantizationAwareTraining | None = None
        self._step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._qat = require_callback(trainer, QuantizationAwareTraining, self)

    def on_prepared(self, pl_module: nn.Module, network: nn.Module) -> None:
        found = {
            name: _bits(q) for name, layer in network.named_modules() if (q := _weight_quantizer(layer)) is not None
        }
        chosen = [name for name, bits in found.items() if bits <= self.max_bits]
        if not chosen:
            least = (
                f"the fewest are {min(found.values())}: write max_bits={min(found.values())}"
                if found
                else "there is none"
            )
            raise ValueError(f"OscillationControl(max_bits={self.max_bits}) finds no weight of so few bits; {least}.")
        for name in chosen:
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
        _keep_apart(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scheduled = [s for s in (self.dampening, self.freezing) if isinstance(s, tuple)]
        if scheduled and not math.isfinite(trainer.estimated_stepping_batches):
            raise ValueError(
                f"the schedule {scheduled[0]} needs the length of the fit: set max_epochs or max_steps, or write one number."
            )
        if self.dampening is not None and trainer.precision == "16-mixed" and any(map(_unscales, trainer.optimizers)):
            raise ValueError(
                "dampening cannot join gradients that a fused optimizer has yet to unscale: write fused=False, or "
                "precision='bf16-mixed'."
            )
        for one in self._counted(pl_module):
            one.state.start(one.codes())
        for one in self._tracked(pl_module):
            if self.freezing is None:
                one.state.release()
        self._step = trainer.global_step

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if self.dampening is None:
            return
        factor = _now(self.dampening, trainer)
        updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for one in self._counted(pl_module):
            if one.weight.grad is not None and id(one.weight) in updated:
                one.weight.grad.add_(dampening_gradient(one.quantizer, one.weight), alpha=factor)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:  # gradients accumulate
            return
        self._step = trainer.global_step
        threshold = None if self.freezing is None else _now(self.freezing, trainer)
        for one in self._counted(pl_module):
            one.state.step(one.codes(), self.momentum)
            if threshold is not None:
                one.state.freeze(threshold, one.quantizer.nearest_code)
                kept = one.quantizer.dequantize(one.state.code)
                one.weight.copy_(torch.where(one.state.frozen, kept, one.weight))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = self._found(pl_module)
        shares = {"train/oscillating": found.oscillating, "train/frozen": found.frozen}
        pl_module.log_dict(shares, sync_dist=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.report = self._found(pl_module)

    def _found(self, pl_module: L.LightningModule) -> OscillationResult:
        layers = [
            LayerOscillations(
                one.name,
                one.weight.numel(),
                int(((one.state.frequency > self.threshold) & ~one.state.frozen).sum()),
                int(one.state.frozen.sum()),
            )
            for one in self._tracked(pl_module)
        ]
        return OscillationResult(self.threshold, self.momentum, layers)

    def _tracked(self, pl_module: L.LightningModule) -> Iterator[_Tracked]:
        assert self._qat is not None
        for name, layer in self._qat.network_of(pl_module).named_modules():
            quantizer = _weight_quantizer(layer)
            if quantizer is not None and quantizer.oscillations is not None:
                yield _Tracked(name, as_quantized(layer).weight, quantizer, quantizer.oscillations)

    def _counted(self, pl_module: L.LightningModule) -> Iterator[_Tracked]:
        """Those that have few bits now: in a stage of progressive quantization they may have more, or be in float."""
        for one in self._tracked(pl_module):
            few = one.quantizer.spec.grid.bits <= self.max_bits or not one.quantizer.supports_other_bits
            if few and one.quantizer.mode is Mode.QUANTIZE:
                yield one


class _Tracked(NamedTuple):
    """One weight whose oscillations are counted; name: of its layer."""

    name: str
    weight: Tensor
    quantizer: Quantizer
    state: Oscillations

    @torch.no_grad()
    def codes(self) -> Tensor:
        return self.quantizer.quantize(self.weight)


@torch.no_grad()
def dampening_gradient(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """Of ||clip(w, lo, hi) - dequantize(quantize(w))||^2, with lo and hi the outermost codes; the weight's shape and dtype.

    Beyond lo and hi it is 0: there the clipped value is the quantized one.
    """
    codes = quantizer.quantize(weight)
    lo, hi = (
        quantizer.dequantize(quantizer.nearest_code(torch.full_like(codes, end))) for end in (-math.inf, math.inf)
    )
    return 2 * (weight.float().clamp(lo, hi) - quantizer.dequantize(codes)).to(weight.dtype)


def cosine(first: float, last: float, progress: float) -> float:
    """Half a cosine from `first` to `last`. progress: 0 at the start of the fit, 1 at its end and beyond.

    >>> [round(cosine(0.1, 0.01, progress), 4) for progress in (0.0, 0.5, 1.0)]
    [0.1, 0.055, 0.01]
    """
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def _now(schedule: float | tuple[float, float], trainer: L.Trainer) -> float:
    if not isinstance(schedule, tuple):
        return schedule
    return cosine(*schedule, progress=trainer.global_step / trainer.estimated_stepping_batches)


def _schedule(name: str, given: Any, highest: float, instead: str) -> float | tuple[float, float] | None:
    """What was given, as a number or a pair of them.

    Raises:
        ValueError: it is neither, or out of range.
    """
    if given is None:
        return None
    pair = isinstance(given, Sequence) and not isinstance(given, str)
    values = tuple(given) if pair else (given,)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= highest for v in values)
    if not numbers or len(values) != 1 + pair:
        span = "0 or more" if highest == math.inf else f"from 0 to {highest:g}"
        raise ValueError(f"{name}={given!r} is not possible: write a number, {span}, as {instead}.")
    return (values[0], values[1]) if pair else values[0]


def _weight_quantizer(layer: nn.Module) -> Quantizer | None:
    return as_quantized(layer).weight_quantizer if is_quantized(layer) else None


def _keep_apart(pl_module: nn.Module) -> None:
    """DDP would send all counts in every step, though every process computes the same ones."""
    ignored = getattr(pl_module, "_ddp_params_and_buffers_to_ignore", [])
    counts = [name for name, _ in pl_module.named_buffers() if ".oscillations." in name]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pl_module, {*ignored, *counts})


def _unscales(optimizer: Optimizer) -> bool:
    """Whether the optimizer divides by the loss scale itself, in its step."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _bits(quantizer: Quantizer) -> int:
    """As the policy says them: a codebook's grid has more, and so has a stage of progressive quantization."""
    return quantizer.policy_grid.bits
