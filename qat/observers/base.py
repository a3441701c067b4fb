"""What every observer does: look at data, answer with a range."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from torch import Tensor

from qat.spec import QuantSpec


class Observer(ABC):
    """First guess of a range from data. Never sees an axis: rows share nothing, the elements of a row share qparams.

    State is kept only between `reset()` and `range()`; the result lives in the quantizer. `merge` joins what several
    processes saw: afterwards each has the statistics of all the data.
    """

    def __init__(self, spec: QuantSpec) -> None:
        self.spec = spec
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """Forget all data."""

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Look at x: (n_qparams, n_elements), detached."""

    @abstractmethod
    def range(self) -> tuple[Tensor, Tensor]:
        """(lo, hi), each float32 (n_qparams,). Raises RuntimeError before the first update."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add the data that `other` saw."""

    def _seen(self, statistic: Tensor | None) -> Tensor:
        if statistic is None:
            raise RuntimeError(
                f"{type(self).__name__} has seen no data: call update(x), or qat.calibrate(model, batches)."
            )
        return statistic
