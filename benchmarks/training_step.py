"""One training step of a network: the unit that is measured. Needs only torch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRECISIONS = ("float32", "bfloat16")


class TrainingStep:
    """A call runs one forward, one backward and one SGD step with momentum, on one batch.

    Args:
        model: in training mode, if it has one.
        x, y: the batch and its labels, on the device of the model.
        precision: "float32", or "bfloat16" for forward and loss under autocast.

    Raises:
        ValueError: `precision` is unknown.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} is unknown: write one of {', '.join(PRECISIONS)}.")
        self.model, self.x, self.y, self.precision = model, x, y, precision
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with self._autocast():
            loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()

    def compiled(self) -> TrainingStep:
        """The same step with the network behind `torch.compile`."""
        compiled = TrainingStep(self.model, self.x, self.y, self.precision)
        compiled.model = torch.compile(self.model)  # type: ignore[assignment]
        return compiled

    def resident_bytes(self) -> int:
        """Bytes of weights, buffers, momentum, the batch, and gradients if there are any."""
        momentum = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        parameters = list(self.model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        tensors = [*parameters, *self.model.buffers(), *gradients, *momentum, self.x, self.y]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.x.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
