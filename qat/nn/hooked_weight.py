"""Weights that a hook computes before each forward: the older weight_norm and spectral_norm of torch.nn.utils, and pruning."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qat.nn.rebuilt import with_class
from qat.torch_private import hooks_of, pruned_tensor


def compute_hooked_weight(layer: nn.Module) -> None:
    """Let a layer whose weight is set by a hook compute it whenever it is read, in place. Without effect on other layers.

    The tensor that the hook stored is out of date as soon as a checkpoint is loaded, and cannot be copied.
    """
    if _hook(layer) is not None:
        with_class(layer, _with_computed_weight)
        vars(layer).pop("weight", None)


def _with_computed_weight(base: type[nn.Module]) -> type[nn.Module]:
    def as_before(layer: nn.Module) -> None:
        layer.__class__ = base  # torch.nn.utils.prune.remove and the like delete the weight, and then set a parameter

    weight = property(_computed, lambda self, value: None, as_before)  # the hook's own value is dropped
    return type(base.__name__, (base,), {"weight": weight, "__module__": base.__module__})


def _computed(layer: nn.Module) -> Tensor:
    hook = _hook(layer)
    if isinstance(hook, BasePruningMethod):
        weight = hook.apply_mask(layer)
    elif isinstance(hook, SpectralNorm):
        weight = hook.compute_weight(layer, do_power_iteration=False)  # the hook itself iterates, once per forward
    else:
        weight = hook.compute_weight(layer)
    assert isinstance(weight, Tensor)
    return weight


def _hook(layer: nn.Module) -> Any:
    return _hooks(layer).get("weight")


def _hooks(module: nn.Module) -> dict[str, Any]:
    """The name of each tensor that a hook computes -> the hook."""
    return {
        pruned_tensor(hook) if isinstance(hook, BasePruningMethod) else hook.name: hook
        for hook in hooks_of(module)[0].values()
        if isinstance(hook, BasePruningMethod | SpectralNorm | WeightNorm)
    }


def sources_of_hooks(module: nn.Module) -> set[str]:
    """The names of the parameters that hooks compute weights from: forward reads those weights, not these parameters."""
    return {f"{name}_{kind}" for name in _hooks(module) for kind in ("orig", "g", "v")}
