"""Checks of the options of `Pruning`, before anything runs."""

from __future__ import annotations

from typing import Any

from qat.training.lightning.fit_progress import is_fraction


def check_pruning(
    sparsity: Any, pattern: Any, scope: Any, begin: Any, end: Any, every: Any, channels: Any = 0.0
) -> None:
    """Raise ValueError for an impossible option."""
    if not (is_fraction(channels) and channels < 1):
        raise ValueError(
            f"channels={channels!r} is not possible: write the share to take out, from 0 to below 1, as 0.3."
        )
    if (sparsity is None) == (pattern is None) and not (sparsity is None and channels):
        raise ValueError(
            f"sparsity={sparsity} with pattern={pattern}: write one of the two, sparsity=0.7 or pattern='2:4', or channels=0.3."
        )
    if sparsity is not None and not (is_fraction(sparsity) and sparsity < 1):
        raise ValueError(f"sparsity={sparsity!r} is not possible: write the share of zeros, from 0 to below 1, as 0.7.")
    if scope not in ("layer", "global") or (scope == "global" and pattern is not None):
        raise ValueError(f"scope={scope!r} is not possible: write 'layer', or 'global' without a pattern.")
    if not is_fraction(begin) or not is_fraction(end) or not begin < end < 1:
        raise ValueError(
            f"begin={begin!r}, end={end!r} is not possible: write rising shares of the fit below 1, as 0.0 and 0.5."
        )
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every={every!r} is not possible: write a number of optimizer steps, as 10.")
