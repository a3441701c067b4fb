"""Checks of the options of `Pruning`, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from qat.training.lightning.fit_progress import is_fraction


def check_pruning(
    sparsity: Any, pattern: Any, scope: Any, begin: Any, end: Any, every: Any, channels: Any = 0.0
) -> None:
    """Check the options of `Pruning`.

    Raises:
        ValueError: one is impossible.
    """
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


def names_of_layers(option: str, given: Any) -> tuple[str, ...]:
    """The globs of an option; a single one is a list of one.

    Raises:
        ValueError: it is not a list of texts, or matches nothing because it is empty.
    """
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else None
    if names is None or not all(isinstance(name, str) for name in names) or (option == "match" and not names):
        raise ValueError(
            f"{option}={given!r} is not possible: write globs on names, or types, as ['layer1.*', 'type:Conv2d']."
        )
    return names


def check_names_of_layers(options: Mapping[str, Sequence[str]], types: Mapping[str, str]) -> None:
    """Check that each glob on names, and each type, fits a layer: a typing error would prune what was to be left alone.

    Args:
        options: name of the option -> its globs.
        types: layer -> name of its type.

    Raises:
        ValueError: one fits no layer.
    """
    known = [*types, *sorted({f"type:{kind}" for kind in types.values()}), "first", "last"]
    for option, globs in options.items():
        for glob in globs:
            exact = glob.startswith("type:")
            if not any(name == glob if exact else fnmatchcase(name, glob) for name in known):
                raise ValueError(
                    f"Pruning({option}={list(globs)}) finds no layer {glob!r}: write others; layers: {', '.join(known[:-2])}."
                )
