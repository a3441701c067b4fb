"""The table from which an integer runtime reads the codes of an activation."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from qat.grid import Grid
from qat.spec import QParams


class LookupTable(NamedTuple):
    """How an integer runtime finds the codes of an activation: it rounds to a fine grid and looks up the result."""

    grid: Grid
    """The fine grid."""
    qparams: QParams
    """Scale and zero-point of the fine grid."""
    codes: Tensor
    """float32 (qmax - qmin + 1,): the final code for each code of the fine grid, from the lowest to the highest."""
