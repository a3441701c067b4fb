"""Learns the rounding (and the step sizes) of segments, against the output of the float network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.optim import Adam

from qat.nn import as_quantized
from qat.ptq.rounding import (
    SoftRounding,
    finish_soft_rounding,
    rectified_sigmoid,
    rounding_regularizer,
    start_soft_rounding,
)
from qat.ptq.segment import Segment, layers_with_quantized_weights
from qat.ptq.side_by_side import SideBySideRun
from qat.ptq.state import PTQState
from qat.quantizers import LSQ, Quantizer
from qat.transform import quantizers


@dataclass(frozen=True)
class Reconstruction:
    """How segments are reconstructed.

    Args:
        iterations: Adam steps for each segment.
        batch_size: random images of the calibration data in each step.
        lr: learning rate of V, constant.
        scale_lr: learning rate of the step sizes of activations, relative to each, falling to 0 on a cosine; 0 leaves them
            as they are.
        drop: probability with which an activation value stays in float (QDrop).
        regularization: weight of the regularizer, whose beta falls on a cosine from `beta_start` to `beta_end`.
        warmup: fraction of the iterations, at the start, without the regularizer.

    Raises:
        ValueError: an option is out of range.
    """

    iterations: int = 500
    batch_size: int = 32
    lr: float = 1e-2
    scale_lr: float = 0.0
    drop: float = 0.0
    regularization: float = 0.01
    beta_start: float = 20.0
    beta_end: float = 2.0
    warmup: float = 0.2

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is not possible: write a whole number, 1 or more.")
        for name in ("lr", "scale_lr", "regularization"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)!r} is not possible: write a number, 0 or more.")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop={self.drop!r} is not a probability below 1: write for example 0.5.")

    def run(self, state: PTQState, find: Callable[[nn.Module, fx.Graph], list[Segment]], name: str) -> None:
        """Reconstruct all segments that `find` returns, in their order, each on the outputs of those reconstructed before."""
        networks = SideBySideRun(state)
        segments = {segment.nodes[0]: segment for segment in find(state.network, networks.graph)}
        done = 0
        state.on_progress(name, done, len(segments))
        for node in networks:
            if node in segments:
                self._reconstruct(state, networks, segments[node])
                done += 1
                state.on_progress(name, done, len(segments))

    def beta(self, step: int) -> float:
        """The regularizer's exponent at `step`: the larger it is, the more weights may stay undecided."""
        progress = (step / self.iterations - self.warmup) / (1 - self.warmup)
        return self.beta_end + 0.5 * (self.beta_start - self.beta_end) * (1 + math.cos(math.pi * max(0.0, progress)))

    def _reconstruct(self, state: PTQState, networks: SideBySideRun, segment: Segment) -> None:
        """Reconstruct the segment whose first operation is next. Its layers and sites keep the result."""
        assert state.reference is not None
        data = _Data(
            networks.quantized.tensor(segment.start),
            networks.float.tensor(segment.start),
            _outputs(segment.extract(state.reference), networks.float[segment.start]),
        )
        module = segment.extract(state.network)
        quantized = [as_quantized(layer) for layer in layers_with_quantized_weights(state.network, segment.nodes)]
        layers = [layer for layer in quantized if layer.weight_quantizer and layer.weight_quantizer.scaled_codes]
        if not layers:  # weights in floating-point formats have no two neighbouring codes of equal distance
            return
        roundings = [start_soft_rounding(layer) for layer in layers]
        scales = learn_scales(module, self.drop) if self.scale_lr or self.drop else {}
        self._learn(module, roundings, list(scales.values()), data)
        for layer, rounding in zip(layers, roundings, strict=True):
            finish_soft_rounding(layer, rounding)
        for site, learned in scales.items():
            site.set_qparams(learned.qparams())

    @torch.enable_grad()
    def _learn(self, module: nn.Module, roundings: list[SoftRounding], scales: list[LSQ], data: _Data) -> None:
        first_lr = [self.scale_lr * float(site.scale.detach()) for site in scales]
        parameters = [*(r.v for r in roundings), *(site.scale for site in scales)]
        rates = [*(self.lr for _ in roundings), *first_lr]
        optimizer = Adam([{"params": [p], "lr": lr} for p, lr in zip(parameters, rates, strict=True)])
        for step in range(self.iterations):
            for group, lr in zip(optimizer.param_groups[len(roundings) :], first_lr, strict=True):
                group["lr"] = 0.5 * lr * (1 + math.cos(math.pi * step / self.iterations))
            x, target = data.sample(self.batch_size, self.drop)
            loss = (module(x) - target).square().sum(dim=1).mean()
            if step >= self.warmup * self.iterations:
                undecided = sum(rounding_regularizer(rectified_sigmoid(r.v), self.beta(step)) for r in roundings)
                loss = loss + self.regularization * undecided
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()


class _Data(NamedTuple):
    """The data of one segment, for all images: its input, quantized and in float, and its float output."""

    inputs: Tensor
    float_inputs: Tensor
    target: Tensor

    def sample(self, n: int, drop: float) -> tuple[Tensor, Tensor]:
        """n random images: input (each value in float with probability `drop`) and target."""
        chosen = torch.randint(len(self.inputs), (n,)).to(self.inputs.device)
        x = self.inputs[chosen]
        if drop:
            x = torch.where(torch.rand_like(x) < drop, self.float_inputs[chosen], x)
        return x, self.target[chosen]


class QDropQuantizer(nn.Module):
    """Leaves each value in float with probability `drop` (Wei et al. 2022, eq. 10)."""

    def __init__(self, quantizer: nn.Module, drop: float) -> None:
        super().__init__()
        self.quantizer, self.drop = quantizer, drop

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.rand_like(x) < self.drop, x, self.quantizer(x))


@torch.no_grad()
def _outputs(module: nn.Module, batches: list[Tensor]) -> Tensor:
    return torch.cat([module(batch) for batch in batches])


def learn_scales(module: nn.Module, drop: float) -> dict[Quantizer, LSQ]:
    """Replace each site of an extracted module by an LSQ (with QDrop, if `drop` is not 0). Returns site -> its LSQ."""
    found = {n: q for n, q in quantizers(module).items() if not n.endswith(".weight_quantizer")}
    learned: dict[Quantizer, LSQ] = {}
    for name, site in found.items():
        learned[site] = lsq = LSQ(site.spec).to(site.zero_point.device)
        lsq.set_qparams(site.qparams())
        module.set_submodule(name, QDropQuantizer(lsq, drop) if drop else lsq)
    return learned
