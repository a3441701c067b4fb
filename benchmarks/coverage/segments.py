"""The integer model against the prepared network, segment by segment.

In a network with random weights a code that was rounded the other way is amplified from layer to layer: outputs can differ by
more than 20 dB although nothing is wrong. So every quantizer of the prepared network hands on the integer model's value, and
what the next one makes of it is compared. Rounding alone leaves every segment far above 20 dB; a lost operation does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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

    def hand_on(site: _Site, out: Tensor) -> Tensor:
        found[site.name] = min(found.get(site.name, HIGHEST), decibels([out], [site.value]))
        return site.value if site.value.shape == out.shape else out

    found["output"] = decibels(_run(prepared, inputs, _sites(prepared, integer, codes), hand_on), tensors(output))
    worst = min(found, key=lambda name: found[name])
    return worst, found[worst], len(found)


def with_moved_codes(prepared: nn.Module, integer: Any, inputs: tuple[Any, ...]) -> float | None:
    """How far the prepared network is from itself, in dB, the furthest of three times, if as many codes of every site move by
    one as rounding moves in the integer model's segment before it. None if the integer model has no codes.

    Where it is as far as the integer model is, rounding that the network amplifies explains the difference.
    """
    if not hasattr(integer, "codes"):
        return None
    with torch.no_grad():
        codes = integer.codes(*inputs)[1]
    sites = _sites(prepared, integer, codes)
    shares: dict[str, float] = {}

    def count(site: _Site, out: Tensor) -> Tensor:
        if site.value.shape != out.shape:
            return out
        shares[site.name] = ((out - site.value).abs() > site.step / 2).double().mean().item()
        return site.value

    def move(site: _Site, out: Tensor) -> Tensor:
        moved = torch.rand_like(out) < shares.get(site.name, 0.0)
        return out + moved * site.step * (2 * torch.randint_like(out, 2) - 1)

    expected = _run(prepared, inputs, [], count)
    _run(prepared, inputs, sites, count)
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        found.append(decibels(expected, _run(prepared, inputs, sites, move)))
    return min(found)


class _Site(NamedTuple):
    """A quantizer of the prepared network, and the value and the step of the integer model's codes in its place."""

    name: str
    module: nn.Module
    value: Tensor
    step: float


def _sites(prepared: nn.Module, integer: Any, codes: Mapping[str, Tensor]) -> list[_Site]:
    found = []
    for name, module in prepared.named_modules():
        site = name.removeprefix("sites.")
        if not name.startswith("sites.") or "." in site:
            continue
        key = next((k for k in (site, site.replace(".", "_"), f"{site}_") if k in codes), None)
        encoding = getattr(integer.get_submodule(key), "output", None) if key is not None else None
        if key is not None and encoding is not None:
            value = (codes[key].float() - encoding.zero_point) * encoding.scale
            found.append(_Site(site, module, value, float(encoding.scale)))
    return found


def _run(
    prepared: nn.Module, inputs: tuple[Any, ...], sites: list[_Site], replace: Callable[[_Site, Tensor], Tensor]
) -> list[Tensor]:
    """The outputs of the prepared network; `replace` gets what each site returns, and returns what is handed on."""

    def hook(site: _Site) -> Callable[..., Tensor]:
        return lambda _module, _inputs, out: replace(site, out)

    hooks = [site.module.register_forward_hook(hook(site)) for site in sites]
    try:
        with torch.no_grad():
            return tensors(prepared(*inputs))
    finally:
        for handle in hooks:
            handle.remove()
