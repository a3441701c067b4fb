"""The integer model against the prepared network, segment by segment.

In a network with random weights a code that was rounded the other way is amplified from layer to layer: outputs can differ by
more than 20 dB although nothing is wrong. So every quantizer of the prepared network hands on the integer model's value, and
what the next one makes of it is compared. Rounding alone leaves every segment far above 20 dB; a lost operation does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.agreement import HIGHEST, decibels, tensors


def worst_segment(prepared: nn.Module, integer: Any, inputs: tuple[Any, ...]) -> tuple[str, float, int] | None:
    """(name of the tensor, dB, number of tensors compared) of the worst segment; None if the integer model has no codes.

    Args:
        prepared: in evaluation mode.
        integer: what `qat.convert` made of it.
        inputs: arguments of forward.
    """
    if not hasattr(integer, "codes"):
        return None
    with torch.no_grad():
        output, codes = integer.codes(*inputs)
    found: dict[str, float] = {}
    hooks = []
    for name, module in prepared.named_modules():
        site = name.removeprefix("sites.")
        if not name.startswith("sites.") or "." in site:
            continue
        key = next((k for k in (site, site.replace(".", "_"), f"{site}_") if k in codes), None)
        encoding = getattr(integer.get_submodule(key), "output", None) if key is not None else None
        if key is None or encoding is None:
            continue
        value = (codes[key].float() - encoding.zero_point) * encoding.scale

        def hand_on(_module: nn.Module, _inputs: Any, out: Tensor, site: str = site, value: Tensor = value) -> Tensor:
            found[site] = min(found.get(site, HIGHEST), decibels([out], [value]))
            return value if value.shape == out.shape else out

        hooks.append(module.register_forward_hook(hand_on))
    try:
        with torch.no_grad():
            found["output"] = decibels(tensors(prepared(*inputs)), tensors(output))
    finally:
        for hook in hooks:
            hook.remove()
    worst = min(found, key=lambda name: found[name])
    return worst, found[worst], len(found)
