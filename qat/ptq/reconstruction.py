"""Learns the rounding (and the step sizes) of segments, against the output of the float network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.optim import Adam

from qat.arguments import is_number, is_whole_number
from qat.kernels.layout import is_channels_last
from qat.nn import as_quantized
from qat.ptq.positions import LayerAtPositions
from qat.ptq.rounding import SoftRounding, finish_soft_rounding, start_soft_rounding
from qat.ptq.segment import Segment, layers_with_quantized_weights
from qat.ptq.side_by_side import SideBySideRun
from qat.ptq.state import PTQState
from qat.quantizers import LSQ, Quantizer
from qat.transform import quantizers

CHECK_EVERY = 10
"""Steps between two looks at whether every rounding is decided."""


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
        warmup: fraction of the iterations, at the start, without the regularizer. Behind it a segment ends as soon as every
            rounding is decided.
        positions: a single layer (of `layer_segments`) learns at this number of positions of its output for each image of a
            step, drawn from all images; 0: at all positions of the step's images, as every larger segment.

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
    positions: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size"):
            if not is_whole_number(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r} is not possible: write a whole number, 1 or more.")
        for name in ("lr", "scale_lr", "regularization"):
            if not (is_number(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name}={value!r} is not possible: write a number, 0 or more.")
        if not (is_number(self.drop) and 0 <= self.drop < 1):
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
        quantized = [as_quantized(layer) for layer in layers_with_quantized_weights(state.network, segment.nodes)]
        layers = [layer for layer in quantized if layer.weight_quantizer and layer.weight_quantizer.scaled_codes]
        if not layers:  # weights in floating-point formats have no two neighbouring codes of equal distance
            return
        inputs = networks.quantized.tensor(segment.start)
        target = _outputs(segment.extract(state.reference), networks.float[segment.start])
        learns_scales = bool(self.scale_lr or self.drop)
        data: LayerAtPositions | WholeImages | None = None
        if self.positions and not learns_scales:
            data = at_positions(state.network, segment, inputs, target)
        scales: dict[Quantizer, LSQ] = {}
        if data is None:
            module = segment.extract(state.network)
            scales = learn_scales(module, self.drop) if learns_scales else {}
            float_inputs = networks.float.tensor(segment.start) if self.drop else inputs
            data = WholeImages(module, inputs, float_inputs, target, self.drop)
        roundings = [start_soft_rounding(layer) for layer in layers]
        self._learn(data, roundings, list(scales.values()))
        for layer, rounding in zip(layers, roundings, strict=True):
            finish_soft_rounding(layer, rounding)
        for site, learned in scales.items():
            site.set_qparams(learned.qparams())

    @torch.enable_grad()
    def _learn(self, data: LayerAtPositions | WholeImages, roundings: list[SoftRounding], scales: list[LSQ]) -> None:
        first_lr = [self.scale_lr * float(site.scale.detach()) for site in scales]
        parameters = [*(r.v for r in roundings), *(site.scale for site in scales)]
        rates = [*(self.lr for _ in roundings), *first_lr]
        groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, rates, strict=True)]
        optimizer = Adam(groups, fused=parameters[0].device.type in ("cpu", "cuda"))
        for step in range(self.iterations):
            for group, lr in zip(optimizer.param_groups[len(roundings) :], first_lr, strict=True):
                group["lr"] = 0.5 * lr * (1 + math.cos(math.pi * step / self.iterations))
            if step >= self.warmup * self.iterations:
                if step % CHECK_EVERY == 0 and all(r.decided() for r in roundings):
                    return
                for r in roundings:
                    r.regularization, r.beta = self.regularization, self.beta(step)
            x, target = data.sample(self.batch_size, self.positions)
            y = data.compute(x)
            loss = F.mse_loss(y.float(), target.float(), reduction="sum") / (y.numel() / y.shape[1])
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()


def at_positions(network: nn.Module, segment: Segment, inputs: Tensor, target: Tensor) -> LayerAtPositions | None:
    """A segment of `layer_segments` at positions of its output; None if its layer cannot be computed so."""
    first, *others = segment.nodes
    layer = network.get_submodule(str(first.target))
    modules = [network.get_submodule(str(n.target)) for n in others if n.op == "call_module"]
    if not LayerAtPositions.takes(layer, modules, inputs):
        return None
    behind = Segment(first, tuple(others)).extract(network) if others else nn.Identity()
    return LayerAtPositions(layer, behind, inputs, target)


class WholeImages:
    """A segment on whole images. Tensors hold all images; 4-D ones are channels-last if the segment takes that, because
    convolutions are faster then.

    Args:
        module: the segment.
        inputs, float_inputs: its input, quantized and in float.
        target: its float output.
        drop: probability with which a value of the input is taken from `float_inputs`.
    """

    def __init__(self, module: nn.Module, inputs: Tensor, float_inputs: Tensor, target: Tensor, drop: float) -> None:
        self.compute, self.drop = module, drop
        self.inputs, self.float_inputs, self.target = inputs, float_inputs, target
        if _reads_channels_last(module, inputs):
            self.inputs, self.float_inputs, self.target = map(_channels_last, (inputs, float_inputs, target))

    def sample(self, images: int, _positions: int) -> tuple[Tensor, Tensor]:
        """Random images: input and target."""
        chosen = torch.randint(len(self.inputs), (images,)).to(self.inputs.device)
        x = _take(self.inputs, chosen)
        if self.drop:
            x = torch.where(torch.rand_like(x) < self.drop, _take(self.float_inputs, chosen), x)
        return x, _take(self.target, chosen)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


@torch.no_grad()
def _reads_channels_last(module: nn.Module, inputs: Tensor) -> bool:
    """Whether a segment takes images in the channels-last order: a `view` in it may not."""
    if inputs.ndim != 4:
        return False
    try:
        module(_channels_last(inputs[:1]))
    except RuntimeError:
        return False
    return True


def _take(x: Tensor, chosen: Tensor) -> Tensor:
    """x[chosen], in the memory order of x."""
    if is_channels_last(x):
        return x.permute(0, 2, 3, 1)[chosen].permute(0, 3, 1, 2)
    return x[chosen]


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
