"""What is computed on codes: the plan, the table of a prepared model and the integer model agree on it here."""

from __future__ import annotations

from torch import fx, nn

from qat.granularity import PerGroup
from qat.nn import as_quantized, is_quantized, transposed_padding
from qat.operations.activations import Rectify
from qat.operations.arithmetic import MatMul
from qat.operations.base import Operation, Role
from qat.operations.describe import Operations
from qat.operations.layers import Layer
from qat.operations.movement import Move
from qat.quantizers import Quantizer

_TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def has_integer_form(layer: nn.Module) -> bool:
    """Whether the weight is stored as codes with one scale per output channel or per tensor."""
    quantizer = as_quantized(layer).weight_quantizer if is_quantized(layer) else None
    if quantizer is None or not quantizer.scaled_codes or isinstance(quantizer.spec.granularity, PerGroup):
        return False
    return can_take_codes(layer)


def can_take_codes(layer: nn.Module) -> bool:
    """Whether a layer of this kind, with these options, can be computed on codes, whatever its quantizers."""
    if isinstance(layer, _TRANSPOSED):
        return min(transposed_padding(layer)[0]) >= 0  # a convolution cannot crop
    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)


def has_dynamic_form(layer: nn.Module) -> bool:
    """Whether a layer with an integer form also has one for inputs that are quantized on their own range."""
    return not isinstance(layer, _TRANSPOSED)


def takes_input_alone(node: fx.Node, layer: Layer) -> bool:
    """Whether this call of a layer has no other argument than its input (no `output_size`)."""
    return len(layer.inputs) == 1 and len(node.args) + len(node.kwargs) == 1


def tensors_with_codes(model: nn.Module, operations: Operations) -> set[fx.Node]:
    """The tensors on a grid that does not depend on their values: static sites, and what moves their values."""
    found: set[fx.Node] = set()
    for node, operation in operations.items():
        if operation.role is Role.SITE:
            quantizer = _quantizer(model, node)
            if quantizer.scaled_codes and not quantizer.is_dynamic:
                found.add(node)
        elif isinstance(operation, Move) and operation.inputs[0] in found:
            found.add(node)
    return found


def is_computed_on_codes(model: nn.Module, node: fx.Node, operations: Operations, with_codes: set[fx.Node]) -> bool:
    """Whether the integer model multiplies integers where the prepared one calls this layer or matrix product."""
    operation = operations[node]
    if isinstance(operation, MatMul):
        return all(n in with_codes for n in operation.inputs) and _ends_in_site(node, operations, with_codes)
    if not isinstance(operation, Layer) or not has_integer_form(operation.module):
        return False
    source = operation.inputs[0]
    if not takes_input_alone(node, operation):
        return False
    if source in with_codes:
        return True
    is_dynamic = operations[source].role is Role.SITE and _quantizer(model, source).scaled_codes
    return is_dynamic and has_dynamic_form(operation.module)


def _quantizer(model: nn.Module, site: fx.Node) -> Quantizer:
    quantizer = model.get_submodule(str(site.target))
    assert isinstance(quantizer, Quantizer)
    return quantizer


def _ends_in_site(node: fx.Node, operations: Operations, with_codes: set[fx.Node]) -> bool:
    """Whether a static site quantizes this tensor, or what a ReLU makes of it."""
    return any(
        (operations[user].role is Role.SITE and user in with_codes)
        or (isinstance(operations[user], Rectify) and _ends_in_site(user, operations, with_codes))
        for user in node.users
    )


def computes_products(operation: Operation) -> bool:
    """Whether the operation multiplies: a layer with a weight, or a product of two activations; not an embedding."""
    return isinstance(operation, MatMul) or (isinstance(operation, Layer) and not operation.takes_indices)
