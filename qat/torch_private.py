"""The private members of torch that code below `qat/training` uses, under public names.

`tests/test_private_api.py` checks that the installed torch has every one of them. Training has a file of its own,
`qat/training/lightning/private_api.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import (
    SUPPORTED_NODES,
    GetAttrKey,
    MappingKey,
    SequenceKey,
    TreeSpec,
    register_pytree_node,
    tree_unflatten,
)
from torch.utils._pytree import tree_flatten as flatten_registered
from torch.utils._pytree import tree_flatten_with_path as flatten_registered_with_path
from torch.utils._pytree import tree_leaves as leaves_registered
from torch.utils._pytree import tree_map as map_registered
from torch.utils._pytree import tree_map_only as map_only_registered

__all__ = [
    "FLAT_WEIGHTS",
    "PLAIN",
    "TENSOR_FROM_PARTS",
    "BatchNorm",
    "DispatchMode",
    "HigherOrderOperator",
    "MappingKey",
    "Operator",
    "SchemaArgument",
    "SequenceKey",
    "TreeSpec",
    "assert_function",
    "constant_for_compiler",
    "flat_weights",
    "hooks_of",
    "one_onnx_registry",
    "pruned_tensor",
    "quantized_decomposed",
    "schemas_of",
    "set_contents",
    "tensor_version",
    "tree_flatten",
    "tree_flatten_with_path",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_unflatten",
]

Function = TypeVar("Function", bound=Callable[..., Any])

BatchNorm = _BatchNorm
"""Base class of BatchNorm1d, 2d, 3d and SyncBatchNorm, and of what Lightning leaves behind of the latter."""

DispatchMode = TorchDispatchMode
"""Base class of modes that see every operation of ATen inside their `with` block."""

Operator = OpOverload
"""One overload of an operation of torch.ops; `str` gives its path, "aten.conv2d.default"."""

assert_function = torch._assert
"""torch._assert(condition, message): the `assert` of networks that are written to be traced."""

TENSOR_FROM_PARTS: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": torch._utils._rebuild_tensor,
    "_rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "_rebuild_parameter": torch._utils._rebuild_parameter,
    "_rebuild_parameter_with_state": torch._utils._rebuild_parameter_with_state,
}
"""The functions of torch._utils that a checkpoint calls to make tensors and parameters."""

FLAT_WEIGHTS = ("_flat_weights", "_flat_weight_refs")
"""Where a recurrent layer keeps its parameters a second time, in the order of cuDNN."""

PLAIN = frozenset({Tensor, nn.Parameter, bool, int, float, str, type(None), torch.dtype, torch.device})
"""The most frequent types of leaves in nested values."""


def _sees_dataclasses(walk: Function, position: int) -> Function:
    """`walk`, a function of torch.utils._pytree, that registers dataclasses with tensors. position: of its nested values."""

    @wraps(walk)
    def walked(*args: Any, **kwargs: Any) -> Any:
        while type(args[position]) not in PLAIN and any(
            _register(type(leaf)) for leaf in leaves_registered(args[position]) if _holds_tensors(leaf)
        ):
            pass  # a dataclass may be in another one
        return walk(*args, **kwargs)

    return cast(Function, walked)


def _holds_tensors(leaf: Any) -> bool:
    if isinstance(leaf, type) or not dataclasses.is_dataclass(leaf) or type(leaf).__module__.startswith("qat."):
        return False
    values = leaves_registered([getattr(leaf, name, None) for name in _names_of_fields(type(leaf))])
    return any(isinstance(v, Tensor | fx.Proxy | fx.Node) or _holds_tensors(v) for v in values)


def _names_of_fields(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _register(kind: type[Any]) -> bool:
    """Register a dataclass. Returns False if it was registered before."""
    if kind in SUPPORTED_NODES:
        return False
    names = _names_of_fields(kind)

    def with_keys(value: Any) -> tuple[list[tuple[Any, Any]], list[str]]:
        return [(GetAttrKey(name), getattr(value, name)) for name in names], names

    register_pytree_node(
        kind,
        lambda value: ([getattr(value, name) for name in names], names),
        lambda values, _: kind(**dict(zip(names, values, strict=True))),
        flatten_with_keys_fn=with_keys,
    )
    return True


tree_flatten = _sees_dataclasses(flatten_registered, 0)
tree_flatten_with_path = _sees_dataclasses(flatten_registered_with_path, 0)
tree_leaves = _sees_dataclasses(leaves_registered, 0)
tree_map = _sees_dataclasses(map_registered, 1)
tree_map_only = _sees_dataclasses(map_only_registered, 2)


def constant_for_compiler(function: Function) -> Function:
    """`torch.compiler.assume_constant_result` without the import of the compiler, which takes as long as that of torch."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


