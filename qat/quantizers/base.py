"""What every quantizer is: a spec, a range that was observed or learned, and a mode."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.estimators import Estimator, StraightThrough
from qat.functional import dequantize, fake_quantize, fake_quantize_with, quantize
from qat.grid import Grid
from qat.observers import MinMax, Observer
from qat.quantizers.oscillations import Oscillations
from qat.spec import QParams, QuantSpec


class Mode(Enum):
    """What quantizers do with the tensors that pass through them."""

    OFF = "off"
    """Nothing: the network computes in float."""
    OBSERVE = "observe"
    """Pass the tensor on unchanged and show it to the observer."""
    QUANTIZE = "quantize"
    """Round the tensor to its grid."""


class Table(NamedTuple):
    """What an integer runtime does with an activation whose codes are looked up: it rounds to a fine grid first.

    grid, qparams: of the fine grid. codes: float32, the code of each code of the fine grid, ascending.
    """

    grid: Grid
    qparams: QParams
    codes: Tensor


class Quantizer(nn.Module):
    """Rounds one tensor to the grid of its spec. Subclasses say how scale and rounding learn.

    Every parameter and buffer has its final shape from the start, so optimizers, checkpoints, EMA and DDP see all of it
    before any data does. `initialized`, a buffer, travels with the checkpoint: a restored range is never observed again.

    Args:
        spec: grid, granularity and symmetry.
        shape: shape of the tensor; needed per channel and per group, where it decides the number of scales.
        observer: gives the first range. Default: MinMax(spec).
        estimator: how the gradient of rounding is faked. Default: StraightThrough().
    """

    is_dynamic: ClassVar[bool] = False
    """Whether the range is that of each tensor, so that there is nothing to calibrate, and only inputs of layers have one."""

    by_table: ClassVar[bool] = False
    """Whether codes of an activation are looked up: for inputs of layers, while what flows between layers stays uniform."""

    starts_as_static: ClassVar[bool] = True
    """Whether it first rounds as Static does on the same range, so that a network predicts what PTQ predicts."""

    initialized: Tensor
    zero_point: Tensor
    supports_other_bits = True
    """Whether `set_bits` may change the grid. False where bits are more than a width: levels, or fitted coefficients."""
    idempotent = True
    """Whether the real values of codes have the same codes again."""
    oscillations: Oscillations | None
    """Of a weight whose oscillations somebody counts. Who does not count loads a checkpoint of who does, without them."""

    def __init__(
        self,
        spec: QuantSpec,
        shape: tuple[int, ...] = (),
        observer: Observer | None = None,
        estimator: Estimator | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.policy_grid = spec.grid
        """What the policy says; `set_bits` may put a wider one in force for a while."""
        self.is_weight = len(shape) > 0
        self.observer = observer if observer is not None else MinMax(spec)
        self.estimator = estimator if estimator is not None else StraightThrough()
        self.mode = Mode.QUANTIZE
        self.label = ""
        self.fuses_relu = False
        """Whether this stands for the ReLU before it, too: an unsigned symmetric grid cuts at zero, value and gradient."""
        self.n_qparams = spec.granularity.n_qparams(shape)
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("zero_point", torch.zeros(self.n_qparams, dtype=torch.int32))
        self.register_module("oscillations", None)
        self.ready = False
        self._build()

    def _build(self) -> None:
        """Make what this quantizer has besides, at its final shape. Raises ValueError for a spec that it cannot have."""

    @abstractmethod
    def qparams(self) -> QParams:
        """The scale and zero-point in force, each (n_qparams,), detached."""

    @abstractmethod
    def fake_quantize(self, x: Tensor) -> Tensor:
        """x rounded to the grid, with this quantizer's gradients. Same shape and dtype as x."""

    @abstractmethod
    def _store(self, qparams: QParams) -> None:
        """Keep an observed scale, in place."""

    def set_range(self, lo: Tensor, hi: Tensor) -> None:
        """Start from the real range [lo, hi], each (n_qparams,). In place; marks the quantizer initialized."""
        self.set_qparams(self.spec.qparams(lo, hi))

    def set_qparams(self, qparams: QParams) -> None:
        """Start from this scale and zero-point, each (n_qparams,). In place; marks the quantizer initialized."""
        with torch.no_grad():
            self.zero_point.copy_(qparams.zero_point)
            self._store(qparams)
            self.initialized.fill_(True)
        self.ready = True

    def quantize(self, x: Tensor) -> Tensor:
        """Integer codes of x, float32, same shape."""
        scale, zero_point = self.qparams()
        grid, granularity = self.spec.grid, self.spec.granularity
        view = granularity.view(x)
        scale, zero_point = (granularity.shaped(p, tuple(x.shape)) for p in (scale, zero_point))
        return quantize(view, scale, zero_point, grid.qmin, grid.qmax).reshape(x.shape)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Real values of codes, float32, same shape."""
        granularity, shape = self.spec.granularity, tuple(codes.shape)
        scale, zero_point = (granularity.shaped(p, shape) for p in self.qparams())
        return dequantize(granularity.view(codes), scale, zero_point).reshape(shape)

    def forward(self, x: Tensor) -> Tensor:
        """x (after ReLU, if this `fuses_relu`) in mode OFF and OBSERVE, fake-quantized x in mode QUANTIZE.

        Raises:
            RuntimeError: mode QUANTIZE before a range was set, observed or loaded.
        """
        if self.mode is Mode.QUANTIZE:
            if not self.ready:
                raise RuntimeError(
                    f"quantizer {self.label!r} has no range yet: call qat.calibrate(model, batches) or load a checkpoint "
                    "of the prepared model first."
                )
            if (
                x.dtype is torch.float64
            ):  # of Trainer(precision="64-true"): scales, codes and their gradients are float32
                return self.fake_quantize(x.float()).to(x.dtype)
            return self.fake_quantize(x)
        x = F.relu(x) if self.fuses_relu else x
        if self.mode is Mode.OBSERVE and not self.ready and x.numel():
            self.observer.update(self.spec.granularity.rows(x.detach().float()))
        return x

    def nearest_code(self, average: Tensor) -> Tensor:
        """The codes nearest to averages of codes, float32, same shape; of -inf and inf the outermost ones."""
        return average.round().clamp(self.spec.grid.qmin, self.spec.grid.qmax)

    def on_grid(self, x: Tensor, scale: Tensor, gradient_scale: float = 1.0) -> Tensor:
        """x rounded to the codes times `scale` (n_qparams,), with the estimator's gradients for both."""
        grid, granularity = self.spec.grid, self.spec.granularity
        shape = tuple(x.shape)
        zero_point = granularity.shaped(self.zero_point, shape) if not self.spec.symmetric else 0
        given = granularity.view(x), granularity.shaped(scale, shape), zero_point, grid.qmin, grid.qmax, gradient_scale
        straight = isinstance(self.estimator, StraightThrough)
        y = fake_quantize(*given) if straight else fake_quantize_with(self.estimator, *given)
        return y if y.shape == x.shape else y.reshape(shape)

    def lsq_gradient_scale(self, x: Tensor) -> float:
        """g = 1 / sqrt(N * qmax) of Esser et al. 2020, section 2.2; N is `elements_per_scale(x)`."""
        return float((self.elements_per_scale(x) * self.spec.grid.qmax) ** -0.5)

    def elements_per_scale(self, x: Tensor) -> int:
        """The number of elements that share a scale: of a weight, those of one channel or group; of an activation, those
        of one sample, so that the gradient does not depend on the batch size.
        """
        return max(1, x.numel() // self.n_qparams if self.is_weight else prod(x.shape[1:]))

    def table(self) -> Table | None:
        """How an integer runtime finds the codes of this activation, where rounding to the grid is not all; else None."""
        return None

    def set_bits(self, bits: int) -> bool:
        """Round to max(bits, those of the policy) from now on. Returns whether that is another grid: then the range has to be
        observed anew. Final shapes stay.

        Raises:
            ValueError: no such width.
        """
        grid = replace(self.policy_grid, bits=max(bits, self.policy_grid.bits))
        if not self.supports_other_bits or grid == self.spec.grid:
            return False
        self.spec = self.observer.spec = replace(self.spec, grid=grid)
        self.forget_range()
        return True

    def forget_range(self) -> None:
        """Wait for a range, as before the first calibration; codes counted so far say nothing about it. In place."""
        self.initialized.fill_(False)
        self.ready = False
        if self.oscillations is not None:
            self.oscillations.reset()

    def finish_observing(self) -> None:
        """Set the range that the observer found, and forget the data."""
        if not self.ready:
            self.set_range(*self.observer.range())
            self.observer.reset()

    def require_symmetric(self) -> None:
        """Raises ValueError for an affine spec."""
        if not self.spec.symmetric:
            raise ValueError(
                f"{type(self).__name__} has no zero-point: write symmetric: true, or quantizer: LSQPlus, which has one."
            )

    def require_weight(self) -> None:
        """Raises ValueError for an activation, and for a grid that is not symmetric and signed."""
        if not self.is_weight:
            raise ValueError(
                f"{type(self).__name__} is for weights: give activations another quantizer, for example "
                "policy.activation.quantizer=LSQ."
            )
        self.require_symmetric()
        if not self.spec.grid.signed:
            raise ValueError(f"{type(self).__name__} is for weights, which have both signs: write signed: true.")

    def require_bits(self, *possible: int) -> None:
        """Raises ValueError for a width that is none of `possible`."""
        if self.spec.grid.bits not in possible:
            raise ValueError(
                f"{type(self).__name__} has {' or '.join(map(str, sorted(possible)))} bits, not {self.spec.grid.bits}: write "
                f"bits: {possible[0]}, or give this layer another quantizer (the first and the last layer: "
                "first_last_quantizer: LSQ)."
            )

    def extra_repr(self) -> str:
        grid = self.spec.grid
        sign = "int" if grid.signed else "uint"
        return f"{sign}{grid.bits}, {self.n_qparams} scale{'s' if self.n_qparams > 1 else ''}, ready={self.ready}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        """`.to`, `.half()`, ... move a quantizer but never change its types: a scale in bfloat16 could not learn, because
        its steps are smaller than its last bit.
        """

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        super()._apply(moved, recurse)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if prefix + "initialized" in state_dict:
            self.ready = bool(self.initialized)
