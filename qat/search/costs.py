"""What a layer costs in some bits, and what the whole network costs beside that."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qat.integer import stored_bytes
from qat.search.budget import FLOAT, Budget
from qat.search.layers import Layer
from qat.transform.tensor_rule import TensorRule

FLOAT_BITS = 32


def layer_costs(
    layer: Layer,
    widths: tuple[int | None, int | None],
    code_bits: int | None,
    elements: int,
    budget: Budget,
) -> dict[str, float]:
    """The costs of one layer.

    Args:
        layer: the layer.
        widths: bits of its weight and of its input; None: float.
        code_bits: bits in which a code of its weight is stored; None: float.
        elements: number of weights in all quantized layers.
        budget: has the table of latencies, if they are a cost.
    """
    weight, activation = widths
    costs = {
        "size": layer.elements * (code_bits or FLOAT_BITS) / 8,
        "bops": float(layer.multiply_adds * (weight or FLOAT_BITS) * (activation or FLOAT_BITS)),
        "mean_bits": layer.elements * (weight or FLOAT_BITS) / max(1, elements),
    }
    if budget.latency_table is not None:
        costs["latency"] = budget.latency_table.time(layer.name, weight, activation)
    return costs


def constant_costs(prepared: nn.Module, layers: Sequence[Layer]) -> dict[str, float]:
    """The costs beside the layers: bytes of scales, biases, BatchNorm and of what stays in float.

    A weight that layers share counts once for each: each has codes of its own.
    """
    codes = sum(layer.elements * layer.weights[0].spec.grid.bits for layer in layers if layer.weights)
    return {"size": stored_bytes(prepared) - codes / 8}


def float_costs(model: nn.Module, layers: Sequence[Layer], budget: Budget) -> dict[str, float]:
    """The costs of the network in float; a layer without a time in float takes its longest one."""
    costs = {
        "size": float(stored_bytes(model)),
        "bops": float(sum(layer.multiply_adds for layer in layers) * FLOAT_BITS**2),
        "mean_bits": float(FLOAT_BITS),
    }
    if budget.latency_table is not None:
        of_layers = [budget.latency_table.times.get(layer.name, {}) for layer in layers]
        costs["latency"] = sum(times.get(FLOAT, max(times.values(), default=0.0)) for times in of_layers)
    return costs


def bits_of(rule: TensorRule | None) -> int | None:
    """The bits of a rule; None in float."""
    return None if rule is None else rule.bits
