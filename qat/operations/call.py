"""One call of an operation, whatever its spelling: module, function, method, operator or ATen overload."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import fx, nn

from qat.torch_private import Operator, SchemaArgument, schemas_of

ALIASES = {
    "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div", "true_divide": "div",
    "divide": "div", "multiply": "mul", "subtract": "sub", "imatmul": "matmul", "bmm": "matmul",
    "concat": "cat", "concatenate": "cat", "clip": "clamp", "swapaxes": "transpose",
    "swapdims": "transpose", "moveaxis": "movedim", "absolute": "abs", "negative": "neg", "ipow": "pow",
    "special_expit": "sigmoid", "expit": "sigmoid", "view_as": "reshape_as", "unsafe_chunk": "chunk",
    "unsafe_split": "split", "logsigmoid": "log_sigmoid", "_unsafe_view": "view", "slice_copy": "slice",
}  # fmt: skip
"""Other names of the same operation."""
ARGUMENT_ALIASES = {"axis": "dim", "keepdims": "keepdim", "self": "input", "a_min": "min", "a_max": "max", "x": "input"}
"""Other names of the same argument."""
TAKES_SIZES_ONE_BY_ONE = frozenset(
    ("view", "reshape", "permute", "repeat", "expand", "flip", "tile", "unflatten", "sum", "mean", "squeeze")
)
"""Methods whose list of numbers may also be written as several arguments."""

MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardtanh: "hardtanh", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh",
    nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid", nn.SiLU: "silu", nn.GELU: "gelu", nn.Mish: "mish",
    nn.LeakyReLU: "leaky_relu", nn.ELU: "elu", nn.SELU: "selu", nn.CELU: "celu", nn.Softplus: "softplus",
    nn.Softsign: "softsign", nn.Tanhshrink: "tanhshrink", nn.LogSigmoid: "log_sigmoid", nn.Hardshrink: "hardshrink",
    nn.Softshrink: "softshrink", nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax", nn.GLU: "glu",
    nn.AvgPool1d: "avg_pool1d", nn.AvgPool2d: "avg_pool2d", nn.AvgPool3d: "avg_pool3d",
    nn.AdaptiveAvgPool1d: "adaptive_avg_pool1d", nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.AdaptiveAvgPool3d: "adaptive_avg_pool3d",
    nn.MaxPool1d: "max_pool1d", nn.MaxPool2d: "max_pool2d", nn.MaxPool3d: "max_pool3d",
    nn.AdaptiveMaxPool1d: "adaptive_max_pool1d", nn.AdaptiveMaxPool2d: "adaptive_max_pool2d",
    nn.AdaptiveMaxPool3d: "adaptive_max_pool3d",
    nn.Flatten: "flatten", nn.Unflatten: "unflatten", nn.PixelShuffle: "pixel_shuffle",
    nn.PixelUnshuffle: "pixel_unshuffle", nn.ChannelShuffle: "channel_shuffle", nn.Identity: "identity",
    nn.Upsample: "interpolate", nn.UpsamplingNearest2d: "interpolate", nn.UpsamplingBilinear2d: "interpolate",
    nn.ZeroPad1d: "pad", nn.ZeroPad2d: "pad", nn.ZeroPad3d: "pad", nn.ConstantPad1d: "pad", nn.ConstantPad2d: "pad",
    nn.ConstantPad3d: "pad", nn.ReflectionPad1d: "pad", nn.ReflectionPad2d: "pad", nn.ReflectionPad3d: "pad",
    nn.ReplicationPad1d: "pad", nn.ReplicationPad2d: "pad", nn.ReplicationPad3d: "pad", nn.CircularPad1d: "pad",
    nn.CircularPad2d: "pad", nn.CircularPad3d: "pad",
}  # fmt: skip
"""Modules without parameters, by the operation that they call with their attributes as arguments."""


@dataclass(frozen=True)
class Call:
    """An operation and its arguments.

    Attributes:
        name: the name of the operation in ATen, without namespace, overload and the underscore of in-place forms.
        arguments: by the names that ATen gives them, defaults included; the first tensor is `input`. Arguments that do not
            fit any of ATen's schemas are called `0`, `1`, ...
        module: the module that is called, if one is.
    """

    name: str
    arguments: Mapping[str, Any]
    module: nn.Module | None = None

    @property
    def input(self) -> Any:
        """The first argument."""
        return next(iter(self.arguments.values()), None)

    def get(self, name: str, default: Any = None) -> Any:
        """The argument `name`, or `default` if the operation has none of that name."""
        return self.arguments.get(name, default)


def call_of(model: nn.Module, node: fx.Node) -> Call:
    """The call that a call_module, call_function or call_method node makes."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        name = MODULES.get(type(module), "")
        return Call(name, _arguments_of_module(name, module, node) if name else _by_position(node), module)
    name = operation_name(node)
    args = _one_list(name, node.args) if node.op == "call_method" else node.args
    if isinstance(node.target, Operator):
        return Call(name, _bind(schemas_of(node.target), args, node.kwargs) or _by_position(node))
    bound = _bind(schemas_of(name), args, node.kwargs)
    if bound is None or name in _PREFER_SIGNATURE:
        bound = _bind_signature(node.target, args, node.kwargs) or bound
    return Call(name, bound or _by_position(node))


