"""The base class of all quantizers: a spec, an observed or learned range, and a mode."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from qat.arguments import check_kind
from qat.estimators import Estimator, StraightThrough
from qat.functional import dequantize, fake_quantize, fake_quantize_with_estimator, quantize
from qat.observers import MinMax, Observer
from qat.quantizers.mode import Mode
from qat.quantizers.observed_range import ObservedRange
from qat.quantizers.oscillations import Oscillations
from qat.quantizers.requirements import Requirements
from qat.quantizers.stored_form import StoredForm
from qat.quantizers.table import LookupTable
from qat.spec import QParams, QuantSpec
from qat.torch_private import note_beside_state


class Quantizer(Requirements, StoredForm, ObservedRange):
    """Rounds one tensor to the grid of its spec. Subclasses say how scale and rounding learn.

    Every parameter and buffer has its final shape from the start, so optimizers, checkpoints, EMA and DDP can rely on it
    before the first batch. The buffer `initialized` travels with the checkpoint: a restored range is never observed again.

    Args:
        spec: grid, granularity and symmetry.
        shape: shape of the weight, which decides the number of scales; () for an activation.
        observer: finds the first range. Default: MinMax(spec).
        estimator: the gradient of rounding. Default: StraightThrough().

    Raises:
        ValueError: a spec that this quantizer does not support.
    """

    starts_as_static: ClassVar[bool] = True
    """Whether, right after calibration, it rounds exactly as `Static` does on the same range. If all quantizers of a network
    do, step 0 of QAT predicts what PTQ predicts."""
    supports_other_bits: ClassVar[bool] = True
    """Whether `set_bits` may change the width. False if the number of bits also decides levels, coefficients or shapes."""
    idempotent: ClassVar[bool] = True
    """Whether `quantize(dequantize(codes))` returns the same codes. Freezing and dampening of weights rely on it."""
    supports_both_signs: ClassVar[bool] = True
    """Whether an activation's grid may become unsigned after construction. False if shapes or levels depend on it."""

    initialized: Tensor
    signed: Tensor
    zero_point: Tensor
    oscillations: Oscillations | None
    """Oscillation counters of this weight; None if they are not tracked. A checkpoint with counters loads into a quantizer
    without them."""

    def __init__(
        self,
        spec: QuantSpec,
        shape: tuple[int, ...] = (),
        observer: Observer | None = None,
        estimator: Estimator | None = None,
    ) -> None:
        check_kind("spec", spec, (QuantSpec,), "a QuantSpec, as QuantSpec(Grid(8))")
        check_kind("shape", shape, (tuple,), "that of the weight, as (64, 3), or () for an activation")
        super().__init__()
        self.spec = spec
        self.policy_grid = spec.grid
        """The grid of the policy; `set_bits` may replace it by a wider one for a while."""
        self.is_weight = len(shape) > 0
        self.observer = observer if observer is not None else MinMax(spec)
        self.estimator = estimator if estimator is not None else StraightThrough()
        self.mode = Mode.QUANTIZE
        self.label = ""
        self.fuses_relu = False
        """Whether this also replaces the ReLU before it: an unsigned symmetric grid cuts values and gradients at zero.
        Depends on the graph, so `prepare` sets it."""
        self.n_qparams = spec.granularity.n_qparams(shape)
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("zero_point", torch.zeros(self.n_qparams, dtype=torch.int32))
        self.register_module("oscillations", None)
        self._ready = self.saw_floats = self.saw_others = False
        self.sign = None
        self._build()

    def _build(self) -> None:
        """Create the parameters and buffers of a subclass, at their final shape.

        Raises:
            ValueError: a spec that this quantizer does not support.
        """

    @abstractmethod
    def qparams(self) -> QParams:
        """The scale and zero-point in force, each (n_qparams,), detached."""

    @abstractmethod
    def fake_quantize(self, x: Tensor) -> Tensor:
        """x rounded to the grid, with this quantizer's gradients. Same shape and dtype as x."""

    @abstractmethod
    def _store(self, qparams: QParams) -> None:
        """Store an observed scale, in place."""

    def set_range(self, lo: Tensor, hi: Tensor) -> None:
        """Start from the real range [lo, hi], each (n_qparams,). In place; marks the quantizer initialized."""
        self.set_qparams(self.spec.qparams(lo, hi))

    def set_qparams(self, qparams: QParams) -> None:
        """Start from this scale and zero-point, each (n_qparams,). In place; marks the quantizer initialized."""
        with torch.no_grad():
            self.zero_point.copy_(qparams.zero_point)
            self._store(qparams)
            self.initialized.fill_(True)
        self._ready = True

    def quantize(self, x: Tensor) -> Tensor:
        """Integer codes of x, float32, same shape."""
        scale, zero_point = self.qparams()
        grid, granularity = self.spec.grid, self.spec.granularity
        view = granularity.view(x)
        scale, zero_point = (granularity.broadcastable(p, tuple(x.shape)) for p in (scale, zero_point))
        return quantize(view, scale, zero_point, grid.qmin, grid.qmax).reshape(x.shape)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Real values of codes, float32, same shape."""
        granularity, shape = self.spec.granularity, tuple(codes.shape)
        scale, zero_point = (granularity.broadcastable(p, shape) for p in self.qparams())
        return dequantize(granularity.view(codes), scale, zero_point).reshape(shape)

    def forward(self, x: Tensor) -> Tensor:
        """x (after ReLU, if this `fuses_relu`) in mode OFF and OBSERVE, fake-quantized x in mode QUANTIZE.

        Numbers, tensors without an axis, indices and masks pass unchanged.

        Raises:
            RuntimeError: mode QUANTIZE before a range was set, observed or loaded.
        """
        if not isinstance(x, Tensor) or x.ndim == 0 or not x.is_floating_point():
            self.saw_others |= self.mode is Mode.OBSERVE
            return F.relu(x) if self.fuses_relu else x
        if self.mode is Mode.QUANTIZE:
            if self.passes or not self.ready:
                raise RuntimeError(
                    f"quantizer {self.label!r} has no range yet: call qat.calibrate(model, batches) or load a checkpoint "
                    "of the prepared model first."
                )
            if x.dtype is torch.float64:  # Trainer(precision="64-true"): scales, codes and their gradients stay float32
                return self.fake_quantize(x.float()).to(x.dtype)
            return self.fake_quantize(x)
        x = F.relu(x) if self.fuses_relu else x
        if self.mode is Mode.OBSERVE and not self.ready and x.numel():
            self.observe(x)
        return x

    def nearest_code(self, average: Tensor) -> Tensor:
        """The codes nearest to averages of codes, float32, same shape; -inf and inf give the lowest and the highest code."""
        return average.round().clamp(self.spec.grid.qmin, self.spec.grid.qmax)

    def round_to_grid(
        self, x: Tensor, scale: Tensor, gradient_scale: float = 1.0, lowest: Tensor | None = None
    ) -> Tensor:
        """x fake-quantized with scale (n_qparams,), at least `lowest`, and the estimator's gradients for both. Same shape."""
        grid, granularity, shape = self.spec.grid, self.spec.granularity, tuple(x.shape)
        if self.n_qparams > 1:  # one scale broadcasts as it is: a step can do without the reshape
            scale, lowest = (p if p is None else granularity.broadcastable(p, shape) for p in (scale, lowest))  # type: ignore[assignment]
        zero_point = granularity.broadcastable(self.zero_point, shape) if not self.spec.symmetric else 0
        arguments = (granularity.view(x), scale, zero_point, grid.qmin, grid.qmax, gradient_scale, lowest)
        straight_through = isinstance(self.estimator, StraightThrough)
        y = fake_quantize(*arguments) if straight_through else fake_quantize_with_estimator(self.estimator, *arguments)
        return y if y.shape == x.shape else y.reshape(shape)

    def lsq_gradient_scale(self, x: Tensor) -> float:
        """g = 1 / sqrt(N * qmax) of Esser et al. 2020, section 2.2; N is `elements_per_scale(x)`."""
        return float((self.elements_per_scale(x) * self.spec.grid.qmax) ** -0.5)

    def elements_per_scale(self, x: Tensor) -> int:
        """The number of elements that share a scale.

        In a weight, those of one channel or group; in an activation, those of one sample, so that the gradient does not depend
        on the batch size.
        """
        return max(1, x.numel() // self.n_qparams if self.is_weight else prod(x.shape[1:]))

    def lookup_table(self) -> LookupTable | None:
        """The table that gives the codes of this activation; None if rounding to the grid does."""
        return None

    def set_bits(self, bits: int) -> bool:
        """Round to max(bits, bits of the policy) from now on. Shapes stay as they are.

        Returns:
            Whether the grid has changed. If so, the range is forgotten and must be observed again.

        Raises:
            ValueError: bits is not a valid width.
        """
        grid = replace(self.policy_grid, bits=max(bits, self.policy_grid.bits))
        if not self.supports_other_bits or grid == self.spec.grid:
            return False
        self.spec = self.observer.spec = replace(self.spec, grid=grid)
        self.forget_range()
        return True

    def extra_repr(self) -> str:
        sign, plural = "" if self.spec.grid.signed else "u", "s" if self.n_qparams > 1 else ""
        return f"{sign}int{self.spec.grid.bits}, {self.n_qparams} scale{plural}, ready={self.ready}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Keep the bits beside the module's version, in the metadata of the state dict: its tensors do not tell them."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_beside_state(destination, prefix, bits=self.policy_grid.bits)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Be ready only if the state dict has every value, at the same bits; otherwise this quantizer has no range."""
        bits, of_other_bits = self.policy_grid.bits, local_metadata.get("bits", self.policy_grid.bits)
        if of_other_bits != bits:
            missing_keys.append(
                f"{prefix[:-1]} of {bits} bits (in the state dict it has {of_other_bits}: prepare the network with its policy)"
            )
        if prefix + "initialized" in state_dict:
            self.set_passes(prefix + "passes_all" in state_dict)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        values = {**self._parameters, **self._buffers}.items()
        mine = {prefix + k: v for k, v in values if v is not None and k not in self._non_persistent_buffers_set}
        came = [key for key, value in mine.items() if key in state_dict and state_dict[key].shape == value.shape]
        if len(came) == len(mine) and of_other_bits == bits:
            self._adopt_buffers()
        elif came:
            self.initialized = torch.zeros_like(
                self.initialized
            )  # not in place: with assign=True it belongs to the caller
            self._ready = False
