"""The rates of dropout in training: in evaluation, whose graph is captured, networks often pass 0."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.overrides import TorchFunctionMode

DROPOUTS: dict[Any, Callable[[float], nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


@dataclass(frozen=True)
class DropoutRates:
    """The rates of dropout, in the order of the calls; 0 where dropout is off in training, too.

    Attributes:
        functions: those of calls of `DROPOUTS`, which the modules of torch call, too.
        attention: those of calls of F.scaled_dot_product_attention.
    """

    functions: list[float] = field(default_factory=list)
    attention: list[float] = field(default_factory=list)

    def see(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Append the rate of a call, if it has one."""
        if function is F.scaled_dot_product_attention:
            self.attention.append(float(attention_arguments(args, kwargs)["dropout_p"]))
        elif function in DROPOUTS or function is torch.dropout:
            arguments = _dropout_arguments(function, args, kwargs)
            self.functions.append(float(arguments["p"]) if arguments["training"] else 0.0)


class RecordedRates(TorchFunctionMode):
    """Inside its `with` block, records the rates of all calls in `rates`."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = DropoutRates()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.rates.see(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class WithoutDropout(TorchFunctionMode):
    """Inside its `with` block, dropout returns its input."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in DROPOUTS or func is torch.dropout:
            return _dropout_arguments(func, args, kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


def rates_in_graph(training: fx.Graph | None) -> DropoutRates | None:
    """The rates in a graph that torch.fx traced in training; None without one."""
    if training is None:
        return None
    rates = DropoutRates()
    for node in training.nodes:
        if node.op == "call_function":
            rates.see(node.target, node.args, node.kwargs)
    return rates


def attention_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of F.scaled_dot_product_attention by name, with its defaults."""
    return _by_name(inspect.signature(_attention), args, kwargs)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    """The signature of torch's function, which has none of its own."""


def _dropout_arguments(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if function is torch.dropout:
        kwargs = {("training" if key == "train" else key): value for key, value in kwargs.items()}
        function = F.dropout
    return _by_name(inspect.signature(function), args, kwargs)


def _by_name(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments
