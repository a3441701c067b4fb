"""How often the codes of a weight go back and forth (Nagel et al. 2022, https://arxiv.org/abs/2203.11086)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Oscillations(nn.Module):
    """What is remembered of the codes of one weight, step after step; in the state_dict, beside its quantizer.

    A code oscillates in a step, if it changes against the direction of its last change. Its frequency is the moving average
    f = momentum * oscillates + (1 - momentum) * f (eq. 4).

    Args:
        shape: of the weight. signed: of its grid.
    """

    frequency: Tensor
    """float32, in [0, 1]."""
    average: Tensor
    """Moving average of the codes, float32."""
    code: Tensor
    """The last code, int8 (uint8 on an unsigned grid); of a frozen weight the one that it keeps."""
    direction: Tensor
    """Sign of the last change, int8; 0: there was none."""
    frozen: Tensor
    """bool."""
    started: Tensor

    def __init__(self, shape: tuple[int, ...], signed: bool = True) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.zeros(shape))
        self.register_buffer("average", torch.zeros(shape))
        self.register_buffer("code", torch.zeros(shape, dtype=torch.int8 if signed else torch.uint8))
        self.register_buffer("direction", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("frozen", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("started", torch.tensor(False))
        self._going = False
        """Whether `started` is known to be true, without asking the device in every step."""

    @torch.no_grad()
    def reset(self) -> None:
        """Nothing was counted."""
        for buffer in self.buffers():
            buffer.zero_()
        self._going = False

    @torch.no_grad()
    def start(self, codes: Tensor) -> None:
        """The codes before the first step. Only the first call counts: a restored state goes on."""
        if self._going:
            return
        if not self.started:
            self.code.copy_(codes)
            self.average.copy_(codes)
            self.started.fill_(True)
        self._going = True

    @torch.no_grad()
    def step(self, codes: Tensor, momentum: float) -> None:
        """The codes after a step; a frozen weight has the one that it keeps. After `reset` they are the first."""
        self.start(codes)
        codes = torch.where(self.frozen, self.code, codes)
        change = torch.sign(codes - self.code)
        self.frequency.lerp_((change * self.direction < 0).float(), momentum)
        self.average.lerp_(codes, momentum)
        self.direction.copy_(torch.where(change != 0, change, self.direction))
        self.code.copy_(codes)

    @torch.no_grad()
    def freeze(self, threshold: float, nearest_code: Callable[[Tensor], Tensor] = torch.round) -> None:
        """Freeze what oscillates with a frequency above the threshold, to the code where it was more often (algorithm 1).

        nearest_code: of averages, where not every whole number is a code.
        """
        chosen = (self.frequency > threshold) & ~self.frozen
        self.code.copy_(torch.where(chosen, nearest_code(self.average), self.code))
        self.frozen |= chosen

    def release(self) -> None:
        """Nothing is frozen any more."""
        self.frozen.zero_()

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object
    ) -> None:
        """A checkpoint from before anybody counted holds nothing of this: the counting starts then."""
        self._going = False
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
