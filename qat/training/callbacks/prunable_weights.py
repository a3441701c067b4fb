"""The weights of a network that masks can reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qat.nn import (
    as_quantized,
    is_layer,
    is_quantized,
    layer_type,
    matrices_of,
    matrix_type,
    outputs_first,
    parameters_of_weight,
    quantized_weights,
)
from qat.quantizers import Quantizer
from qat.transform.record import record_of
from qat.transform.rule import Rule


class PrunableWeight(NamedTuple):
    """The weight of a layer, or a matrix of another module, such as a recurrent layer.

    Attributes:
        module: what has it.
        name: its name in the module.
        kind: the type of the layer, as in "type:Linear".
    """

    module: nn.Module
    name: str
    kind: str

    @property
    def value(self) -> Tensor:
        """As the forward reads it: a parameter, or a view of one."""
        with torch.no_grad():
            owner, _, name = self.name.rpartition(".")
            value: Tensor = getattr(self.module.get_submodule(owner), name)
            return value

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that it is computed from."""
        return parameters_of_weight(self.module) if self.name == "weight" else [self.module.get_parameter(self.name)]

    @property
    def quantizer(self) -> Quantizer | None:
        if is_quantized(self.module):
            return as_quantized(self.module).weight_quantizer
        return next((w.quantizer for w in quantized_weights(self.module) if w.name == self.name), None)

    @property
    def is_of_layer(self) -> bool:
        """Whether it is the weight of a layer, and not a table."""
        return (is_layer(self.module) or is_quantized(self.module)) and not self.is_table

    @property
    def is_table(self) -> bool:
        """Whether it is a table of vectors, which are looked up."""
        return isinstance(self.module, nn.Embedding | nn.EmbeddingBag)

    @property
    def can_be_set(self) -> bool:
        """Whether zeros that are written into it stay: it is a parameter, or a view of one, and not computed from some."""
        owners = self.parameters
        return len(owners) == 1 and owners[0].untyped_storage().data_ptr() == self.value.untyped_storage().data_ptr()

    def outputs_first(self, tensor: Tensor) -> Tensor:
        """The weight or its mask as [out, in / groups, ...], and back."""
        return outputs_first(self.module, tensor)


def weights_of(network: nn.Module) -> dict[str, PrunableWeight]:
    """The weights of layers, by their layer's name, in the order in which they run; then the matrices of other modules."""
    record = record_of(network)
    names = dict.fromkeys([*(record.rules if record is not None else ()), *(n for n, _ in network.named_modules())])
    layers = [n for n in names if is_layer(m := network.get_submodule(n)) or is_quantized(m)]
    found = {n: PrunableWeight(m := network.get_submodule(n), "weight", layer_type(m).__name__) for n in layers}
    read = {id(parameter) for weight in found.values() for parameter in weight.parameters}
    for name, module in network.named_modules():
        for key in () if name in found else matrices_of(module):
            if id(module.get_parameter(key)) not in read:
                found[f"{name}.{key}".lstrip(".")] = PrunableWeight(module, key, matrix_type(module))
    return found


def chosen_weights(
    weights: Mapping[str, PrunableWeight], match: Sequence[str], exclude: Sequence[str]
) -> dict[str, PrunableWeight]:
    """The weights that `match` chooses, less those that `exclude` does.

    Args:
        weights: by name.
        match: globs on names, "type:NAME", or "first" and "last" of the layers; the name of a module stands for its matrices.
        exclude: the same.
    """
    layers = [name for name, weight in weights.items() if weight.is_of_layer]

    def fits(globs: Sequence[str], name: str, weight: PrunableWeight) -> bool:
        place = layers.index(name) if name in layers else -1
        names = {name, name.removesuffix(f".{weight.name}")}
        return any(Rule(g, None, None).matches(n, weight.kind, place, len(layers)) for g in globs for n in names)

    return {n: w for n, w in weights.items() if fits(match, n, w) and not fits(exclude, n, w)}


def prunable(network: nn.Module, chosen: Mapping[str, PrunableWeight]) -> dict[str, PrunableWeight]:
    """The chosen weights that can be pruned: their zeros stay, and no module reads them that is not pruned itself."""
    settable = {n: w for n, w in chosen.items() if not w.is_table and w.can_be_set}
    owners = {id(w.module.get_submodule(w.name.rpartition(".")[0])) for w in settable.values()}
    owners |= {id(lender) for w in settable.values() for lender in vars(w.module).get("lender", ())}
    others = [m for m in network.modules() if id(m) not in owners]
    left_alone = {id(p) for m in others for p in m.parameters(recurse=False)}
    return {n: w for n, w in settable.items() if id(w.parameters[0]) not in left_alone}
