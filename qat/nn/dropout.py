"""Modules that drop values in training and do nothing in evaluation."""

from __future__ import annotations

from torch import nn

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)


def is_identity_in_evaluation(module: nn.Module) -> bool:
    """Whether the module drops values, or whole branches (stochastic depth), in training only.

    Drop paths are recognized by the name of their class, because torchvision, timm and transformers each have their own.
    """
    cls = type(module)
    of_torch = any(issubclass(cls, base) and cls.forward is base.forward for base in _DROPOUTS)
    drops = of_torch or cls.__name__.endswith(("StochasticDepth", "DropPath"))
    return drops and cls.__call__ is nn.Module.__call__
