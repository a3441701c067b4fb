"""Oscillations of weights between neighbouring codes (Nagel et al. 2022, https://arxiv.org/abs/2203.11086)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Oscillations(nn.Module):
    """Oscillation counters of one weight; in the state_dict as part of its quantizer.

    A code oscillates in a step if it changes against the direction of its last change. Its frequency is the moving average
    f = momentum * oscillates + (1 - momentum) * f (eq. 4).

    Args:
        shape: shape of the weight.
        signed: whether its grid is signed.
    """

    frequency: Tensor
    """float32, in [0, 1]."""
    average: Tensor
    """Moving average of the codes, float32."""
    code: Tensor
    """The last code, int8 (uint8 on an unsigned grid); a frozen weight keeps it."""
    direction: Tensor
    """Sign of the last change, int8; 0 before the first change."""
    frozen: Tensor
    """Whether the weight is frozen, bool."""
    started: Tensor
    """Whether the first codes are known, bool ()."""

    def __init__(self, shape: tuple[int, ...], signed: bool = True) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("average", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("code", torch.zeros(shape, dtype=torch.int8 if signed else torch.uint8))
        self.register_buffer("direction", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("frozen", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("started", torch.tensor(False))
        self._has_started = False
        """Whether `started` is known to be true; saves a device synchronization in every step."""

    @torch.no_grad()
    def reset(self) -> None:
        """Forget everything that was counted."""
        for buffer in self.buffers():
            buffer.zero_()
        self._has_started = False

    @torch.no_grad()
    def start(self, codes: Tensor) -> None:
        """Set the codes before the first step. Only the first call has an effect; a restored state continues."""
        if self._has_started:
            return
        if not self.started:
            self.code.copy_(codes)
            self.average.copy_(codes)
            self.started.fill_(True)
        self._has_started = True

    @torch.no_grad()
    def step(self, codes: Tensor, momentum: float) -> None:
        """Count the codes after a step; a frozen weight keeps its code. After `reset` these are the first codes."""
        self.start(codes)
        codes = torch.where(self.frozen, self.code, codes)
        change = torch.sign(codes - self.code)
        self.frequency.lerp_((change * self.direction < 0).float(), momentum)
        self.average.lerp_(codes, momentum)
        self.direction.copy_(torch.where(change != 0, change, self.direction))
        self.code.copy_(codes)

    @torch.no_grad()
    def freeze(self, threshold: float, nearest_code: Callable[[Tensor], Tensor] = torch.round) -> None:
        """Freeze weights whose frequency is above the threshold to the code nearest to their average (algorithm 1).

        Args:
            threshold: frequency in [0, 1].
            nearest_code: rounds averages to codes, for grids on which not every whole number is a code.
        """
        chosen = (self.frequency > threshold) & ~self.frozen
        self.code.copy_(torch.where(chosen, nearest_code(self.average), self.code))
        self.frozen |= chosen

    def release(self) -> None:
        """Unfreeze all weights."""
        self.frozen.zero_()

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object
    ) -> None:
        """Accept a checkpoint without counters: counting starts then."""
        self._has_started = False
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
