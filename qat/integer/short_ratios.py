"""Scales of adds that are computed alike with and without fused multiply-adds.

A runtime adds codes as a * (s_a / s_y) + (b * (s_b / s_y) + c) in float32. A processor with fused multiply-adds rounds each
product together with its sum, one without (WebAssembly, x86 before AVX2) rounds the product first. A ratio of at most 16
significant bits times a code of 8 bits has at most 24, which float32 holds exactly: then there is nothing to round, and both
agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

BITS = 16
"""Significant bits of a ratio: those of float32, less the bits of a code."""
RATIOS, FLOATS = 24, 5
"""Neighbouring ratios, and neighbouring floats of each, that are tried: a float of the wanted quotient exists about every other
time."""
Tensor = TypeVar("Tensor")


class Addition(NamedTuple):
    """An add: its inputs and its result, as the keys of `scales`."""

    inputs: tuple[object, ...]
    output: object


def is_short(ratio: np.float32) -> bool:
    """Whether a ratio has at most `BITS` significant bits.

    >>> is_short(np.float32(1 + 2**-15)), is_short(np.float32(1 + 2**-16))
    (True, False)
    """
    return bool(_rounded(ratio) == ratio)


def with_short_ratios(
    scales: Mapping[Tensor, float], additions: Sequence[Addition], movable: Mapping[Tensor, bool] | None = None
) -> dict[Tensor, float]:
    """The scales, moved so that scale of input / scale of output is short in every add: by about 2**-17 of themselves, and by
    less than 2**-14 in 99 of 100.

    From the last add backwards each input follows the output. An input that follows another add already stays, and the output
    follows it, unless that is bound, too: such a ratio stays as it was.

    Args:
        scales: float32 numbers.
        additions: in the order in which they are computed.
        movable: tensor -> whether its scale may be moved; a missing tensor may.
    """
    moved = dict(scales)
    bound = {tensor for tensor, may in (movable or {}).items() if not may}
    for addition in reversed(additions):
        y: Tensor = addition.output  # type: ignore[assignment]
        inputs: tuple[Tensor, ...] = addition.inputs  # type: ignore[assignment]
        followed = next((x for x in inputs if x in bound), None)
        if y not in bound and followed is not None and not is_short(_ratio(moved[followed], moved[y])):
            moved[y] = _follow(moved[y], moved[followed], upwards=True)
        bound.add(y)
        for x in inputs:
            if x not in bound and not is_short(_ratio(moved[x], moved[y])):
                moved[x] = _follow(moved[x], moved[y], upwards=False)
            bound.add(x)
    return moved


def _follow(scale: float, other: float, upwards: bool) -> float:
    """The float32 number nearest to `scale` whose ratio to `other` is short; upwards: other / scale is."""
    fixed = np.float32(other)
    start = _ratio(other, scale) if upwards else _ratio(scale, other)
    for ratio in _neighbours(_rounded(start), 2.0 ** (np.frexp(start)[1] - BITS), RATIOS):
        exact = np.float32(fixed / ratio if upwards else ratio * fixed)
        for candidate in _neighbours(exact, float(np.spacing(exact)), FLOATS):
            if ratio == (fixed / candidate if upwards else candidate / fixed):
                return float(candidate)
    return scale


def _neighbours(value: np.float32, step: float, count: int) -> Iterator[np.float32]:
    """value, one step below, one above, ..."""
    for i in range(count):
        yield np.float32(value + step * (-1) ** i * ((i + 1) // 2))


def _ratio(a: float, b: float) -> np.float32:
    return np.float32(np.float32(a) / np.float32(b))


def _rounded(ratio: np.float32) -> np.float32:
    """The nearest number of `BITS` significant bits."""
    mantissa, exponent = np.frexp(ratio)
    return np.float32(np.ldexp(np.rint(mantissa * 2**BITS) / 2**BITS, exponent))
