"""Estimators: the gradient that replaces that of rounding, one method per file. Independent of how the scale learns.

In Python `LSQ(spec, shape, observer, estimator=EWGS(delta=1e-3))`; in a policy and in `configs/quantizer/`
`{_target_: qat.quantizers.LSQ, estimator: {_target_: qat.estimators.EWGS, delta: 1e-3}}`.
"""

from qat.estimators.base import Estimator
from qat.estimators.dsq import DSQ
from qat.estimators.ewgs import EWGS
from qat.estimators.stochastic import Stochastic
from qat.estimators.straight_through import StraightThrough

__all__ = ["DSQ", "EWGS", "Estimator", "Stochastic", "StraightThrough"]
