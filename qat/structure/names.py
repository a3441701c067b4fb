"""What a file may name: classes and functions, from a fixed list of packages and from the caller."""

from __future__ import annotations

import builtins
import importlib
import math
import operator
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qat.torch_private import Operator

MODULE_PACKAGES = ("torch.nn.modules.", "torchvision.models.", "torchvision.ops.")
"""Where classes of modules come from."""
OWN_PACKAGES = (
    *("qat.estimators", "qat.granularity", "qat.grid", "qat.integer", "qat.models", "qat.nn", "qat.observers"),
    *("qat.operations", "qat.quantizers", "qat.spec"),
)
"""Where classes of modules and of their attributes come from: objects that compute, and neither read nor write files."""
OWN_FUNCTIONS = ("qat.capture.", "qat.functional", "qat.operations.", "qat.integer.")
"""Where functions in graphs come from, besides torch."""

_OUTPUTS = re.compile(r"transformers(\.modeling_\w+|\.models(\.\w+)?\.\w+\.modeling_\w+)")
"""The modules where transformers defines what its networks return."""

_OPERATORS = (
    "abs add and_ contains eq floordiv ge getitem gt iadd iand ifloordiv imul index inv invert ior isub itruediv le lshift lt "
    "matmul mod mul ne neg not_ or_ pos pow rshift setitem sub truediv truth xor"
)
_BUILTINS = "abs bool float getattr int len max min round slice sum tuple"
_FACTORIES = (
    "arange empty empty_like eye full full_like linspace logspace ones ones_like rand rand_like randint randn randn_like "
    "randperm scalar_tensor tensor tril_indices triu_indices zeros zeros_like _assert finfo iinfo is_tensor numel "
    "broadcast_shapes promote_types is_floating_point result_type can_cast as_tensor normal randint_like range vander "
    "bartlett_window blackman_window hamming_window hann_window kaiser_window"
)
_NOT_OVERRIDABLE = {
    F: "hardsigmoid hardswish sigmoid tanh upsample upsample_bilinear upsample_nearest",
    torch.fft: "fftfreq rfftfreq",
}
"""Functions on tensors that `get_overridable_functions` leaves out."""
_REFUSED = {
    *(
        "from_file",
        "load",
        "save",
        "numpy",
        "storage",
        "untyped_storage",
        "data_ptr",
        "share_memory_",
        "set_",
        "apply_",
    ),
    *("map_", "map2_", "register_hook", "backward", "register_post_accumulate_grad_hook", "module_load", "__dlpack__"),
}
"""Functions and methods that reach files, memory or Python code."""
ATTRIBUTES = {
    *("shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "real", "imag", "data", "requires_grad", "is_cuda"),
    *("layout", "itemsize", "nbytes", "is_sparse", "min", "max", "eps", "tiny"),
    *(n for kind in vars(torch.return_types).values() if hasattr(kind, "n_fields") for n in kind.__match_args__),
}
"""What `getattr` in a graph may read: of tensors, of torch.finfo and torch.iinfo, and of what functions return."""


class NotAllowedError(ValueError):
    """A file names a class that the caller has to allow. The message is the end of a sentence that begins with the folder."""


class Names:
    """From names to classes and functions, and back.

    Args:
        allow: classes of the caller, which a file may name, too.
    """

    def __init__(self, allow: Iterable[type] = ()) -> None:
        self._allowed = {path_of(cls): cls for cls in allow}

    def knows(self, cls: type) -> bool:
        """Whether a file can name this class."""
        try:
            return self.find_class(path_of(cls)) is cls
        except ValueError:
            return False

    def find_class(self, path: str) -> type:
        """The class of this path.

        Raises:
            ValueError: a file may not name it, or there is no such class.
        """
        if path in self._allowed:
            return self._allowed[path]
        module, _, name = path.rpartition(".")
        own = any(module == package or module.startswith(f"{package}.") for package in OWN_PACKAGES)
        if own or f"{module}.".startswith(MODULE_PACKAGES):
            found = _attribute(module, name)
            # found where it is defined: a module also holds what it imports
            if isinstance(found, type) and found.__module__ == module and (own or issubclass(found, nn.Module)):
                return found
        raise ValueError(
            f"{path} is not a class of torch.nn, of torchvision's models or of qat, and a file may name no others"
        )

    def find_output(self, path: str) -> type:
        """The class of what a network returns, of this path.

        Raises:
            NotAllowedError: a file may not name it, or there is no such class.
        """
        module, _, name = path.rpartition(".")
        found: Any = self._allowed.get(path) or (OrderedDict if path == path_of(OrderedDict) else None)
        if found is None and _OUTPUTS.fullmatch(module):
            found = _attribute(module, name)
        made_of_fields = isinstance(found, type) and (issubclass(found, OrderedDict | tuple) or is_dataclass(found))
        if made_of_fields and (path in self._allowed or issubclass(found, OrderedDict)):
            output: type = found
            return output
        raise NotAllowedError(f"returns {path}, which a file may not name: import it, and pass it, allow=[{name}]")


def path_of(named: Any) -> str:
    """The path under which a class or function of Python can be imported."""
    return f"{named.__module__}.{named.__qualname__}"


def name_of_function(function: Any) -> str | None:
    """The name of a function in a graph; None if a file may not name it."""
    if isinstance(function, Operator):
        return f"ops.{function}" if _is_safe_operator(str(function)) else None
    if (name := _names_of_functions().get(function)) is not None:
        return name
    if callable(function) and hasattr(function, "__qualname__"):
        path = path_of(function)
        return path if path.startswith(OWN_FUNCTIONS) and _own_function(path) is function else None
    return None


def find_function(name: str) -> Callable[..., Any]:
    """The function of this name.

    Raises:
        ValueError: a file may not name it, or there is no such function.
    """
    found: Any = _functions().get(name)
    if found is None and name.startswith("ops.") and _is_safe_operator(name.removeprefix("ops.")):
        found = torch.ops
        for part in name.split(".")[1:]:
            found = getattr(found, part, None)
        found = found if isinstance(found, Operator) else None
    if found is None and name.startswith(OWN_FUNCTIONS):
        found = _own_function(name)
    if found is None:
        raise ValueError(f"{name} is not a function of torch on tensors, and a file may name no others")
    function: Callable[..., Any] = found
    return function


def check_method(name: str) -> None:
    """Raise ValueError if a graph in a file may not call this method of a tensor."""
    if name.startswith("_") or name in _REFUSED or not callable(getattr(torch.Tensor, name, None)):
        raise ValueError(f"{name!r} is not a method of tensors that a file may call")


def _attribute(module: str, name: str) -> Any:
    try:
        return vars(importlib.import_module(module)).get(name)
    except ImportError:
        return None


def _own_function(path: str) -> Any:
    module, _, name = path.rpartition(".")
    found = _attribute(module, name)
    return found if callable(found) and not isinstance(found, type) and path_of(found) == path else None


def _is_safe_operator(path: str) -> bool:
    parts = path.split(".")
    return len(parts) == 3 and parts[0] == "aten" and parts[1] not in _REFUSED and bool(re.fullmatch(r"[\w.]+", path))


@cache
def _functions() -> dict[str, Any]:
    """All functions that a file may name, without the operations of torch.ops."""
    found: dict[str, Any] = {f"operator.{name}": getattr(operator, name) for name in _OPERATORS.split()}
    found |= {f"builtins.{name}": getattr(builtins, name) for name in _BUILTINS.split()}
    found |= {f"math.{name}": f for name, f in vars(math).items() if callable(f) and not name.startswith("_")}
    found |= {f"torch.{name}": getattr(torch, name) for name in _FACTORIES.split()}
    overridable = torch.overrides.get_overridable_functions()
    for space, prefix in ((F, "torch.nn.functional"), (torch, "torch"), (torch.functional, "torch.functional")):
        for function in overridable.get(space, ()):
            found |= {f"{prefix}.{name}": f for name, f in _named(space, function) if name not in _REFUSED}
    for space in (torch.fft, torch.linalg, torch.special):
        for function in overridable.get(space, ()):
            found |= {f"{space.__name__}.{name}": f for name, f in _named(space, function)}
    for space, names in _NOT_OVERRIDABLE.items():
        found |= {f"{space.__name__}.{name}": getattr(space, name) for name in names.split()}
    for space in (F, torch):
        prefix = f"{space.__name__}."
        bare = [path.removeprefix(prefix) for path in found if path.rpartition(".")[0] == space.__name__]
        in_place = {f"{prefix}{name}_": getattr(space, f"{name}_", None) for name in bare if f"{name}_" not in _REFUSED}
        found |= {path: function for path, function in in_place.items() if callable(function)}
    return found


def _named(space: Any, function: Any) -> list[tuple[str, Any]]:
    return [(name, function) for name in _members(space).get(function, ())]


@cache
def _members(space: Any) -> dict[Any, list[str]]:
    found: dict[Any, list[str]] = {}
    for name, value in vars(space).items():
        if callable(value) and not isinstance(value, type) and not name.startswith("_"):
            found.setdefault(value, []).append(name)
    return found


@cache
def _names_of_functions() -> dict[Any, str]:
    return {function: name for name, function in reversed(_functions().items())}