def operation_name(node: fx.Node) -> str:
    """The name of the operation that a call_function or call_method node calls.

    A function from outside torch has its import path: one that is called `relu` may compute anything.
    """
    target = node.target
    if isinstance(target, Operator):
        name = target.name().partition("::")[2].partition(".")[0]
    elif isinstance(target, str):
        name = target
    else:
        name = getattr(target, "__name__", str(target))
        if not is_of_torch(target):
            return f"{target.__module__}.{name}"
    if not name.startswith("_"):
        name = name.removesuffix("_")
    return ALIASES.get(name, name)


def is_of_torch(function: Any) -> bool:
    """Whether a function of a graph is torch's or Python's own."""
    package = (getattr(function, "__module__", None) or "torch").partition(".")[0]
    return package in ("torch", "_operator", "operator", "builtins", "math")


def _arguments_of_module(name: str, module: nn.Module, node: fx.Node) -> dict[str, Any]:
    """The input of the call, then the module's attributes that have the names of the operation's arguments."""
    arguments = {"input": next(iter((*node.args, *node.kwargs.values())), None)}
    if name == "pad":
        modes = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
        mode = next((mode for prefix, mode in modes.items() if type(module).__name__.startswith(prefix)), "constant")
        return {**arguments, "pad": module.padding, "mode": mode, "value": getattr(module, "value", 0)}
    if name == "interpolate":
        names = ["size", "scale_factor", "mode", "align_corners"]
    else:
        names = list(dict.fromkeys(a.name for schema in schemas_of(name) for a in schema))[1:]
    names += ["return_indices", "ceil_mode"]
    return arguments | {name: getattr(module, name) for name in names if hasattr(module, name)}


def _by_position(node: fx.Node) -> dict[str, Any]:
    return {**{str(i): a for i, a in enumerate(node.args)}, **node.kwargs}


def _one_list(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """x.permute(0, 2, 1) as x.permute((0, 2, 1))."""
    first = 2 if name == "unflatten" else 1
    listed = args[first:]
    is_open = name in TAKES_SIZES_ONE_BY_ONE and listed and all(isinstance(a, int | fx.Node) for a in listed)
    if not is_open or (name in ("sum", "mean", "squeeze") and len(listed) < 2):
        return args
    return (*args[:first], tuple(listed))


_PREFER_SIGNATURE = frozenset(("batch_norm", "layer_norm", "split", "dropout"))
"""Python functions of torch whose arguments are not in the order of ATen's."""


_ONLY_IN_PYTHON = ("inplace", "return_indices")
"""Arguments of functions in torch.nn.functional that ATen's operations of the same name do not have."""


def _bind_signature(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bind by the function's own signature; None if it has none, or one with *args or **kwargs."""
    try:
        signature = _signature(function)
        kinds = {p.kind for p in signature.parameters.values()}
        if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            return None
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    return {ARGUMENT_ALIASES.get(name, name): value for name, value in bound.arguments.items()}


@lru_cache(maxsize=1024)
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


def _bind(
    schemas: tuple[tuple[SchemaArgument, ...], ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The arguments by the first schema that they fit; None if they fit none."""
    named = {ARGUMENT_ALIASES.get(name, name): value for name, value in kwargs.items()}
    extra = {name: named.pop(name) for name in _ONLY_IN_PYTHON if name in named}
    for schema in schemas:
        bound = dict(_bound(schema, args, named))
        names = {ARGUMENT_ALIASES.get(a.name, a.name) for a in schema}
        if len(bound) == len(schema) and named.keys() <= names and len(args) <= sum(not a.by_name for a in schema):
            return bound | extra
    return None


def _bound(
    schema: tuple[SchemaArgument, ...], args: tuple[Any, ...], named: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """(name, value) of every argument of `schema` that has a fitting value or a default."""
    for i, argument in enumerate(schema):
        name = ARGUMENT_ALIASES.get(argument.name, argument.name)
        if i < len(args) and not argument.by_name:
            if argument.accepts(args[i]):
                yield name, args[i]
        elif name in named:
            if argument.accepts(named[name]):
                yield name, named[name]
        elif argument.has_default:
            yield name, argument.default
