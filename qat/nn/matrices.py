"""Modules that compute with weight matrices in their own ways: recurrent and bilinear layers, bags of embeddings, ...

Such a module keeps its class and its forward. Only the matrices that the forward reads are replaced: by fake-quantized ones in
a prepared model, by ones dequantized from stored codes in an integer one. A new class needs a line in `MATRICES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from qat.nn.hooked_weight import sources_of_hooks
from qat.nn.layers import LAYERS, as_quantized, is_layer, is_quantized, owns_weight
from qat.nn.rebuilt import with_class
from qat.quantizers import Quantizer
from qat.torch_private import FLAT_WEIGHTS, flat_weights

MATRICES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.RNNBase: ("weight_*",),  # LSTM, GRU and RNN
    nn.RNNCellBase: ("weight_*",),
    nn.Bilinear: ("weight",),
    nn.EmbeddingBag: ("weight",),
    nn.MultiheadAttention: ("*_proj_weight", "out_proj.weight"),
}
"""Class -> globs on the names of its weight matrices. Subclasses count, whatever their forward does with the matrices."""


class QuantizedWeight(NamedTuple):
    """One weight with a quantizer. name: of the parameter in its module."""

    name: str
    weight: Tensor
    quantizer: Quantizer


def matrices_of(module: nn.Module) -> list[str]:
    """The names of the module's weight matrices that can be quantized: those that its forward reads as they are stored.

    A matrix from which a hook computes the weight (torch.nn.utils.prune, weight_norm) is not read itself, and a module with
    `max_norm` changes its matrices as it reads them.
    """
    patterns: tuple[str, ...] = ("weight",) if is_layer_of_its_own(module) else ()
    patterns = next((names for cls, names in MATRICES.items() if isinstance(module, cls)), patterns)
    if not patterns or getattr(module, "max_norm", None) is not None:
        return []
    not_read = sources_of_hooks(module)
    return [
        name
        for name, parameter in module.named_parameters()
        if name not in not_read
        and parameter.ndim > 1
        and parameter.is_floating_point()
        and any(fnmatchcase(name, p) for p in patterns)
    ]


def is_layer_of_its_own(module: nn.Module) -> bool:
    """Whether this is a subclass of a layer that owns its weight and computes something else than the layer."""
    if not isinstance(module, tuple(LAYERS)) or is_quantized(module) or is_layer(module):
        return False
    return owns_weight(module) and not isinstance(module, NonDynamicallyQuantizableLinear)


def matrix_type(module: nn.Module) -> str:
    """The name of the module's class in torch.nn, or of the one that it subclasses."""
    return next(cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn."))


def quantize_matrices(
    module: nn.Module, quantizers: Mapping[str, Quantizer], input: Quantizer | None = None
) -> nn.Module:
    """Let the forward of `module` read fake-quantized matrices, in place.

    Parameters, hooks and state_dict names stay; `weight_quantizers` is added.

    Args:
        module: any module, called as it always was.
        quantizers: the name of a matrix (`matrices_of`) -> its quantizer.
        input: quantizer of the first argument; None leaves it as it comes.

    Returns:
        `module`.
    """
    with_class(module, _with_quantized_matrices)
    vars(module)["quantized_matrices"] = tuple(quantizers)
    module.add_module("weight_quantizers", nn.ModuleDict({_key(name): q for name, q in quantizers.items()}))
    if input is not None:
        module.add_module("input_quantizer", input)
    return module


def has_quantized_matrices(module: nn.Module) -> bool:
    """Whether `quantize_matrices` was called on this module."""
    return "quantized_matrices" in vars(module)


def quantized_weights(module: nn.Module) -> list[QuantizedWeight]:
    """The weights of this module that have quantizers, whether it is a layer or has matrices. Submodules do not count."""
    if is_quantized(module):
        quantizer = as_quantized(module).weight_quantizer
        return [] if quantizer is None else [QuantizedWeight("weight", as_quantized(module).weight, quantizer)]
    if not has_quantized_matrices(module):
        return []
    quantizers: Any = module.weight_quantizers
    return [
        QuantizedWeight(name, module.get_parameter(name), quantizers[_key(name)])
        for name in cast(tuple[str, ...], module.quantized_matrices)
        if _key(name) in quantizers
    ]


def drop_matrices(module: nn.Module) -> None:
    """Remove the quantized matrices and their quantizers, in place; from then on the matrices come from `compute_with`."""
    for path, _, _ in quantized_weights(module):
        owner, _, name = path.rpartition(".")
        module.get_submodule(owner).register_parameter(name, None)
    module.add_module("weight_quantizers", nn.ModuleDict())
    module.float()  # makes recurrent layers rebuild the list of their weights


def compute_with(module: nn.Module, weights: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """What the forward of a module with quantized matrices computes if it reads these weights in their place."""
    forward: Callable[..., Any] = type(module).float_forward  # type: ignore[attr-defined]
    if args and (input_quantizer := getattr(module, "input_quantizer", None)) is not None:
        args = (input_quantizer(args[0]), *args[1:])
    with _reading(module, weights):
        return forward(module, *args, **kwargs)


@contextmanager
def _reading(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the `with`, attributes of `module` hide parameters of the same names, which stay registered.

    Recurrent layers also keep a list of their weights. It is replaced for the block and restored afterwards, so that copies of
    the module hold no tensors of a forward.
    """
    flat = {name: vars(module)[name] for name in FLAT_WEIGHTS if name in vars(module)}
    owners = []
    for path, tensor in weights.items():
        owner, _, name = path.rpartition(".")
        owners.append((vars(module.get_submodule(owner)), name))
        owners[-1][0][name] = tensor
    if flat:
        vars(module)[FLAT_WEIGHTS[0]] = flat_weights(module)
    try:
        yield
    finally:
        for attributes, name in owners:
            attributes.pop(name, None)
        vars(module).update(flat)


def _with_quantized_matrices(base: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        weights = {name: quantizer(weight) for name, weight, quantizer in quantized_weights(self)}
        return compute_with(self, weights, *args, **kwargs)

    members = {"forward": forward, "float_forward": base.forward, "__module__": base.__module__}
    return type(base.__name__, (base,), members)


def _key(name: str) -> str:
    """The name of a quantizer among the submodules."""
    return name.replace(".", "_")