@contextmanager
def one_onnx_registry() -> Iterator[None]:
    """Inside the `with` block, torch.onnx.export reads its registry of functions once, which takes half of a small export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read, original = _onnx_registry_reader(), vars(ONNXRegistry)["from_torchlib"]

    def copied(*args: Any, **kwargs: Any) -> ONNXRegistry:
        registry = copy.copy(read(*args, **kwargs))
        registry.functions = {name: list(forms) for name, forms in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(copied)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]


@lru_cache
def _onnx_registry_reader() -> Callable[..., Any]:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return lru_cache(ONNXRegistry.from_torchlib)


def quantized_decomposed() -> Any:
    """torch.ops.quantized_decomposed: the operations of PT2E, which a module of the deprecated torch.ao registers."""
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    return torch.ops.quantized_decomposed


def flat_weights(module: nn.Module) -> list[Tensor | None]:
    """The weights of a recurrent layer, as it reads them now, in the order of cuDNN."""
    names: Any = module._flat_weights_names
    return [getattr(module, name, None) for name in names]


def size_guards(program: torch.export.ExportedProgram) -> list[str]:
    """The conditions on the sizes of inputs under which a program holds, as Python: "L['x'].size()[1] <= 16"."""
    return list(program._guards_code)


def tensor_version(tensor: Tensor) -> int:
    """How often the tensor was changed in place."""
    return tensor._version


def set_contents(module: nn.Module, source: nn.Module) -> None:
    """Replace the submodules, parameters and buffers of `module` by those of `source`."""
    module._modules, module._parameters, module._buffers = source._modules, source._parameters, source._buffers


def own_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """A module's own submodules by name, with those that are None. A change of this dict changes the module."""
    return module._modules


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own parameters by name; likewise."""
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """A module's own buffers by name; likewise."""
    return module._buffers


def buffers_not_saved(module: nn.Module) -> set[str]:
    """The names of a module's own buffers that no state dict has."""
    return module._non_persistent_buffers_set


def note_beside_state(state: Any, prefix: str, **facts: Any) -> None:
    """Add facts about a module to the metadata of a state dict, beside the module's version; a plain dict has no metadata."""
    if hasattr(state, "_metadata"):
        state._metadata.setdefault(prefix[:-1], {}).update(facts)


def attention_implementation(config: object) -> str | None:
    """The attention that a configuration of transformers names; None if it names none."""
    return cast(str | None, getattr(config, "_attn_implementation", None))


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any], set[int]]:
    """A module's hooks before and after forward, by number, and the numbers of those that take keyword arguments."""
    with_kwargs = {*module._forward_pre_hooks_with_kwargs, *module._forward_hooks_with_kwargs}
    return module._forward_pre_hooks, module._forward_hooks, with_kwargs


def pruned_tensor(hook: Any) -> str:
    """The name of the parameter that a hook of torch.nn.utils.prune masks."""
    return str(hook._tensor_name)


@dataclass(frozen=True)
class SchemaArgument:
    """One argument of an ATen operation. kind: the name of its type, without Optional. by_name: it has no position."""

    name: str
    kind: str
    by_name: bool
    has_default: bool
    default: Any

    def accepts(self, value: Any) -> bool:
        """Whether a value, or the node that will produce it, can be this argument."""
        if value is None:
            return self.has_default
        if isinstance(value, fx.Node):
            return self.kind not in ("List[Tensor]", "List[Optional[Tensor]]", "str", "bool")
        match self.kind:
            case "Tensor":
                return isinstance(value, Tensor)
            case "int":
                return isinstance(value, int)
            case "number" | "float":
                return isinstance(value, int | float)
            case "List[int]" | "List[Tensor]":
                return isinstance(value, list | tuple) or (self.kind == "List[int]" and isinstance(value, int))
        return True


def schemas_of(operation: str | OpOverload) -> tuple[tuple[SchemaArgument, ...], ...]:
    """The arguments of an overload, or of every overload of an ATen operation that returns a new tensor."""
    if isinstance(operation, Operator):
        return (_arguments(operation._schema),)
    return _schemas_of_name(operation)


@lru_cache(maxsize=1024)
def _schemas_of_name(name: str) -> tuple[tuple[SchemaArgument, ...], ...]:
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    return tuple(_arguments(schema) for schema in schemas if not any(a.name == "out" for a in schema.arguments))


def _arguments(schema: Any) -> tuple[SchemaArgument, ...]:
    return tuple(
        SchemaArgument(
            name=a.name,
            kind=re.sub(r"^Optional\[(.*)\]$", r"\1", str(a.type)),
            by_name=a.kwarg_only,
            has_default=a.has_default_value(),
            default=a.default_value if a.has_default_value() else None,
        )
        for a in schema.arguments
    )
