"""Which weights are zero: masks by magnitude and N of M, their schedule, whole channels, and zeros counted in integers."""

from qat.sparsity.masks import Pattern, keep_largest, keep_largest_of_all, keep_pattern, pattern_axis_fits, violations
from qat.sparsity.schedule import cubic_sparsity
from qat.sparsity.zeros import count_zeros, values_of_codes

__all__ = [
    "Pattern",
    "count_zeros",
    "cubic_sparsity",
    "keep_largest",
    "keep_largest_of_all",
    "keep_pattern",
    "pattern_axis_fits",
    "values_of_codes",
    "violations",
]
