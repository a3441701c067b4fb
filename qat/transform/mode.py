"""One switch for all quantizers of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from qat.arguments import check_network
from qat.quantizers import Mode, Quantizer


def quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """All quantizers of a model by module name.

    Raises:
        ValueError: `model` is not a network.
    """
    check_network(model)
    return {name: m for name, m in model.named_modules() if isinstance(m, Quantizer)}


@contextmanager
def mode(model: nn.Module, to: Mode) -> Iterator[None]:
    """Put every quantizer in mode `to` inside the `with`; afterwards, also after an exception, each has its old mode again.

    >>> with mode(nn.Linear(2, 2), Mode.OFF):
    ...     pass

    Raises:
        ValueError: `model` is not a network, or `to` is not a mode.
    """
    if not isinstance(to, Mode):
        raise ValueError(f"mode {to!r} is not a qat.Mode: write qat.Mode.OFF, qat.Mode.OBSERVE or qat.Mode.QUANTIZE.")
    before = {quantizer: quantizer.mode for quantizer in quantizers(model).values()}
    for quantizer in before:
        quantizer.mode = to
    try:
        yield
    finally:
        for quantizer, was in before.items():
            quantizer.mode = was
