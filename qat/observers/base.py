"""The base class of all observers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from torch import Tensor

from qat.arguments import check_kind
from qat.spec import QuantSpec


class Observer(ABC):
    """Finds the first range of a tensor from data. It sees rows, not axes: the elements of a row share qparams.

    Its state is temporary: the quantizer stores the range that it finds. `merge` adds what another process observed.

    Args:
        spec: the spec of the tensor, which decides what range is best.
    """

    depends_on_batches: ClassVar[bool] = False
    """Whether the range also depends on the order of the data, or on how they were split into batches."""

    def __init__(self, spec: QuantSpec) -> None:
        check_kind("spec", spec, (QuantSpec,), "a QuantSpec, as QuantSpec(Grid(8))")
        self.spec = spec
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """Forget all data."""

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Add x to the data: (n_qparams, n_elements), detached."""

    @abstractmethod
    def range(self) -> tuple[Tensor, Tensor]:
        """The range of the data.

        Returns:
            (lo, hi), each float32 (n_qparams,).

        Raises:
            RuntimeError: no data yet.
        """

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add the data that `other` saw."""

    def _require_data(self, statistic: Tensor | None) -> Tensor:
        """`statistic`; raises RuntimeError if it is None, as before the first update."""
        if statistic is None:
            raise RuntimeError(
                f"{type(self).__name__} has seen no data: call update(x), or qat.calibrate(model, batches)."
            )
        return statistic
