"""The share of weights that are zero, over the time of a fit."""

from __future__ import annotations


def cubic_sparsity(progress: float, final: float, begin: float = 0.0, end: float = 1.0) -> float:
    """The share of zeros when `progress` of the fit is done: s_t = s_f - s_f (1 - (t - t_0) / (t_1 - t_0))^3.

    Equation 1 of Zhu and Gupta 2017 (https://arxiv.org/abs/1710.01878) with s_i = 0: fast while there are many weights to
    choose from, slow at the end.

    Args:
        progress: in [0, 1].
        final: s_f, the share of zeros at the end, in [0, 1).
        begin: t_0, a share of the fit.
        end: t_1, a share of the fit; `final` from there on.

    >>> [round(cubic_sparsity(t, 0.8, 0.0, 0.5), 3) for t in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.7, 0.8, 0.8]
    """
    if progress < begin:
        return 0.0
    if progress >= end:
        return final
    left = 1 - (progress - begin) / (end - begin)
    return final * (1 - left**3)
