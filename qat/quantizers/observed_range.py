"""How a quantizer finds its range: what it observes during calibration, and what it decides from that."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from qat.fixed_dtypes import FixedDtypes
from qat.grid import Grid
from qat.observers import Observer
from qat.quantizers.oscillations import Oscillations
from qat.quantizers.sign import SignFromData
from qat.spec import QuantSpec


class ObservedRange(FixedDtypes):
    """The state of a quantizer between its construction and the end of calibration."""

    spec: QuantSpec
    policy_grid: Grid
    observer: Observer
    is_weight: bool
    n_qparams: int
    initialized: Tensor
    signed: Tensor
    oscillations: Oscillations | None
    sign: SignFromData | None
    """Decides from the data whether the grid is signed; None if that is known. See `read_sign_from_data`."""
    saw_floats: bool
    saw_others: bool
    _ready: bool

    @property
    def ready(self) -> bool:
        """Whether it has a range. One that was written into its buffers (AveragedModel, EMA) counts."""
        if not self._ready and not self.initialized.is_meta and bool(self.initialized):
            self._adopt_buffers()
        return self._ready or self.passes

    def _adopt_buffers(self) -> None:
        """Follow the buffers `initialized` and `signed` after other code has written them."""
        self._ready = bool(self.initialized)
        if self.sign is not None:
            self._set_signed(bool(self.signed))

    @property
    def passes(self) -> bool:
        """Whether calibration saw nothing but numbers, 0-d tensors, indices and masks here, which need no range."""
        return "passes_all" in self._buffers

    def set_passes(self, passes: bool) -> None:
        """Set `passes`. It travels with the checkpoint, as a buffer that exists only where it is true."""
        if passes:
            self.register_buffer("passes_all", torch.tensor(True))
        else:
            self._buffers.pop("passes_all", None)

    def observe(self, x: Tensor) -> None:
        """Show x to the observers."""
        self.saw_floats = True
        rows = self.spec.granularity.rows(x.detach().float())
        for observer in self.observers():
            observer.update(rows)

    @abstractmethod
    def set_range(self, lo: Tensor, hi: Tensor) -> None:
        """Start from the real range [lo, hi], each (n_qparams,)."""

    def forget_range(self) -> None:
        """Return to the state before the first calibration, in place. Oscillation counters start again, too."""
        self.initialized.fill_(False)
        self._ready = False
        self.set_passes(False)
        if self.oscillations is not None:
            self.oscillations.reset()

    def finish_observing(self) -> bool:
        """Set the range that the observer found, unless there is one. Returns whether it saw more than zeros."""
        if self.ready:
            return True
        if self.sign is not None:
            self._set_signed(self.sign.is_signed())
        lo, hi = self._observed()
        self.set_range(lo, hi)
        self.reset_observers()
        return not self.spec.is_empty(lo, hi)

    def _observed(self) -> tuple[Tensor, Tensor]:
        """The range that the observer found, which may be a class of somebody else's."""
        found: object = self.observer.range()
        shape = (self.n_qparams,)
        pair = found if isinstance(found, tuple) and len(found) == 2 else (None, None)
        lo, hi = (x.detach().float() if isinstance(x, Tensor) and x.shape == shape else None for x in pair)
        if lo is None or hi is None or bool((lo > hi).any()):
            raise ValueError(
                f"{type(self.observer).__name__}.range() is not a range: return (lo, hi), lo <= hi, two tensors of "
                f"shape {shape}"
            )
        return lo, hi

    def observers(self) -> list[Observer]:
        """The observer and, if the data decide on the sign, the one of their extremes."""
        return [self.observer] if self.sign is None else [self.observer, self.sign.extremes]

    def reset_observers(self) -> None:
        """Forget all observed data."""
        self.saw_floats = self.saw_others = False
        for observer in self.observers():
            observer.reset()

    def read_sign_from_data(self) -> bool:
        """Let the observed data decide whether the grid is signed: for activations of which nothing is known. In place.

        The decision is the buffer `signed`, which travels with the checkpoint.

        Returns:
            Whether it will. Affine grids need no sign, and quantizers with levels of their own stay signed.
        """
        if not self.is_weight and self.spec.symmetric and self.supports_other_bits and self.supports_both_signs:
            self.sign = SignFromData(self.spec)
            self.register_buffer("signed", torch.tensor(True))
        return self.sign is not None

    def _set_signed(self, signed: bool) -> None:
        """Make the grid signed or unsigned, at the bits in force."""
        assert self.sign is not None
        self.policy_grid = self.sign.grid(self.policy_grid.bits, signed)
        self.spec = self.observer.spec = replace(self.spec, grid=self.sign.grid(self.spec.grid.bits, signed))
        with torch.no_grad():
            self.signed.fill_(signed)
